package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations/sqlite/*.sql
var sqliteMigrations embed.FS

// applicationID marks our files (PRAGMA application_id): "frsh".
const applicationID = 0x66727368

func (s *Store) openSQLite(ctx context.Context, path string) error {
	params := url.Values{
		"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)"},
		"_txlock": {"immediate"},
	}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + params.Encode()
	var err error
	if s.write, err = sql.Open("sqlite", dsn); err != nil {
		return fmt.Errorf("database: %s: %w", path, err)
	}
	s.write.SetMaxOpenConns(1)
	if err := checkOwner(ctx, s.write, path); err != nil {
		return err
	}
	if err := migrate(ctx, s.write, path); err != nil {
		return err
	}
	if s.read, err = sql.Open("sqlite", dsn+"&_pragma=query_only(ON)"); err != nil {
		return fmt.Errorf("database: %s: %w", path, err)
	}
	s.read.SetMaxOpenConns(4)
	s.read.SetMaxIdleConns(4)
	return nil
}

// checkOwner refuses a file that another program made: migrating it would harm both.
func checkOwner(ctx context.Context, db *sql.DB, path string) error {
	var app, tables int
	if err := db.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&app); err != nil {
		return cannotUse(path, err)
	}
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master`).Scan(&tables); err != nil {
		return cannotUse(path, err)
	}
	if app == applicationID {
		return nil
	}
	if tables > 0 || app != 0 {
		return fmt.Errorf("database: %s is the database of another program; name a file of freshen's own", path)
	}
	if _, err := db.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID)); err != nil {
		return cannotUse(path, err)
	}
	return nil
}

// cannotUse says what an administrator can do about SQLite's error.
func cannotUse(path string, err error) error {
	if known, ok := errors.AsType[*sqlite.Error](err); ok {
		switch known.Code() & 0xff {
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
			return fmt.Errorf("database: %s cannot be written: let the user that freshen runs as write the file and its folder (SQLite keeps two more files beside it): %w", path, err)
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return fmt.Errorf("database: %s is locked; is another freshen using it? %w", path, err)
		case sqlite3.SQLITE_FULL:
			return fmt.Errorf("database: %s cannot grow, the disk is full: %w", path, err)
		}
	}
	return fmt.Errorf("database: %s cannot be used as an SQLite database: %w", path, err)
}

func migrate(ctx context.Context, db *sql.DB, path string) error {
	files, err := fs.Sub(sqliteMigrations, "migrations/sqlite")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("database: %s: %w", path, err)
	}
	current, newest, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("database: %s: its version cannot be read: %w", path, err)
	}
	if current > newest {
		return fmt.Errorf("database: %s was written by a newer freshen (its tables are version %d, this program knows %d); install that version again, or restore the backup from before the upgrade",
			path, current, newest)
	}
	if _, err := provider.Up(ctx); err != nil {
		return errors.Join(fmt.Errorf("database: %s could not be brought up to date", path), err)
	}
	return nil
}
