-- +goose Up
-- Changes of kept lists are numbered like announcements, so that everybody can read what is new.
ALTER TABLE stream ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kept_lists ADD COLUMN version INTEGER NOT NULL DEFAULT 0; -- of its last change
CREATE INDEX kept_lists_version ON kept_lists (version);

-- A list is suspect if its user was announced since its fetch began.
ALTER TABLE kept_lists ADD COLUMN began_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kept_lists ADD COLUMN announced_at INTEGER NOT NULL DEFAULT 0; -- by the homeserver
