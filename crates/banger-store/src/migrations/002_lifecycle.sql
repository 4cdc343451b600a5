-- How the system disk is made: 'overlay', 'reflink' or 'dm'. All machines of before have overlays.
ALTER TABLE vms ADD COLUMN system_disk TEXT NOT NULL DEFAULT 'overlay';
-- Which system disk of this machine; each renewal makes the next, so that switching over is one update of this row.
ALTER TABLE vms ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
-- Size of the work disk in bytes; 0: none.
ALTER TABLE vms ADD COLUMN work_disk INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vms ADD COLUMN nat INTEGER NOT NULL DEFAULT 1;
ALTER TABLE vms ADD COLUMN autostart INTEGER NOT NULL DEFAULT 0;
-- 'no', 'on-failure' or 'always'.
ALTER TABLE vms ADD COLUMN restart TEXT NOT NULL DEFAULT 'no';
ALTER TABLE vms ADD COLUMN expires TEXT;
CREATE INDEX vms_expires ON vms (expires);

-- What the daemon knows of its host from before, one value a key ('boot_id').
CREATE TABLE facts (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
