-- +goose Up

-- One row per target whose list the homeserver is to fetch and announce itself, and is not known to have done so.
-- gen, asked_at: as those of a debt. due_at: NULL where trying again would change nothing, as what the homeserver never
-- announces. reason and sentence: what came of the last try. loose: freshen left out a part of the list.
CREATE TABLE deliveries (
    user_id     TEXT   NOT NULL PRIMARY KEY,
    destination TEXT   NOT NULL,
    gen         BIGINT NOT NULL,
    since       BIGINT NOT NULL,
    asked_at    BIGINT NOT NULL,
    due_at      BIGINT,
    tries       BIGINT NOT NULL DEFAULT 0,
    loose       BIGINT NOT NULL DEFAULT 0,
    reason      TEXT   NOT NULL DEFAULT '',
    sentence    TEXT   NOT NULL DEFAULT ''
);
CREATE INDEX deliveries_due ON deliveries (destination, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_told ON deliveries (asked_at);
