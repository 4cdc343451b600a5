-- Commands that run in guests beside everybody's connections. A machine's go with it.
CREATE TABLE sessions (
    id           TEXT PRIMARY KEY,
    vm           TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    command      TEXT NOT NULL,         -- JSON: program and arguments
    user         TEXT,                  -- as it was asked for
    run          TEXT NOT NULL,         -- when the machine's run began that it belongs to
    started      TEXT NOT NULL,
    ended        TEXT,
    outcome      TEXT,                  -- JSON, the engine's; none while it runs
    ends_machine INTEGER NOT NULL,
    UNIQUE (vm, name)
) STRICT;
