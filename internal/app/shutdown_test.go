package app_test

import (
	"database/sql"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/app"
	"freshen/internal/config"
)

// A restart must cost clients nothing: a poll that waits is answered at once by the homeserver itself.
func TestLongPollsEndWithTheHomeserversAnswer(t *testing.T) {
	w := running(t)
	call, replies := w.waiting(aliceToken, "s1")
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	await(t, call.gone, "the end of the abandoned poll")
	again := w.next()
	if again.query != "since=s1&timeout=0" {
		t.Errorf("the homeserver got ?%s", again.query)
	}
	again.ok(`{"next_batch":"s9"}`)
	if r := await(t, replies, "the answer"); r.body != `{"next_batch":"s9"}` || r.err != nil {
		t.Errorf("got %q %v", r.body, r.err)
	}
	await(t, stopped, "the end of freshen")
}

// A request that runs is let to its end.
func TestRunningRequestsEnd(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	w, _ := behind(t, func(rw http.ResponseWriter, _ *http.Request) {
		close(began)
		<-release
		_, _ = rw.Write([]byte("done"))
	})
	replies := make(chan reply, 1)
	go func() { replies <- w.do(t.Context(), http.MethodPut, "/_matrix/x", aliceToken, nil) }()
	await(t, began, "the request")
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	// No connection is taken any more once freshen stops.
	for refused := false; !refused; {
		r := w.do(t.Context(), http.MethodGet, "/_matrix/client/v3/user/x/devices/refresh", "", nil)
		refused = r.err != nil
	}
	close(release)
	if r := await(t, replies, "the answer"); r.body != "done" {
		t.Errorf("got %q %v", r.body, r.err)
	}
	await(t, stopped, "the end of freshen")
}

// A refresh that waits for a server that hangs is answered before freshen goes, and what the answer promises is kept by
// the next process.
func TestARunningRefreshIsOwedOverAShutdown(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Federation.Timeout = time.Minute })
	w.start()
	w.app.SetGrace(5 * time.Second) // of which the last fifth is for the answer
	r := w.remote()
	bob := r.has("bob", "DEV1")
	asked := make(chan struct{}, 10)
	r.serve(http.HandlerFunc(func(_ http.ResponseWriter, rq *http.Request) { asked <- struct{}{}; <-rq.Context().Done() }))
	answers := make(chan reply, 1)
	go func() { answers <- w.refresh(aliceToken, bob) }()
	await(t, asked, "the request to the remote server")
	w.stop()
	answer := await(t, answers, "the answer")
	if answer.status != http.StatusGatewayTimeout || !strings.Contains(answer.body, "freshen tries again by itself") {
		t.Errorf("got %d %s", answer.status, answer.body)
	}
	r.up()
	w.start()
	call, replies := w.waiting(aliceToken, "s1")
	if call.query == "since=s1&timeout=30000" {
		await(t, call.gone, "waking Alice")
		call = w.next()
	}
	call.ok(`{"next_batch":"s2"}`)
	wantChanged(t, await(t, replies, "Alice's answer").body, bob)
}

// What keeps freshen from starting is said in a sentence that names it, and leaves nothing open behind.
func TestOpenSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, w *world)
		want  []string
	}{
		"port taken": {func(t *testing.T, w *world) {
			taken := w.listen()
			t.Cleanup(func() { _ = taken.Close() })
			w.cfg.Listen = taken.Addr().String()
		}, []string{"listen:", "another program"}},
		"admin port taken": {func(t *testing.T, w *world) {
			taken := w.listen()
			t.Cleanup(func() { _ = taken.Close() })
			w.cfg.Admin.Listen = taken.Addr().String()
		}, []string{"admin.listen:", "another program"}},
		"database is a directory": {func(t *testing.T, w *world) { w.cfg.Database.Path = t.TempDir() }, []string{"database:", "is a directory"}},
		"database's folder is missing": {func(t *testing.T, w *world) {
			w.cfg.Database.Path = filepath.Join(t.TempDir(), "no", "freshen.db")
		}, []string{"database:", "folder"}},
		"database is no database": {func(_ *testing.T, w *world) {
			w.write(w.cfg.Database.Path, strings.Repeat("this is a text file. ", 100))
		}, []string{"database:", "cannot be used as an SQLite database"}},
		"database of another program": {func(t *testing.T, w *world) {
			spoilDatabase(t, w, `CREATE TABLE rooms (id TEXT)`)
		}, []string{"database:", "another program"}},
		"database of a newer version": {func(t *testing.T, w *world) {
			w.start()
			w.stop()
			spoilDatabase(t, w, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
		}, []string{"database:", "newer freshen", "999"}},
		"no signing key": {func(_ *testing.T, w *world) { w.cfg.Homeserver.SigningKey = "/nowhere" }, []string{"homeserver.signing_key:", "/nowhere"}},
		"bad signing key": {func(_ *testing.T, w *world) { w.write(w.cfg.Homeserver.SigningKey, "ed25519 1 short") },
			[]string{"homeserver.signing_key:", "no signing key"}},
		"bad CA file": {func(_ *testing.T, w *world) { w.cfg.Federation.CAFile = w.cfg.Homeserver.SigningKey }, []string{"federation.ca_file:"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.spoil(t, w)
			opened, err := app.Open(t.Context(), w.cfg, w.logger())
			if err == nil {
				_ = opened.Close()
				t.Fatal("freshen opened")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(name, "port") { // what was opened before is free again
				w.cfg.Listen, w.cfg.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0"
				w.start()
			}
		})
	}
}

func spoilDatabase(t *testing.T, w *world, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+w.cfg.Database.Path+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// The database holds who asked for whom: nobody else on the machine may read it.
func TestTheDatabaseIsPrivate(t *testing.T) {
	w := running(t)
	info, err := os.Stat(w.cfg.Database.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A process that was opened and never run, or closed twice, leaves nothing behind.
func TestCloseWithoutRun(t *testing.T) {
	w := newWorld(t)
	opened, err := app.Open(t.Context(), w.cfg, w.logger())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}
}
