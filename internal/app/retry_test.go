package app_test

import (
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/config"
)

// owed counts the debts in the database file.
func owed(t *testing.T, w *world) (n int) {
	t.Helper()
	return count(t, w, `SELECT count(*) FROM debts`)
}

// count asks the database file for one number.
func count(t *testing.T, w *world, query string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: w.cfg.Database.Path}).EscapedPath()+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func soon(c *config.Config) { c.Retry.First, c.Retry.Most = 20*time.Millisecond, 50*time.Millisecond }

func later(c *config.Config) { c.Retry.First, c.Retry.Most = time.Hour, time.Hour }

// woken takes the answer of a poll that freshen wakes sooner or later.
func (w *world) woken(call *syncCall, replies <-chan reply, body string) string {
	w.t.Helper()
	if call.query != "" && !hurried(call.query) {
		await(w.t, call.gone, "waking the poll")
		call = w.next()
	}
	call.ok(body)
	return await(w.t, replies, "the woken answer").body
}

func hurried(query string) bool {
	values, _ := url.ParseQuery(query)
	return values.Get("timeout") == "0"
}

// What a client was told will be tried again is tried again, without anybody asking, and their waiting sync says so.
func TestADebtIsPaidWhenTheServerIsBack(t *testing.T) {
	w := running(t, soon)
	r := w.remote()
	bob := r.has("bob", "D")
	r.down()
	if got := w.refresh(aliceToken, bob); got.status != 502 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	call, replies := w.waiting(aliceToken, "s1")
	r.up()
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
	if n := owed(t, w); n != 0 {
		t.Errorf("%d debts are left", n)
	}
}

// A promise outlives the process, whether it ends in order or is killed: a copy of the files, taken while it runs, is
// what a killed one leaves.
func TestADebtOutlivesTheProcess(t *testing.T) {
	for name, killed := range map[string]bool{"closed": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			w := running(t, later)
			r := w.remote()
			bob := r.has("bob", "D")
			r.down()
			if got := w.refresh(aliceToken, bob); got.status != 502 {
				t.Fatalf("%d %s", got.status, got.body)
			}
			if killed {
				copied := filepath.Join(t.TempDir(), "freshen.db")
				for _, suffix := range []string{"", "-wal"} {
					data, err := os.ReadFile(w.cfg.Database.Path + suffix)
					if err != nil {
						t.Fatal(err)
					}
					w.write(copied+suffix, string(data))
				}
				w.stop()
				w.cfg.Database.Path = copied
			} else {
				w.stop()
			}
			r.up()
			w.start()
			if n := owed(t, w); n != 1 {
				t.Fatalf("%d debts are owed after the start, want 1", n)
			}
			call, replies := w.waiting(aliceToken, "s1")
			// Any success of the destination makes all of its debts due.
			w.refreshed(carolToken, r.has("other", "D"))
			wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
		})
	}
}

// A claim that a killed process held must not keep its debt for minutes.
func TestAClaimOfAKilledProcessIsVoid(t *testing.T) {
	w := running(t, soon)
	r := w.remote()
	bob := r.has("bob", "D")
	r.down()
	w.refresh(aliceToken, bob)
	w.stop()
	spoilDatabase(t, w, fmt.Sprintf(`UPDATE debts SET lease = 'gone', due_at = %d`, time.Now().Add(time.Hour).UnixMilli()))
	spoilDatabase(t, w, fmt.Sprintf(`UPDATE destinations SET due_at = %d`, time.Now().Add(time.Hour).UnixMilli()))
	r.up()
	w.start()
	call, replies := w.waiting(aliceToken, "s1")
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), bob)
}

// A server that the administrator has come to deny is owed nothing.
func TestADeniedServersDebtsAreDropped(t *testing.T) {
	w := running(t, later)
	r := w.remote()
	r.down()
	w.refresh(aliceToken, r.user("bob"))
	w.refresh(aliceToken, r.user("eve"))
	w.stop()
	w.cfg.Federation.DenyServers = []string{"127.0.0.1"}
	w.start()
	if n := owed(t, w); n != 0 {
		t.Errorf("%d debts are owed to a denied server", n)
	}
}

