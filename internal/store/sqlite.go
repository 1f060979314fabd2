package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver
)

//go:embed migrations/sqlite/*.sql
var sqliteMigrations embed.FS

// applicationID marks our files (PRAGMA application_id): "frsh".
const applicationID = 0x66727368

// openSQLite locks the file, before anything else of this process touches it: closing a file gives back every lock that
// the process has on it, those of an SQLite that uses it already as well.
func (s *Store) openSQLite(ctx context.Context, path string) (err error) {
	if err := regular(path); err != nil {
		return err
	}
	if s.lock, err = lockDatabase(path); err != nil {
		return err
	}
	opened, err := probeFile(path)
	if err != nil {
		return err
	}
	s.intact = func() error { return opened.stillThere(path) }
	s.explain = func(err error) error { return explain(path, err) }
	s.write = opened.pool(path, 1, "busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)")
	if err := checkOwner(ctx, s.write, path); err != nil {
		return err
	}
	if _, err := s.write.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID)); err != nil {
		return cannotOpen(path, err)
	}
	if err := migrate(ctx, s.write, path); err != nil {
		return err
	}
	s.read = opened.pool(path, readConns, "busy_timeout(5000)", "journal_mode(WAL)", "foreign_keys(ON)", "query_only(ON)")
	return nil
}

// readConns is how many may read an SQLite file at once.
const readConns = 4

// pool has connections to the file that was opened and to no other. Left to itself, SQLite would make a new file where
// the database was moved away, and remove what stands in the old one's -wal file, since that belongs to no empty file.
func (o openedFile) pool(path string, conns int, pragmas ...string) *sql.DB {
	db := sql.OpenDB(connector{path: path, opened: o, name: dataSource(path, url.Values{"mode": {"rw"}, "_pragma": pragmas})})
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db
}

// connector is a [driver.Connector] that opens no other file than the one that was there at first.
type connector struct {
	path, name string
	opened     openedFile
}

func (c connector) Connect(context.Context) (driver.Conn, error) {
	if err := c.opened.same(c.path); err != nil {
		return nil, err
	}
	return c.Driver().Open(c.name)
}

func (connector) Driver() driver.Driver { return sqliteDriver }

// sqliteDriver is the one that is registered: one made here would miss what its package gives that one.
var sqliteDriver = func() driver.Driver {
	db, _ := sql.Open("sqlite", "")   // opens nothing yet
	defer func() { _ = db.Close() }() // nothing is open
	return db.Driver()
}()

func dataSource(path string, params url.Values) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + params.Encode()
}

// CheckFile looks at an SQLite file as [Open] would, and reads all of it for damage, but makes and changes nothing. A
// file that does not exist is none to complain of; one that is being used may be looked at.
func CheckFile(ctx context.Context, path string) (err error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := regular(path); err != nil {
		return err
	}
	params := url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(5000)"}}
	if _, err := os.Stat(realPath(path) + "-wal"); errors.Is(err, os.ErrNotExist) {
		params.Set("immutable", "1") // nobody uses it, and SQLite need not make the files that users of it share
	}
	db, err := sql.Open("sqlite", dataSource(path, params))
	if err != nil {
		return fmt.Errorf("database: %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := checkOwner(ctx, db, path); err != nil {
		return err
	}
	var damage string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&damage); err != nil {
		return cannotOpen(path, err)
	}
	if damage != "ok" {
		return damaged(path, errors.New(damage))
	}
	_, _, err = versions(ctx, db, path)
	return err
}

// checkOwner refuses a file that another program made: migrating it would harm both.
func checkOwner(ctx context.Context, db *sql.DB, path string) error {
	var app, tables int
	if err := db.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&app); err != nil {
		return cannotOpen(path, err)
	}
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master`).Scan(&tables); err != nil {
		return cannotOpen(path, err)
	}
	if app != applicationID && (tables > 0 || app != 0) {
		return fmt.Errorf("database: %s is the database of another program; name a file of freshen's own", path)
	}
	return nil
}

func migrate(ctx context.Context, db *sql.DB, path string) error {
	current, provider, err := versions(ctx, db, path)
	if err != nil || current == newest(provider) {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return cannotOpen(path, err)
	}
	return nil
}

// versions says of which version the tables are (0: there are none), and has what brings them up to date. A newer one
// than this program knows is an error.
func versions(ctx context.Context, db *sql.DB, path string) (current int64, _ *goose.Provider, err error) {
	files, err := fs.Sub(sqliteMigrations, "migrations/sqlite")
	if err != nil {
		return 0, nil, err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return 0, nil, fmt.Errorf("database: %s: %w", path, err)
	}
	// Asked for here, since goose takes a table that cannot be read for one that is missing.
	var exists bool
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master WHERE name = $1`, goose.DefaultTablename).Scan(&exists); err != nil {
		return 0, nil, cannotOpen(path, err)
	}
	if exists {
		if err := db.QueryRowContext(ctx, `SELECT max(version_id) FROM `+goose.DefaultTablename).Scan(&current); err != nil {
			return 0, nil, cannotOpen(path, err)
		}
	}
	return current, provider, notNewer(provider, current, path)
}

// notNewer refuses tables that this program is too old for. name is the database's.
func notNewer(provider *goose.Provider, current int64, name string) error {
	if newest := newest(provider); current > newest {
		return fmt.Errorf("database: %s was written by a newer freshen (its tables are version %d, this program knows %d); install that version again, or restore the backup from before the upgrade",
			name, current, newest)
	}
	return nil
}

func newest(provider *goose.Provider) int64 {
	sources := provider.ListSources()
	return sources[len(sources)-1].Version
}
