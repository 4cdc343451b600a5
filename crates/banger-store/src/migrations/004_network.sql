-- What its guest may reach beyond the host's own way out: words of the engine's, separated by commas.
ALTER TABLE vms ADD COLUMN allow TEXT NOT NULL DEFAULT '';

-- Addresses of machines, each for the machine's life. As numbers, so that the lowest free one can be asked for.
CREATE TABLE leases (
    vm      TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    address INTEGER NOT NULL UNIQUE
) STRICT;
