-- +goose Up
-- Times are milliseconds since 1970; 0 means never.

-- One row per destination that failed last or is owed something.
CREATE TABLE destinations (
    name          TEXT    NOT NULL PRIMARY KEY,
    failures      INTEGER NOT NULL DEFAULT 0, -- in a row; 0: not backing off
    failing_since INTEGER NOT NULL DEFAULT 0,
    retry_at      INTEGER NOT NULL DEFAULT 0, -- backing off until then
    due_at        INTEGER,                    -- when its first debt may be claimed; NULL: owed nothing
    reason        TEXT    NOT NULL DEFAULT '',
    sentence      TEXT    NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX destinations_due ON destinations (due_at) WHERE due_at IS NOT NULL;

-- One row per target whose refresh a client was told will be retried.
CREATE TABLE debts (
    user_id     TEXT    NOT NULL PRIMARY KEY,
    destination TEXT    NOT NULL,
    gen         INTEGER NOT NULL,            -- +1 each time it is asked for again
    asked_at    INTEGER NOT NULL,            -- last asked for; given up some days after that
    failures    INTEGER NOT NULL DEFAULT 0,  -- of this user in a row
    due_at      INTEGER NOT NULL,            -- may be claimed from then on; while leased: the lease's end
    lease       TEXT    NOT NULL DEFAULT '', -- '' or the token of the claim that holds it
    reason      TEXT    NOT NULL DEFAULT '',
    sentence    TEXT    NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX debts_due ON debts (destination, due_at);
CREATE INDEX debts_leased ON debts (destination, due_at) WHERE lease <> '';

-- Who asked for whom. owed: was told of a failure and is to hear of the success, whatever the list says then.
CREATE TABLE requesters (
    target   TEXT    NOT NULL,
    user_id  TEXT    NOT NULL,
    asked_at INTEGER NOT NULL,
    owed     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (target, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requesters_asked ON requesters (asked_at);

-- The lists that were fetched. list is NULL once the homeserver has healed; the hash stays, to tell a change.
-- shared: a local user is known to share a room with this one. A list of whom nobody does goes after an hour.
CREATE TABLE kept_lists (
    user_id    TEXT    NOT NULL PRIMARY KEY,
    list       BLOB,
    hash       BLOB    NOT NULL,
    fetched_at INTEGER NOT NULL,
    suspect    INTEGER NOT NULL DEFAULT 0,
    shared     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- The announcement stream. audience is '' for every local user to whom the target is relevant, else one local user.
CREATE TABLE announcements (
    target       TEXT    NOT NULL,
    audience     TEXT    NOT NULL DEFAULT '',
    position     INTEGER NOT NULL UNIQUE,
    announced_at INTEGER NOT NULL,
    PRIMARY KEY (target, audience)
) STRICT, WITHOUT ROWID;
CREATE INDEX announcements_age ON announcements (announced_at);

-- The stream's head, which outlives the announcements: a position is never given twice.
CREATE TABLE stream (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    head INTEGER NOT NULL
) STRICT;
INSERT INTO stream (only, head) VALUES (1, 0);

-- What a device surely has: everything up to floor, and above it what stands in sync_acks.
CREATE TABLE sync_positions (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    acked     INTEGER NOT NULL,
    seen_at   INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX sync_positions_age ON sync_positions (seen_at);

CREATE TABLE sync_acks (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    target    TEXT    NOT NULL,
    acked     INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, target),
    FOREIGN KEY (user_id, device_id) REFERENCES sync_positions (user_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
