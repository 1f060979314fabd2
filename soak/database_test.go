//go:build unix

package soak

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // the driver
)

// database is freshen's, looked at from outside.
type database interface {
	// config is the value of the configuration's key.
	config() string
	// leases is for how long a fetch of a process that was killed may be in the way of others.
	leases() time.Duration
	// look reads it while no freshen has it open, and reports damage.
	look(t *testing.T) holding
}

// holding is what a database holds.
type holding struct {
	debts map[id.UserID]debt
	// announced has the position of each announcement that is for one user.
	announced map[pair]int64
	// destinations counts the rows of that table.
	destinations int
	// promises are those who are to hear of a success.
	promises map[pair]bool
}

type pair struct{ user, target id.UserID }

// debt is one row of debts.
type debt struct {
	gen    int64
	due    time.Time
	reason string
	leased bool
}

// sqliteFile is the default database.
type sqliteFile struct{ path string }

func (s sqliteFile) config() string { return s.path }

func (s sqliteFile) leases() time.Duration { return 0 }

// look reads a copy: the next freshen must find the file as the last one left it, and repair it itself.
func (s sqliteFile) look(t *testing.T) holding {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(s.path+suffix, path+suffix); errors.Is(err, fs.ErrNotExist) {
			continue // killed before it had made one, or closed in order
		} else if err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=query_only(ON)")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir) // not at the end of a long test
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, query := range []string{`PRAGMA integrity_check`, `SELECT count(*) || ' broken references' FROM pragma_foreign_key_check HAVING count(*) > 0`} {
		var verdict string
		err := db.QueryRowContext(t.Context(), query).Scan(&verdict)
		if (err != nil && !errors.Is(err, sql.ErrNoRows)) || (err == nil && verdict != "ok") {
			t.Errorf("the database is corrupt: %s: %s %v", query, verdict, err)
		}
	}
	var tables int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM sqlite_master WHERE name = 'stream'`).Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if tables == 0 {
		return holding{} // killed before its first start was through
	}
	return readHolding(t, db)
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// invariants are questions whose answer is how often something is wrong.
var invariants = []struct{ what, query string }{
	{"debts that nobody will ever claim, since their destination is not due", `SELECT count(*) FROM debts d
		WHERE NOT EXISTS (SELECT 1 FROM destinations WHERE name = d.destination AND due_at IS NOT NULL)`},
	{"destinations that are due and owed nothing", `SELECT count(*) FROM destinations s
		WHERE due_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM debts WHERE destination = s.name)`},
	{"debts of another server than their user's", `SELECT count(*) FROM debts WHERE user_id NOT LIKE '@%:' || destination`},
	{"users who were promised something that is not owed", `SELECT count(*) FROM requesters r
		WHERE owed = 1 AND NOT EXISTS (SELECT 1 FROM debts WHERE user_id = r.target)`},
	{"announcements beyond the head of the stream", `SELECT count(*) FROM announcements WHERE position > (SELECT head FROM stream)`},
	{"devices that have heard what was not announced", `SELECT count(*) FROM sync_positions WHERE acked > (SELECT head FROM stream)`},
	{"targets that a device has heard of and that were not announced", `SELECT count(*) FROM sync_acks WHERE acked > (SELECT head FROM stream)`},
	{"streams", `SELECT count(*) - 1 FROM stream`},
	{"lists that were announced and have left no trace", `SELECT count(*) FROM announcements a
		WHERE audience = '' AND NOT EXISTS (SELECT 1 FROM kept_lists WHERE user_id = a.target)`},
}

func readHolding(t *testing.T, db *sql.DB) holding {
	t.Helper()
	ctx := t.Context()
	for _, invariant := range invariants {
		var n int
		if err := db.QueryRowContext(ctx, invariant.query).Scan(&n); err != nil {
			t.Fatalf("the database cannot be asked for %s: %v", invariant.what, err)
		}
		if n != 0 {
			t.Errorf("the database holds %d %s", n, invariant.what)
		}
	}
	h := holding{debts: map[id.UserID]debt{}, announced: map[pair]int64{}, promises: map[pair]bool{}}
	each(ctx, t, db, `SELECT user_id, gen, due_at, reason, lease <> '' FROM debts`, func(rows *sql.Rows) error {
		var user id.UserID
		var d debt
		var due int64
		err := rows.Scan(&user, &d.gen, &due, &d.reason, &d.leased)
		d.due = time.UnixMilli(due)
		h.debts[user] = d
		return err
	})
	each(ctx, t, db, `SELECT audience, target, position FROM announcements WHERE audience <> ''`, func(rows *sql.Rows) error {
		var p pair
		var position int64
		err := rows.Scan(&p.user, &p.target, &position)
		h.announced[p] = position
		return err
	})
	each(ctx, t, db, `SELECT user_id, target FROM requesters WHERE owed = 1`, func(rows *sql.Rows) error {
		var p pair
		err := rows.Scan(&p.user, &p.target)
		h.promises[p] = true
		return err
	})
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM destinations`).Scan(&h.destinations); err != nil {
		t.Fatal(err)
	}
	return h
}

func each(ctx context.Context, t *testing.T, db *sql.DB, query string, scan func(*sql.Rows) error) {
	t.Helper()
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}
