-- Ports of machines that are to be reached at the host's. A host's port is reserved for the machine's life.
CREATE TABLE publications (
    vm           TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    protocol     TEXT NOT NULL,         -- 'tcp' or 'udp'
    host_address TEXT NOT NULL,         -- an IPv4 or IPv6 address, in its canonical form
    host_port    INTEGER NOT NULL,
    guest_port   INTEGER NOT NULL,
    PRIMARY KEY (protocol, host_address, host_port)
) STRICT;
CREATE INDEX publications_vm ON publications (vm);
