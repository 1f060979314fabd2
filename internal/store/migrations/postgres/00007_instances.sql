-- +goose Up

-- The instances that may be giving clients answers: what one of them knows of a device, the others must ask. left_at is when
-- it closed the database in order; NULL while it runs, or if it died.
CREATE TABLE instances (
    instance TEXT        PRIMARY KEY,
    name     TEXT        NOT NULL,
    beat_at  TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    left_at  TIMESTAMPTZ
);
