package app_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/store/storetest"
)

// over makes freshen use a database of that server's.
func over(t *testing.T, server *storetest.Postgres) func(*config.Config) {
	t.Helper()
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func(c *config.Config) { c.Database.Path, c.Database.URL = "", server.URL(name) }
}

// A Postgres that is down takes nothing but refreshes with it: not at the start, and not later on. What was promised is
// kept when it is back, and polls that have waited all along are told.
func TestPostgresGoesAwayAndComesBack(t *testing.T) {
	server := storetest.StartPostgres(t, storetest.Options{})
	w := newWorld(t, over(t, server), soon)
	r := w.remote()
	bob := r.has("bob", "D")
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.passes()
	w.ready(http.StatusServiceUnavailable)
	w.refused(r)
	call, replies := w.waiting(aliceToken, "s1")
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.becomes(http.StatusOK)
	w.refreshed(aliceToken, bob)
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
	if got := w.exchange(aliceToken, "since=s2&timeout=0", `{"next_batch":"s2"}`); got != `{"next_batch":"s2"}` {
		t.Fatalf("what was acknowledged is still owed: %s", got)
	}

	carl := r.has("carl", "D")
	r.down()
	if got := w.refresh(carolToken, carl); got.status != http.StatusBadGateway {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if err := server.Crash(); err != nil {
		t.Fatal(err)
	}
	w.passes()
	w.ready(http.StatusServiceUnavailable)
	w.refusedAtLast(r.user("dora"))
	// The first poll of a device, of which nothing can be read.
	call, replies = w.waiting(carolToken, "s3")
	w.logs("cannot read what a device has acknowledged")
	r.up()
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s4"}`), carl)
	w.ready(http.StatusOK)
}

// refusedAtLast asks for a refresh, of which nothing can be recorded.
func (w *world) refusedAtLast(target id.UserID) {
	w.t.Helper()
	if got := w.refresh(aliceToken, target); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, awayMessage) {
		w.t.Errorf("refresh: %d %s, want 503 and that the database is away", got.status, got.body)
	}
}

// A Postgres that hangs must not have clients hang: refreshes are refused in bounded time, and everything else passes.
func TestPostgresHangs(t *testing.T) {
	server := storetest.StartPostgres(t, storetest.Options{})
	w := running(t, over(t, server))
	r := w.remote()
	bob := r.has("bob", "D")
	w.refreshed(aliceToken, bob)
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	w.passes()
	w.refusedAtLast(r.has("carl", "D"))
	w.passes()
	w.ready(http.StatusServiceUnavailable)
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	w.becomes(http.StatusOK)
	call, replies := w.waiting(carolToken, "s1")
	w.refreshed(carolToken, bob)
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
}

// Connections that are cut while polls wait and debts are owed, as by a restarted firewall, are made again by themselves.
func TestPostgresConnectionsAreCut(t *testing.T) {
	server := storetest.StartPostgres(t, storetest.Options{})
	w := running(t, over(t, server))
	r := w.remote()
	bob := r.has("bob", "D")
	name := strings.TrimPrefix(w.cfg.Database.URL.Path, "/")
	call, replies := w.waiting(aliceToken, "s1")
	if err := server.Exec(t.Context(), "postgres",
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+name+`'`); err != nil {
		t.Fatal(err)
	}
	w.becomes(http.StatusOK)
	w.refreshed(aliceToken, bob)
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
}

// What is wrong with a Postgres and not only away keeps freshen from starting, in a sentence without the password.
func TestAPostgresThatIsWrong(t *testing.T) {
	server := storetest.StartPostgres(t, storetest.Options{TCP: true})
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const secret = "wr0ng-and-secret"
	for what, c := range map[string]struct {
		url   func() *url.URL
		spoil string
		want  string
	}{
		"password": {func() *url.URL {
			u := server.TCPURL(name)
			u.User = url.UserPassword(storetest.Superuser, secret)
			return u
		}, "", "the password of the user"},
		"no such database":           {func() *url.URL { return server.URL("nowhere") }, "", "does not exist"},
		"another program's database": {func() *url.URL { return server.URL(name) }, `CREATE TABLE applied_schema_deltas (v int)`, "Synapse's tables"},
	} {
		t.Run(what, func(t *testing.T) {
			if c.spoil != "" {
				if err := server.Exec(t.Context(), name, c.spoil); err != nil {
					t.Fatal(err)
				}
			}
			w := newWorld(t, func(cfg *config.Config) { cfg.Database.Path, cfg.Database.URL = "", c.url() })
			opened, err := app.Open(t.Context(), w.cfg, w.logger())
			if err == nil {
				_ = opened.Close()
				t.Fatal("freshen opened")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "database: ") {
				t.Errorf("%q does not say %q", err, c.want)
			}
			if strings.Contains(err.Error()+w.log.String(), secret) {
				t.Errorf("the password stands in %q or the log", err)
			}
		})
	}
}
