package announce_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/announce"
	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

// TestMain has the model try the same sequences each time, so that a run says something about the change it is for. More
// are tried by -rapid.seed=0 (any) -rapid.checks=2000.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.seed", "1"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m) // parses the command line, which goes before
}

const (
	alice, carol, erin = id.UserID("@alice:a.org"), id.UserID("@carol:a.org"), id.UserID("@erin:a.org")
	bob, dave          = id.UserID("@bob:b.org"), id.UserID("@dave:b.org")
	room, room2        = id.RoomID("!one:a.org"), id.RoomID("!two:b.org")
)

// clock moves only when it is told to.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(1_700_000_000_000_000_000)
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

// world is an announcer over a real database and a homeserver over real HTTP.
type world struct {
	t     testing.TB
	hs    *hstest.Server
	hc    *homeserver.Client
	clock *clock
	path  string

	store     *store.Store
	announcer *announce.Announcer
	announced []store.Announcement
	changes   int
	stop      func()
}

func newWorld(t testing.TB, mutual hstest.Mutual) *world {
	t.Helper()
	w := &world{t: t, hs: hstest.New(t), clock: newClock(), path: filepath.Join(t.TempDir(), "freshen.db")}
	w.hc = homeserver.New(w.hs.URL(), nil)
	t.Cleanup(w.hc.CloseIdleConnections)
	w.hs.SetMutual(mutual, 2)
	for _, user := range []id.UserID{alice, carol, erin} {
		w.hs.AddUser(string(user), user, "PHONE")
	}
	w.open()
	t.Cleanup(func() { w.close(true) })
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.store, err = store.Open(context.Background(), store.Config{Path: w.path, Log: slog.New(slog.DiscardHandler)}); err != nil {
		w.t.Fatal(err)
	}
	w.announcer, err = announce.Open(context.Background(), w.store, rooms.New(w.hc, "a.org", w.clock.now, nil), slog.New(slog.DiscardHandler), w.clock.now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store.OnCommit(func(c store.Committed) {
		w.announced = append(w.announced, c.Announced...) // read after the call that committed
		w.announcer.Announced(c.Announced)
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.announcer.Work(ctx) })
	w.stop = func() { cancel(); wg.Wait() }
}

// close stops as in order, with what was acknowledged saved, or as a crash does.
func (w *world) close(save bool) {
	w.t.Helper()
	w.stop()
	if save {
		w.announcer.Flush(context.Background())
	}
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

func (w *world) restart(save bool) {
	w.close(save)
	w.open()
}

// announce lets a changed list of target's come, as a request of these users.
func (w *world) announce(target id.UserID, requesters ...id.UserID) {
	w.t.Helper()
	w.changes++
	w.keep(target, fmt.Sprint("key", w.changes), requesters...)
}

// announceAtOnce is announce while something is being found out that takes its time.
func (w *world) announceAtOnce(target id.UserID, requesters ...id.UserID) {
	w.t.Helper()
	w.changes++
	w.commit(target, fmt.Sprint("key", w.changes), requesters...)
}

func (w *world) keep(target id.UserID, key string, requesters ...id.UserID) {
	w.t.Helper()
	w.commit(target, key, requesters...)
	w.announcer.Settle()
}

func (w *world) commit(target id.UserID, key string, requesters ...id.UserID) {
	w.t.Helper()
	list, err := freshen.ParseDeviceList(fmt.Appendf(nil,
		`{"user_id":%q,"stream_id":1,"devices":[{"device_id":"D","keys":{"device_id":"D","user_id":%q,"keys":{"ed25519:D":%q}}}]}`, target, target, key), target)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Keep(context.Background(), store.Fetched{List: list, At: w.clock.now(), Requesters: requesters}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) announceTo(target id.UserID, users ...id.UserID) {
	w.t.Helper()
	if err := w.store.AnnounceTo(context.Background(), target, users, w.clock.now()); err != nil {
		w.t.Fatal(err)
	}
	w.announcer.Settle()
}

// credentials are those of a request with user's token.
func credentials(user id.UserID) homeserver.Credentials {
	r := &http.Request{Header: http.Header{"Authorization": {"Bearer " + string(user)}}}
	r.URL = hsURL
	return homeserver.CredentialsOf(r)
}

// device is a client: it knows its token, and what it was told.
type device struct {
	w     *world
	who   freshen.Requester
	token string
	next  int
}

func (w *world) device(user id.UserID, name id.DeviceID) *device {
	return &device{w: w, who: freshen.Requester{UserID: user, DeviceID: name}, token: "s0"}
}

type poll struct {
	*announce.Poll
	woken atomic.Int32
}

// begin is a poll that has come, with all questions that it raises answered.
func (d *device) begin(since string) *poll {
	p := d.beginAtOnce(since)
	d.w.announcer.Settle()
	return p
}

func (d *device) beginAtOnce(since string) *poll {
	p := &poll{}
	p.Poll = d.w.announcer.Begin(d.who, credentials(d.who.UserID), since, func() { p.woken.Add(1) })
	return p
}

// answer lets the poll's response go out with nextBatch; it returns whom it names.
func (p *poll) answer(nextBatch string) string {
	entries := p.Owed()
	p.Delivered(entries, nextBatch)
	p.End()
	return names(entries)
}

// sync is one whole poll whose response arrives and moves the token.
func (d *device) sync() string {
	p := d.begin(d.token)
	d.next++
	d.token = "s" + strconv.Itoa(d.next)
	return p.answer(d.token)
}

func names(entries []announce.Entry) string {
	var targets []string
	for _, e := range entries {
		targets = append(targets, string(e.Target))
	}
	slices.Sort(targets)
	return strings.Join(targets, " ")
}

func (w *world) expect(got, want, why string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: the response names %q, not %q", why, got, want)
	}
}

// members are what the homeserver's rooms hold.
func (w *world) rooms(members map[id.RoomID][]id.UserID) {
	w.hs.SetRooms(maps.Clone(members))
}

// stuck makes a route of the homeserver's hang until the release function is called.
func (w *world) stuck(path string) (asked <-chan struct{}, release func()) {
	arrived, open := make(chan struct{}, 100), make(chan struct{})
	w.hs.HandleFunc(path, func(rw http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-open:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(rw, `{"joined":["!one:a.org"]}`)
	})
	return arrived, sync.OnceFunc(func() { close(open) })
}
