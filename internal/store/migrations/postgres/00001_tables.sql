-- +goose Up
-- Times are milliseconds since 1970; 0 means never. Flags are 0 or 1, as in SQLite, so that one text of SQL serves both.

-- One row per destination that failed last or is owed something.
CREATE TABLE destinations (
    name          TEXT   NOT NULL PRIMARY KEY,
    failures      BIGINT NOT NULL DEFAULT 0, -- in a row; 0: not backing off
    failing_since BIGINT NOT NULL DEFAULT 0,
    retry_at      BIGINT NOT NULL DEFAULT 0, -- backing off until then
    due_at        BIGINT,                    -- when its first debt may be claimed; NULL: owed nothing
    reason        TEXT   NOT NULL DEFAULT '',
    sentence      TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX destinations_due ON destinations (due_at) WHERE due_at IS NOT NULL;

-- One row per target whose refresh a client was told will be retried.
CREATE TABLE debts (
    user_id     TEXT   NOT NULL PRIMARY KEY,
    destination TEXT   NOT NULL,
    gen         BIGINT NOT NULL,            -- +1 each time it is asked for again
    asked_at    BIGINT NOT NULL,            -- last asked for; given up some days after that
    failures    BIGINT NOT NULL DEFAULT 0,  -- of this user in a row
    due_at      BIGINT NOT NULL,            -- may be claimed from then on; while leased: the lease's end
    lease       TEXT   NOT NULL DEFAULT '', -- '' or the token of the claim that holds it
    reason      TEXT   NOT NULL DEFAULT '',
    sentence    TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX debts_due ON debts (destination, due_at);
CREATE INDEX debts_leased ON debts (destination, due_at) WHERE lease <> '';

-- Who asked for whom. owed: was told of a failure and is to hear of the success, whatever the list says then.
CREATE TABLE requesters (
    target   TEXT   NOT NULL,
    user_id  TEXT   NOT NULL,
    asked_at BIGINT NOT NULL,
    owed     BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (target, user_id)
);
CREATE INDEX requesters_asked ON requesters (asked_at);

-- The lists that were fetched. list is NULL once the homeserver has healed; the hash stays, to tell a change.
-- shared: a local user is known to share a room with this one. A list of whom nobody does goes after an hour.
-- suspect: the user was announced since its fetch began. version is that of its last change.
CREATE TABLE kept_lists (
    user_id      TEXT   NOT NULL PRIMARY KEY,
    list         BYTEA,
    hash         BYTEA  NOT NULL,
    began_at     BIGINT NOT NULL DEFAULT 0,
    fetched_at   BIGINT NOT NULL,
    announced_at BIGINT NOT NULL DEFAULT 0, -- by the homeserver
    suspect      BIGINT NOT NULL DEFAULT 0,
    shared       BIGINT NOT NULL DEFAULT 0,
    version      BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX kept_lists_version ON kept_lists (version);

-- The announcement stream. audience is '' for every local user to whom the target is relevant, else one local user.
CREATE TABLE announcements (
    target       TEXT   NOT NULL,
    audience     TEXT   NOT NULL DEFAULT '',
    position     BIGINT NOT NULL UNIQUE,
    announced_at BIGINT NOT NULL,
    PRIMARY KEY (target, audience)
);
CREATE INDEX announcements_age ON announcements (announced_at);

-- The stream's head, which outlives the announcements: a position is never given twice. version is the same for changes
-- of kept lists.
CREATE TABLE stream (
    only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1),
    head     BIGINT NOT NULL,
    version  BIGINT NOT NULL
) WITH (fillfactor = 10);
INSERT INTO stream (only_row, head, version) VALUES (1, 0, 0);

-- What a device surely has: everything up to acked, and above it what stands in sync_acks.
CREATE TABLE sync_positions (
    user_id   TEXT   NOT NULL,
    device_id TEXT   NOT NULL,
    acked     BIGINT NOT NULL,
    seen_at   BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
CREATE INDEX sync_positions_age ON sync_positions (seen_at);

CREATE TABLE sync_acks (
    user_id   TEXT   NOT NULL,
    device_id TEXT   NOT NULL,
    target    TEXT   NOT NULL,
    acked     BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, target),
    FOREIGN KEY (user_id, device_id) REFERENCES sync_positions (user_id, device_id) ON DELETE CASCADE
);

-- What the instances tell each other about fetches. It is not written to disk before a fetch begins: a crash of Postgres
-- empties both tables, which costs a fetch too many.

-- One row per target: the fetch that runs, and how the last one ended.
CREATE UNLOGGED TABLE fetches (
    target      TEXT   NOT NULL PRIMARY KEY,
    destination TEXT   NOT NULL,
    token       TEXT   NOT NULL DEFAULT '', -- of the fetch that runs; '': none does
    instance    TEXT   NOT NULL DEFAULT '', -- that makes it
    began_at    BIGINT NOT NULL DEFAULT 0,
    lease_end   BIGINT NOT NULL DEFAULT 0,  -- from then on another may begin
    ended_at    BIGINT NOT NULL DEFAULT 0,
    failure     BYTEA                       -- JSON; NULL: it ended with a list
);
CREATE INDEX fetches_running ON fetches (destination) WHERE token <> '';

-- Whose allowance of fetches is whole again when, in nanoseconds since 1970.
CREATE UNLOGGED TABLE rates (
    destination TEXT   NOT NULL PRIMARY KEY,
    whole_at    BIGINT NOT NULL
);
