package app_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"freshen/internal/config"
)

// awayMessage is what a client is told while the database is away.
const awayMessage = "freshen cannot reach its own database"

// locked has another program lock the database file, as a tool that mends or copies it may, until unlock is called.
func locked(t *testing.T, w *world) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+w.cfg.Database.Path+"?_pragma=journal_mode(DELETE)&_txlock=exclusive")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(context.WithoutCancel(t.Context()), nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock = func() { _ = tx.Rollback(); _ = db.Close() }
	t.Cleanup(unlock)
	return unlock
}

// admin asks the operators' port.
func (w *world) admin(path string) (status int, body string) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+w.app.AdminAddr().String()+path, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	response, err := w.client.Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, string(read)
}

// refused asks for a refresh that must be answered with what a client is told while the database is away.
func (w *world) refused(r *remote) {
	w.t.Helper()
	before := r.asked.Load()
	got := w.refresh(aliceToken, r.user("bob"))
	told := got.json(w.t)
	if sentence, _ := told["error"].(string); got.status != http.StatusServiceUnavailable || told["errcode"] != "M_UNKNOWN" || !strings.Contains(sentence, awayMessage) {
		w.t.Errorf("refresh: %d %s, want 503 M_UNKNOWN and that the database is away", got.status, got.body)
	}
	if r.asked.Load() != before {
		w.t.Error("another server was asked, although nothing can come of it")
	}
}

// passes checks everything that needs no database.
func (w *world) passes() {
	w.t.Helper()
	if got := w.exchange(aliceToken, "since=p1&timeout=0", `{"next_batch":"p2","device_lists":{"changed":["@x:y.org"]}}`); got != `{"next_batch":"p2","device_lists":{"changed":["@x:y.org"]}}` {
		w.t.Errorf("/sync does not pass as it is: %s", got)
	}
	w.hs.HandleFunc("/_matrix/client/versions", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, `{"versions":["v1.11"]}`) })
	if got := w.do(w.t.Context(), http.MethodGet, "/_matrix/client/versions", "", nil); got.status != http.StatusOK || !strings.Contains(got.body, "org.matrix.msc2638") {
		w.t.Errorf("/versions: %d %s %v", got.status, got.body, got.err)
	}
	w.settle()
	if status, body := w.admin("/health"); status != http.StatusOK {
		w.t.Errorf("/health: %d %s", status, body)
	}
}

func (w *world) ready(want int) {
	w.t.Helper()
	if status, body := w.admin("/ready"); status != want {
		w.t.Errorf("/ready: %d %s, want %d", status, body, want)
	}
}

// becomes waits until /ready says so.
func (w *world) becomes(want int) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		status, body := w.admin("/ready")
		if status == want {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("/ready is still %d %s after %v, want %d", status, body, patience, want)
		}
	}
}

// A restart while the database is away must not take the site's Matrix down with it; and once it is back, nobody has to
// restart anything, not even the clients whose polls have been waiting all along.
func TestAStartWhileTheDatabaseIsAway(t *testing.T) {
	w := newWorld(t)
	r := w.remote()
	bob := r.has("bob", "D")
	unlock := locked(t, w)
	w.start()
	w.passes()
	w.ready(http.StatusServiceUnavailable)
	w.refused(r)
	w.homeserverSays(http.StatusOK, stale(bob))
	if got := w.query(aliceToken, ask(bob)); got.status != http.StatusOK || got.body != stale(bob) {
		t.Errorf("/keys/query does not pass as it is: %d %s", got.status, got.body)
	}
	call, replies := w.waiting(aliceToken, "s1")
	unlock()
	w.becomes(http.StatusOK)
	select {
	case <-call.gone:
		t.Error("the poll was abandoned although there is nothing to tell: all clients would come back at once")
	default:
	}
	w.refreshed(aliceToken, bob)
	await(t, call.gone, "waking the poll that waited already")
	w.next().ok(`{"next_batch":"s2"}`)
	wantChanged(t, await(t, replies, "the answer").body, bob)
	for _, line := range []string{"the database is away", "the database is back"} {
		if n := strings.Count(w.log.String(), line); n != 1 {
			t.Errorf("the log says %d times that %q, want once", n, line)
		}
	}
}

// Who stops a freshen whose database is away waits for nothing.
func TestStoppingWhileTheDatabaseIsAway(t *testing.T) {
	w := newWorld(t)
	defer locked(t, w)()
	w.start()
	call, replies := w.waiting(aliceToken, "s1")
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	await(t, call.gone, "the end of the abandoned poll")
	w.next().ok(`{"next_batch":"s9"}`)
	if r := await(t, replies, "the answer"); r.body != `{"next_batch":"s9"}` || r.err != nil {
		t.Errorf("got %q %v", r.body, r.err)
	}
	await(t, stopped, "the end of freshen")
}

// What the homeserver announced while nobody could watch may be newer than what is kept.
func TestListsAreDoubtedAfterAStartWithoutTheDatabase(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "OLD")
	w.refreshed(aliceToken, bob)
	w.stop()
	// Rollback mode again, so that another program can lock it as a whole.
	spoilDatabase(t, w, `PRAGMA journal_mode = DELETE`)
	unlock := locked(t, w)
	w.start()
	w.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2","device_lists":{"changed":["`+string(bob)+`"]}}`)
	r.has("bob", "NEW")
	unlock()
	w.becomes(http.StatusOK)
	w.homeserverSays(http.StatusOK, fmt.Sprintf(`{"device_keys":{%q:{}}}`, bob))
	if got := devicesIn(t, w.query(aliceToken, ask(bob)), bob); got["NEW"] == nil || got["OLD"] != nil {
		t.Errorf("a client is told of the old device: %v", got)
	}
}

// A database that vanishes under a running freshen takes nothing else with it, and what was owed stays owed.
func TestADatabaseThatVanishesWhileFreshenRuns(t *testing.T) {
	w := running(t, func(c *config.Config) { soon(c) })
	r := w.remote()
	bob := r.has("bob", "D")
	r.down()
	if got := w.refresh(aliceToken, bob); got.status != http.StatusBadGateway {
		t.Fatalf("%d %s", got.status, got.body)
	}
	path := w.cfg.Database.Path
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	w.passes()
	w.ready(http.StatusServiceUnavailable)
	if got := w.refresh(aliceToken, r.user("carl")); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, awayMessage) {
		t.Errorf("%d %s", got.status, got.body)
	}
	call, replies := w.waiting(aliceToken, "s1")
	r.up()
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
	w.ready(http.StatusOK)
	if !strings.Contains(w.log.String(), path+" was removed while freshen was using it") {
		t.Error("the log does not say what is wrong with the database")
	}
}
