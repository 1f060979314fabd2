//go:build unix

package soak

import (
	"context"
	"database/sql"
	"net/url"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver

	"freshen/internal/store/storetest"
)

// postgresServer is a database of its own server.
type postgresServer struct {
	server *storetest.Postgres
	name   string
	url    *url.URL
}

func newPostgres(t *testing.T) *postgresServer {
	t.Helper()
	server := storetest.StartPostgres(t, storetest.Options{})
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Exec(t.Context(), name, `CREATE SCHEMA extensions`, `CREATE EXTENSION amcheck SCHEMA extensions`); err != nil {
		t.Logf("The indexes are not checked, since this Postgres has no amcheck: %v", err)
	}
	return &postgresServer{server: server, name: name, url: server.URL(name)}
}

func (p *postgresServer) config() string { return p.url.String() }

func (p *postgresServer) leases() time.Duration { return fetchTimeout + leaseAtLeast }

// look waits until the server has noticed that the process is dead, and has ended what it was doing for it.
func (p *postgresServer) look(t *testing.T) holding {
	t.Helper()
	db := p.open(t)
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for others := 1; others > 0; {
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&others); err != nil {
			t.Fatalf("the dead process still has sessions: %v", err)
		}
		wait(ctx, time.Millisecond)
	}
	return p.read(t, db)
}

// read reads it as it is, whoever uses it.
func (p *postgresServer) read(t *testing.T, db *sql.DB) holding {
	t.Helper()
	var tables int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_tables WHERE tablename = 'stream'`).Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if tables == 0 {
		return holding{} // killed before its first start was through
	}
	var checks int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'`).Scan(&checks); err != nil {
		t.Fatal(err)
	}
	if checks > 0 {
		if _, err := db.ExecContext(t.Context(), `SELECT extensions.bt_index_check(i.indexrelid, true) FROM pg_index i
			JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am a ON a.oid = c.relam
			WHERE n.nspname = 'public' AND a.amname = 'btree'`); err != nil {
			t.Errorf("the database is corrupt: %v", err)
		}
	}
	return readHolding(t, db)
}

func (p *postgresServer) open(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", p.url.String())
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}
