-- +goose Up

-- One row per target whose list the homeserver is to fetch and announce itself, and is not known to have done so.
-- gen, asked_at: as those of a debt. due_at: NULL where trying again would change nothing, as what the homeserver never
-- announces. reason and sentence: what came of the last try. loose: freshen left out a part of the list.
CREATE TABLE deliveries (
    user_id     TEXT    NOT NULL PRIMARY KEY,
    destination TEXT    NOT NULL,
    gen         INTEGER NOT NULL,
    since       INTEGER NOT NULL,
    asked_at    INTEGER NOT NULL,
    due_at      INTEGER,
    tries       INTEGER NOT NULL DEFAULT 0,
    loose       INTEGER NOT NULL DEFAULT 0,
    reason      TEXT    NOT NULL DEFAULT '',
    sentence    TEXT    NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (destination, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_told ON deliveries (asked_at);
