-- +goose Up

-- Destinations that are backing off are claimed apart from those that are fine.
DROP INDEX destinations_due;
CREATE INDEX destinations_due_fine ON destinations (due_at) WHERE due_at IS NOT NULL AND failures = 0;
CREATE INDEX destinations_due_failing ON destinations (due_at) WHERE due_at IS NOT NULL AND failures > 0;
