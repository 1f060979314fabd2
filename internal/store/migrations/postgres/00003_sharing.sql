-- +goose Up

-- shared: this requester was once known to share a room with the target. Where all who were promised something have
-- left since, nothing is owed any more.
ALTER TABLE requesters ADD COLUMN shared BIGINT NOT NULL DEFAULT 0;
