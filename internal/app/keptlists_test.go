package app_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/federation/fedtest"
	"freshen/internal/store/storetest"
)

// life is a world with one kept list to be: the homeserver knows Bob's device OLD, his own server says NEW.
type life struct {
	*world
	r     *remote
	bob   id.UserID
	clock *steppedClock
}

func live(t *testing.T, edits ...func(*config.Config)) *life {
	t.Helper()
	l := &life{world: newWorld(t, append(edits, later)...), clock: new(steppedClock)}
	l.r = l.remote()
	l.bob = l.r.has("bob", "NEW")
	l.hs.SetRoom("!r:x", alice, carol, l.bob)
	l.homeserverSays(http.StatusOK, stale(l.bob))
	l.begin()
	return l
}

func (l *life) begin() {
	l.t.Helper()
	l.openWith(func(ctx context.Context) (*app.App, error) { return app.OpenAt(ctx, l.cfg, l.logger(), l.clock.now) })
}

// restart ends freshen in order and starts it so much later.
func (l *life) restart(after time.Duration) {
	l.t.Helper()
	l.stop()
	l.clock.seconds.Add(int64(after / time.Second))
	l.begin()
}

// shows checks which of Bob's devices a client sees.
func (l *life) shows(when string, want ...string) {
	l.t.Helper()
	got := slices.Sorted(maps.Keys(devicesIn(l.t, l.query(aliceToken, ask(l.bob)), l.bob)))
	if !slices.Equal(got, want) {
		l.t.Errorf("%s, a client sees Bob's devices %v, want %v", when, got, want)
	}
}

// asks checks how often Bob's server is asked meanwhile.
func (l *life) asks(want int64, do func()) {
	l.t.Helper()
	before := l.r.asked.Load()
	do()
	if got := l.r.asked.Load() - before; got != want {
		l.t.Errorf("his server was asked %d times, want %d", got, want)
	}
}

// refreshedFor is refreshed for a user of whom it then stands in the database that somebody shares a room with them.
func (l *life) refreshedFor(user id.UserID) {
	l.t.Helper()
	l.refreshed(aliceToken, user)
	l.eventually("finding out who shares a room with "+string(user), func() bool {
		return count(l.t, l.world, fmt.Sprintf(`SELECT count(*) FROM kept_lists WHERE shared = 1 AND user_id = '%s'`, user)) == 1
	})
}

// announced is a /sync in which the homeserver itself names Bob.
func (l *life) announced() {
	l.t.Helper()
	l.exchange(carolToken, "since=s4&timeout=0", fmt.Sprintf(`{"next_batch":"s5","device_lists":{"changed":[%q]}}`, l.bob))
}

