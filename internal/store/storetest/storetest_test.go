package storetest_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"freshen/internal/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

// The tests that trust this server would pass for the wrong reason if it did not go away, or forgot.
func TestAServerGoesAwayAndComesBack(t *testing.T) {
	p := storetest.StartPostgres(t, storetest.Options{TCP: true})
	for name, end := range map[string]func() error{"Stop": p.Stop, "Crash": p.Crash} {
		t.Run(name, func(t *testing.T) {
			u := p.NewDatabase(t)
			conn := connect(t, u.String())
			if _, err := conn.Exec(t.Context(), `CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)`); err != nil {
				t.Fatal(err)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if err := conn.Ping(t.Context()); err == nil {
				t.Error("its connection still answers")
			}
			if late, err := pgx.Connect(t.Context(), u.String()); err == nil {
				_ = late.Close(t.Context())
				t.Error("it still lets in")
			}
			if err := p.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := connect(t, u.String()).QueryRow(t.Context(), `SELECT n FROM kept`).Scan(&n); err != nil || n != 7 {
				t.Errorf("after its restart it holds %d (%v)", n, err)
			}
		})
	}
	if err := connect(t, p.TCPURL(storetest.Superuser).String()).Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAPausedServerKeepsItsConnectionsAndAnswersLater(t *testing.T) {
	p := storetest.StartPostgres(t, storetest.Options{})
	conn := connect(t, p.URL(storetest.Superuser).String())
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- conn.Ping(t.Context()) }()
	select {
	case err := <-answered:
		t.Errorf("it answered while it was paused: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	p := storetest.Shared(t)
	for range 2 {
		conn := connect(t, p.NewDatabase(t).String())
		if _, err := conn.Exec(t.Context(), `CREATE TABLE mine (n int)`); err != nil {
			t.Error(err)
		}
	}
}

func connect(t *testing.T, u string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}