// A server that comes back with much owed to it is asked four at a time; while it fails, one at a time.
func TestRetriesAreGentle(t *testing.T) {
	w := running(t, later)
	r := w.remote()
	const n = 20
	r.down()
	for i := range n {
		w.refresh(aliceToken, r.has(fmt.Sprintf("u%d", i), "D"))
	}
	if got := owed(t, w); got != n {
		t.Fatalf("%d debts, want %d", got, n)
	}
	var now, most atomic.Int64
	four := make(chan struct{})
	var once sync.Once
	r.serve(http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
		if running := now.Add(1); running > most.Load() {
			most.Store(running)
		}
		defer now.Add(-1)
		if rq.URL.Path != "/_matrix/federation/v1/user/devices/"+string(r.user("first")) {
			if now.Load() >= 4 {
				once.Do(func() { close(four) })
			}
			select {
			case <-four:
			case <-rq.Context().Done():
			}
		}
		r.hs.ServeHTTP(rw, rq)
	}))
	call, replies := w.waiting(aliceToken, "s1")
	w.refreshed(carolToken, r.has("first", "D"))
	body := w.woken(call, replies, `{"next_batch":"s2"}`)
	heard := map[string]bool{}
	for i := 2; ; i++ {
		for _, user := range changedIn(t, body) {
			heard[user] = true
		}
		if len(heard) >= n {
			break
		}
		call, replies = w.waiting(aliceToken, fmt.Sprintf("s%d", i))
		body = w.woken(call, replies, fmt.Sprintf(`{"next_batch":"s%d"}`, i+1))
	}
	if most.Load() > 4 {
		t.Errorf("%d requests at once, want at most 4", most.Load())
	}
	if got := owed(t, w); got != 0 {
		t.Errorf("%d debts are left", got)
	}
}

// A user whose server answers about them with an error holds back nobody else there.
func TestOneUsersFailureHoldsBackNobodyElse(t *testing.T) {
	w := running(t, soon)
	r := w.remote()
	bad, good := r.user("bad"), r.has("good", "D")
	r.down()
	w.refresh(aliceToken, bad)
	w.refresh(aliceToken, good)
	call, replies := w.waiting(aliceToken, "s1")
	r.serve(http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
		if rq.URL.Path == "/_matrix/federation/v1/user/devices/"+string(bad) {
			rw.WriteHeader(http.StatusNotFound)
			_, _ = rw.Write([]byte(`{"errcode":"M_NOT_FOUND","error":"no such user"}`))
			return
		}
		r.hs.ServeHTTP(rw, rq)
	}))
	wantChanged(t, w.woken(call, replies, `{"next_batch":"s2"}`), good)
	if n := owed(t, w); n != 1 {
		t.Errorf("%d debts are left, want the failing user's", n)
	}
}

// Within the cache's time the same answer comes at once and costs no request; who got a failure from it is owed too.
func TestTheShortLivedCache(t *testing.T) {
	w := running(t, soon, func(c *config.Config) { c.Cache.Success, c.Cache.Failure = time.Hour, time.Hour })
	r := w.remote()
	bob := r.has("bob", "D")
	w.refreshed(aliceToken, bob)
	call, replies := w.waiting(carolToken, "c1")
	w.refreshed(carolToken, bob)
	wantChanged(t, w.woken(call, replies, `{"next_batch":"c2"}`), bob)
	if n := r.asked.Load(); n != 1 {
		t.Errorf("%d requests, want 1: the second should come from the cache", n)
	}

	other := w.remote()
	eve := other.has("eve", "D")
	other.serve(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusTeapot) }))
	for _, token := range []string{aliceToken, carolToken} {
		if got := w.refresh(token, eve); got.status != 502 || got.json(t)[failureMember].(map[string]any)["status"] != 418.0 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	call, replies = w.waiting(carolToken, "c2")
	other.up()
	got := changedIn(t, w.woken(call, replies, `{"next_batch":"c3"}`))
	if len(got) != 1 || id.UserID(got[0]) != eve {
		t.Errorf("who was answered from the cache heard %q of the paid debt, want %s", got, eve)
	}
}