// arrows are those of the life of a kept list as docs/architecture.md draws it.
var arrows = map[string]func(t *testing.T){
	"kept": func(t *testing.T) {
		l := live(t)
		l.shows("before the refresh", "OLD")
		l.refreshed(aliceToken, l.bob)
		l.asks(0, func() { l.shows("after it", "NEW") })
		l.restart(0)
		l.asks(0, func() { l.shows("after a restart", "NEW") })
	},
	"hashed": func(t *testing.T) {
		l := live(t)
		l.hs.SetRooms(nil)
		l.r.hs.SetList(l.bob, fedtest.NewPerson(l.bob).List(200, 1))
		l.refreshed(aliceToken, l.bob)
		l.shows("with a long list of a stranger", "OLD")
		l.hs.SetRoom("!r:x", alice, l.bob)
		l.refreshed(aliceToken, l.bob)
		if n := len(devicesIn(t, l.query(aliceToken, ask(l.bob)), l.bob)); n != 200 {
			t.Errorf("of a contact with 200 devices, %d are served", n)
		}
	},
	"replaced": func(t *testing.T) {
		l := live(t)
		l.refreshed(aliceToken, l.bob)
		l.r.has("bob", "NEWER")
		l.refreshed(carolToken, l.bob)
		l.asks(0, func() { l.shows("after another refresh", "NEWER") })
	},
	"announced": func(t *testing.T) {
		l := live(t)
		changed := fmt.Sprintf(`"changed":[%q]`, l.bob)
		sliding := fmt.Sprintf(`{"pos":"p2","extensions":{"e2ee":{"device_lists":{%s}}}}`, changed)
		for _, c := range []struct{ name, method, path, body, answer string }{
			{"sync", http.MethodGet, "/_matrix/client/r0/sync?since=s1", "", `{"next_batch":"s2","device_lists":{` + changed + `}}`},
			{"sliding sync", http.MethodPost, slidingPath + "?pos=p1", `{"extensions":{"e2ee":{"enabled":true}}}`, sliding},
			{"sliding sync, v4", http.MethodPost, slidingPathV4, `{"pos":"p1","extensions":{"e2ee":{"enabled":true}}}`, sliding},
			{"keys/changes", http.MethodGet, "/_matrix/client/v3/keys/changes?from=s1&to=s2", "", `{` + changed + `,"left":[]}`},
		} {
			l.refreshed(aliceToken, l.bob)
			path, _, _ := strings.Cut(c.path, "?")
			l.hs.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.answer) })
			if got := l.do(t.Context(), c.method, c.path, carolToken, strings.NewReader(c.body)); got.status != http.StatusOK || !strings.Contains(got.body, string(l.bob)) {
				t.Fatalf("%s: %d %s", c.name, got.status, got.body)
			}
			l.asks(1, func() { l.shows("after the homeserver named Bob in "+c.name, "NEW") })
		}
	},
	"announced meanwhile": func(t *testing.T) {
		l := live(t)
		asked, answers := l.r.holds()
		done := make(chan reply, 1)
		go func() { done <- l.refresh(aliceToken, l.bob) }()
		await(t, asked, "the fetch")
		l.announced()
		close(answers)
		if got := await(t, done, "the refresh"); got.status != http.StatusAccepted {
			t.Fatalf("%d %s", got.status, got.body)
		}
		l.r.up()
		l.r.has("bob", "NEWER")
		l.asks(1, func() { l.shows("after the homeserver named Bob during the fetch", "NEWER") })
	},
	"unwatched": func(t *testing.T) {
		server := storetest.StartPostgres(t, storetest.Options{})
		l := live(t, over(t, server))
		l.refreshed(aliceToken, l.bob)
		l.stop()
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		l.begin()
		l.announced() // nobody can record that
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.becomes(http.StatusOK)
		l.asks(1, func() { l.shows("when the database is back", "NEW") })
	},
	"aged": func(t *testing.T) {
		l := live(t)
		l.refreshedFor(l.bob)
		l.restart(59 * time.Minute)
		l.asks(0, func() { l.shows("within the hour", "NEW") })
		l.restart(2 * time.Minute)
		l.asks(1, func() { l.shows("an hour later", "NEW") })
		l.asks(0, func() { l.shows("with the list fetched again", "NEW") })
	},
	"renewed": func(t *testing.T) {
		l := live(t)
		l.refreshedFor(l.bob)
		for _, doubt := range []func(){l.announced, func() { l.restart(2 * time.Hour) }} {
			doubt()
			l.asks(1, func() {
				l.shows("with the list in doubt", "NEW")
				l.shows("with the list fetched again", "NEW")
			})
		}
	},
	"passed over":    passedOver,
	"healed":         healed,
	"kept once more": keptOnceMore,
	"forgotten":      forgotten,
	"served":         served,
}

// holds makes the server take a request, say so, and answer when it is told to.
func (r *remote) holds() (asked <-chan struct{}, answers chan struct{}) {
	took := make(chan struct{}, 100)
	answers = make(chan struct{})
	r.serve(http.HandlerFunc(func(w http.ResponseWriter, rq *http.Request) {
		took <- struct{}{}
		select {
		case <-answers:
			r.hs.ServeHTTP(w, rq)
		case <-rq.Context().Done():
		}
	}))
	return took, answers
}

