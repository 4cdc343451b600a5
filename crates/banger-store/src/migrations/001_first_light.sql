CREATE TABLE kernels (
    name     TEXT PRIMARY KEY,
    version  TEXT NOT NULL,
    format   TEXT NOT NULL,             -- what the source file was: 'elf' or 'bzimage'
    sha256   TEXT NOT NULL,
    size     INTEGER NOT NULL,
    modules  INTEGER NOT NULL,
    pvh      INTEGER NOT NULL,          -- QEMU boots its ELF form
    source   TEXT NOT NULL,
    created  TEXT NOT NULL
) STRICT;

CREATE TABLE images (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    kernel   TEXT NOT NULL REFERENCES kernels (name),
    sha256   TEXT NOT NULL,
    size     INTEGER NOT NULL,
    used     INTEGER NOT NULL,
    source   TEXT NOT NULL,
    created  TEXT NOT NULL
) STRICT;

CREATE TABLE vms (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    image      TEXT NOT NULL REFERENCES images (id),
    kernel     TEXT NOT NULL REFERENCES kernels (name),
    vcpus      INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk       INTEGER NOT NULL,
    vmm        TEXT,
    labels     TEXT NOT NULL,           -- JSON object
    ephemeral  INTEGER NOT NULL,
    phase      TEXT NOT NULL,           -- JSON, the engine's
    created    TEXT NOT NULL
) STRICT;
CREATE INDEX vms_image ON vms (image);
CREATE INDEX vms_kernel ON vms (kernel);

-- No reference to vms: a row may outlive its owner, and then says what is still to be removed.
CREATE TABLE ledger (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    owner   TEXT NOT NULL,
    object  TEXT NOT NULL,              -- JSON, the engine's
    created TEXT NOT NULL
) STRICT;
CREATE INDEX ledger_owner ON ledger (owner);

CREATE TABLE operations (
    id     TEXT PRIMARY KEY,
    kind   TEXT NOT NULL,
    began  TEXT NOT NULL,
    ended  TEXT,
    record TEXT NOT NULL                -- JSON, the engine's
) STRICT;
CREATE INDEX operations_began ON operations (began);