// A list in doubt that cannot be fetched again is not served, and what its server is like costs the clients next to
// nothing.
func passedOver(t *testing.T) {
	for name, makes := range map[string]func(*remote){
		"down":          (*remote).down,
		"hanging":       func(r *remote) { _, _ = r.holds() },
		"a 404":         func(r *remote) { r.serve(refusing(http.StatusNotFound, `{"errcode":"M_NOT_FOUND"}`)) },
		"a bad gateway": func(r *remote) { r.serve(refusing(http.StatusBadGateway, `<html>`)) },
		"no list":       func(r *remote) { r.serve(refusing(http.StatusOK, `{"user_id":"@eve:else"}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			// With the default of 10 s a failure answers for itself; what a hanging server costs is bounded by more.
			l := live(t, func(c *config.Config) { c.Cache.Failure = time.Minute })
			l.refreshed(aliceToken, l.bob)
			l.announced()
			makes(l.r)
			began := time.Now()
			asked := l.r.asked.Load()
			for range 8 {
				l.shows("with his server "+name, "OLD")
			}
			// A connection that breaks in use is tried once more.
			if n := l.r.asked.Load() - asked; n < 1 || n > 2 {
				t.Errorf("his server was asked %d times, want once", n)
			}
			if took := time.Since(began); took > 14*time.Second {
				t.Errorf("eight key queries took %v: each is held up by 2 s", took)
			}
			// What the homeserver says of its own failure stands, too.
			failing := fmt.Sprintf(`{"device_keys":{},"failures":{%q:{"status":503}}}`, l.r.name)
			l.homeserverSays(http.StatusOK, failing)
			if got := l.query(aliceToken, ask(l.bob)); got.body != failing {
				t.Errorf("the homeserver's answer became %s", got.body)
			}
		})
	}
}

func refusing(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// Once the homeserver says the same, its own answer is the fresh one, whatever else stands in it.
func healed(t *testing.T) {
	l := live(t)
	l.refreshed(aliceToken, l.bob)
	right := strings.NewReplacer("OLD", "NEW", `"signatures":{}`, `"unsigned":{"device_display_name":"?"}, "signatures": {}`).Replace(stale(l.bob))
	for _, wrong := range []string{
		strings.Replace(right, `"key of NEW"`, `"another key"`, 1),
		strings.Replace(right, `"failures":{}`, "", 1)[:len(right)-1] + fmt.Sprintf(`,"failures":{%q:{}}}`, l.r.name),
	} {
		l.homeserverSays(http.StatusOK, wrong)
		l.query(aliceToken, ask(l.bob))
		l.homeserverSays(http.StatusOK, stale(l.bob))
		l.shows("after an answer that was not right", "NEW")
	}
	l.homeserverSays(http.StatusOK, right)
	l.query(aliceToken, ask(l.bob, "NEW"))
	l.homeserverSays(http.StatusOK, stale(l.bob))
	l.shows("after a query that could not tell", "NEW")

	l.homeserverSays(http.StatusOK, right)
	l.query(aliceToken, ask(l.bob))
	l.homeserverSays(http.StatusOK, stale(l.bob))
	l.shows("after the homeserver was right", "OLD")
	l.restart(0)
	l.shows("after a restart", "OLD")
}

// A list that was retired, and one that was forgotten, is kept anew by the next refresh, although it is unchanged.
func keptOnceMore(t *testing.T) {
	l := live(t)
	l.refreshed(aliceToken, l.bob)
	l.homeserverSays(http.StatusOK, strings.ReplaceAll(stale(l.bob), "OLD", "NEW"))
	l.query(aliceToken, ask(l.bob))
	l.homeserverSays(http.StatusOK, stale(l.bob))
	l.shows("with the list retired", "OLD")
	l.refreshed(aliceToken, l.bob)
	l.shows("after the next refresh", "NEW")
}

const forgot = "forgot kept device lists"

// A stranger's list goes after an hour, anybody's after 90 days.
func forgotten(t *testing.T) {
	l := live(t)
	eve := l.r.has("eve", "E")
	l.refreshed(aliceToken, eve)
	l.refreshedFor(l.bob)
	l.restart(2 * time.Hour)
	l.logs(forgot)
	l.asks(0, func() { l.query(aliceToken, ask(eve)) })
	l.asks(1, func() { l.shows("two hours later", "NEW") })
	before := strings.Count(l.log.String(), forgot)
	l.restart(91 * 24 * time.Hour)
	l.eventually("forgetting", func() bool { return strings.Count(l.log.String(), forgot) > before })
	l.asks(0, func() { l.shows("a quarter of a year later", "OLD") })
}

// A list that is fetched again now and then stays.
func TestAListInUseIsNotForgotten(t *testing.T) {
	l := live(t)
	l.refreshedFor(l.bob)
	for range 2 {
		l.restart(60 * 24 * time.Hour)
		l.shows("two months later", "NEW")
	}
	if strings.Contains(l.log.String(), forgot) {
		t.Error("a list in use was forgotten")
	}
}

// Serving a list changes nothing about it.
func served(t *testing.T) {
	l := live(t)
	l.refreshed(aliceToken, l.bob)
	l.asks(0, func() {
		for range 3 {
			l.shows("fresh", "NEW")
			l.query(carolToken, ask(l.bob, "NEW"))
		}
	})
}

// What one instance learns of a list, all of them know.
func TestKeptListsOfTwoInstances(t *testing.T) {
	l := live(t, onPostgres(storetest.Shared(t).NewDatabase(t)))
	other := &life{world: l.another(), r: l.r, bob: l.bob, clock: l.clock}
	l.refreshed(aliceToken, l.bob)
	other.eventually("serving what the first has fetched", func() bool {
		return devicesIn(t, other.query(aliceToken, ask(l.bob)), l.bob)["NEW"] != nil
	})
	l.r.has("bob", "NEWER")
	other.refreshed(carolToken, l.bob)
	l.eventually("serving what the other has replaced", func() bool {
		return devicesIn(t, l.query(aliceToken, ask(l.bob)), l.bob)["NEWER"] != nil
	})

	asked := l.r.asked.Load()
	other.announced()
	l.eventually("doubting what the homeserver announced through the other", func() bool {
		l.query(aliceToken, ask(l.bob))
		return l.r.asked.Load() > asked
	})

	l.homeserverSays(http.StatusOK, strings.ReplaceAll(stale(l.bob), "OLD", "NEWER"))
	l.query(aliceToken, ask(l.bob))
	l.homeserverSays(http.StatusOK, stale(l.bob))
	other.eventually("passing over what the first has retired", func() bool {
		return devicesIn(t, other.query(aliceToken, ask(l.bob)), l.bob)["OLD"] != nil
	})
	l.shows("at the first", "OLD")
}

// eventually waits for what comes by itself, soon.
func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s did not come within %v", what, patience)
		}
	}
}

func TestKeptListArrow(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(arrows)) {
		t.Run(name, arrows[name])
	}
}

// The picture and the tests name the same arrows.
func TestEveryArrowOfAKeptListIsTested(t *testing.T) {
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Kept lists\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var drawn []string
	for _, row := range regexp.MustCompile(`(?m)^\| \*(.+?)\* \|`).FindAllStringSubmatch(section, -1) {
		drawn = append(drawn, row[1])
	}
	slices.Sort(drawn)
	if tested := slices.Sorted(maps.Keys(arrows)); !slices.Equal(drawn, tested) {
		t.Errorf("drawn are the arrows\n%q, tested are\n%q", drawn, tested)
	}
}
