package delivery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/delivery"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bob = id.UserID("@bob:b.org")

// ours is a homeserver by a script.
type ours struct {
	mu      sync.Mutex
	marking error
	does    func(homeserver.Delivery) homeserver.Outcome
	hangs   map[string]chan struct{} // by destination
	made    []string
	running int
	most    int
}

func (o *ours) Mark(context.Context, id.UserID) error { return o.marking }

func (o *ours) Deliver(ctx context.Context, d homeserver.Delivery) homeserver.Outcome {
	o.mu.Lock()
	devices := -1
	if d.List != nil {
		devices = len(d.List.Devices)
	}
	o.made = append(o.made, fmt.Sprintf("%s %d", d.Target, devices))
	o.running++
	o.most = max(o.most, o.running)
	hang, does := o.hangs[freshen.Destination(d.Target)], o.does
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.running--
		o.mu.Unlock()
	}()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
		}
	}
	return does(d)
}

// saw returns what was made since the last time, once all is quiet.
func (o *ours) saw() []string {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	made := o.made
	o.made = nil
	return made
}

func (o *ours) now(does homeserver.Hole) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.does = func(homeserver.Delivery) homeserver.Outcome {
		if does == homeserver.HoleNone {
			return homeserver.Outcome{}
		}
		return homeserver.Outcome{Hole: does, Sentence: "Its sentence on " + string(does) + "."}
	}
}

// bed is a desk over a real database, in a bubble whose clock the tests move by sleeping.
type bed struct {
	*ours
	t     *testing.T
	path  string
	store *store.Store
	desk  *delivery.Desk
	log   bytes.Buffer
	stop  func()
}

// within runs a test in such a bed.
func within(t *testing.T, test func(*testing.T, *bed)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "freshen.db")
	synctest.Test(t, func(t *testing.T) {
		b := &bed{ours: &ours{}, t: t, path: path}
		b.now(homeserver.HoleNone)
		b.open()
		defer func() { b.close() }()
		test(t, b)
	})
}

// open starts freshen, and close ends it.
func (b *bed) open() {
	b.t.Helper()
	var err error
	log := slog.New(slog.NewTextHandler(&b.log, nil))
	if b.store, err = store.Open(context.Background(), store.Config{Path: b.path, Log: log, PerDestination: limit.Rate{Every: time.Second, Burst: 20}}); err != nil {
		b.t.Fatal(err)
	}
	if err := b.store.ReleaseClaims(context.Background(), time.Now()); err != nil {
		b.t.Fatal(err)
	}
	b.desk = delivery.New(delivery.Config{Homeserver: b.ours, Store: b.store, GiveUpAfter: 30 * time.Minute, Log: log, Now: time.Now})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.desk.Run(ctx)
	}()
	b.stop = func() {
		cancel()
		<-ended
	}
}

func (b *bed) close() {
	b.stop()
	if err := b.store.Close(); err != nil {
		b.t.Error(err)
	}
}

func (b *bed) list(target id.UserID, devices int) *freshen.DeviceList {
	b.t.Helper()
	var parts []string
	for i := range devices {
		parts = append(parts, fmt.Sprintf(`{"device_id":"D%d","keys":{"n":%d}}`, i, i))
	}
	list, err := freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id":%q,"stream_id":1,"devices":[%s]}`, target, strings.Join(parts, ",")), target)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// keeps is what the engine does with a list that was fetched.
func (b *bed) keeps(target id.UserID, devices int) {
	b.t.Helper()
	list := b.list(target, devices)
	err := b.desk.Mark(b.t.Context(), list)
	if err == nil {
		token := fmt.Sprint(target, devices, time.Now())
		_, err = b.store.Begin(b.t.Context(), store.Fetch{Target: target, Token: token, Now: time.Now(), Lease: time.Minute})
		if err == nil {
			_, err = b.store.Keep(b.t.Context(), store.Fetched{List: list, At: time.Now(), Requesters: []id.UserID{"@alice:a.org"}, Token: token})
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.desk.Deliver(b.t.Context(), target)
}

func (b *bed) requireUndelivered(want ...string) {
	b.t.Helper()
	synctest.Wait()
	all, err := b.store.Undelivered(b.t.Context(), 100)
	var has []string
	for _, d := range all {
		has = append(has, fmt.Sprintf("%s %s", d.Target, d.Reason))
	}
	if err != nil || fmt.Sprint(has) != fmt.Sprint(want) {
		b.t.Errorf("undelivered are %q (%v), want %q", has, err, want)
	}
}

func (b *bed) requireSaw(want ...string) {
	b.t.Helper()
	if saw := b.saw(); fmt.Sprint(saw) != fmt.Sprint(want) {
		b.t.Errorf("the homeserver was told %q, want %q", saw, want)
	}
}

// A failure means that who was told that all is well hears nothing: at once, or after a crash between the promise and the
// telling, or after a time in which the homeserver did not fetch.
func TestWhatIsPromisedIsDelivered(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, b *bed) {
		b.keeps(bob, 1)
		b.requireSaw("@bob:b.org 1")
		b.requireUndelivered()
		time.Sleep(10 * time.Minute)
		b.requireSaw()

		// The process dies when it has promised, and has told nobody yet.
		if err := b.desk.Mark(t.Context(), b.list(bob, 1)); err != nil {
			t.Fatal(err)
		}
		b.close()
		b.open()
		b.requireSaw("@bob:b.org 1")

		// Of several instances, another one does it.
		if err := b.desk.Mark(t.Context(), b.list(bob, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		b.requireSaw()
		time.Sleep(15 * time.Second)
		b.requireSaw("@bob:b.org 1")

		b.now(homeserver.HoleNotFetched)
		b.keeps(bob, 2)
		b.requireSaw("@bob:b.org 2")
		b.requireUndelivered("@bob:b.org not_fetched")
		time.Sleep(time.Minute + 40*time.Second) // after 30 s, and a minute after that
		b.requireSaw("@bob:b.org 2", "@bob:b.org 2")
		b.close()
		b.now(homeserver.HoleNone)
		b.open()
		b.requireUndelivered("@bob:b.org not_fetched")
		time.Sleep(2 * time.Minute)
		b.requireSaw("@bob:b.org 2")
		b.requireUndelivered()
		if n := strings.Count(b.log.String(), "level=WARN"); n != 1 || !strings.Contains(b.log.String(), "could not be brought to before") {
			t.Errorf("the log should warn once, and say when all is well:\n%s", &b.log)
		}
	})
}

// A failure means that a promise is made that nothing stands behind.
func TestNothingIsPromisedThatCannotBeNoted(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, b *bed) {
		b.marking = errors.New("Synapse's database is away")
		if err := b.desk.Mark(t.Context(), b.list(bob, 1)); !errors.Is(err, b.marking) {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Minute)
		b.requireSaw()

		b.marking = nil
		b.close()
		err := b.desk.Mark(t.Context(), b.list(bob, 1))
		if told, ok := errors.AsType[*freshen.Error](err); !ok || told.Code != freshen.CodeDatabaseAway {
			t.Errorf("while freshen's own database is away: %v", err)
		}
		b.open()
	})
}

// A failure means that what the homeserver never announces is tried for ever, or forgotten before somebody reads of it, or
// shown when it is settled.
func TestHolesStand(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, b *bed) {
		b.now(homeserver.HoleNoDevices)
		b.keeps(bob, 0)
		b.requireSaw("@bob:b.org 0")
		time.Sleep(time.Hour)
		b.close()
		b.open()
		time.Sleep(5 * time.Minute)
		b.requireSaw()
		b.requireUndelivered("@bob:b.org no_devices")
		b.now(homeserver.HoleNone)
		b.keeps(bob, 1)
		b.requireSaw("@bob:b.org 1")
		b.requireUndelivered()

		// What the homeserver does not fetch for too long, is given up, and stays to be read.
		b.now(homeserver.HoleNotFetched)
		b.keeps(bob, 2)
		time.Sleep(time.Hour)
		if n := len(b.saw()); n != 7 { // at once, and 30 s, 1, 2, 4, 8, and 16 minutes after that, which is too late
			t.Errorf("it was told %d times", n)
		}
		time.Sleep(time.Hour)
		b.requireSaw()
		b.requireUndelivered("@bob:b.org not_fetched")
	})
}

// A failure means that a homeserver which was away for a moment hears of everything an hour later, or is asked in a storm
// while it is away.
func TestTheHomeserverIsAway(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, b *bed) {
		b.now(homeserver.HoleAway)
		for i := range 10 {
			b.keeps(id.UserID(fmt.Sprintf("@u:s%d.org", i)), 1)
		}
		time.Sleep(10 * time.Minute)
		if n := len(b.saw()); n > 10*(10*60/15+1) {
			t.Errorf("it was asked %d times in ten minutes", n)
		}
		b.now(homeserver.HoleNone)
		time.Sleep(time.Minute)
		if n := len(b.saw()); n != 10 {
			t.Errorf("%d of 10 are told when it is back", n)
		}
		b.requireUndelivered()
	})
}

// A failure means that one server, over which the homeserver is slow, holds up the news of all others, or the end of
// freshen.
func TestSlowDeliveriesHoldUpNobody(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, b *bed) {
		b.hangs = map[string]chan struct{}{"slow.org": make(chan struct{})}
		for i := range 40 {
			b.keeps(id.UserID(fmt.Sprintf("@u%d:slow.org", i)), 1)
		}
		if n := len(b.saw()); n != 1 {
			t.Errorf("%d of one server are made at once", n)
		}
		for i := range 40 {
			b.keeps(id.UserID(fmt.Sprintf("@u:s%d.org", i)), 1)
		}
		if n := len(b.saw()); n != 40 {
			t.Errorf("%d of 40 get past it", n)
		}
		// Where all are slow, they are bounded; and who stops waits for none of them.
		b.mu.Lock()
		for i := range 40 {
			b.hangs[fmt.Sprintf("t%d.org", i)] = make(chan struct{})
		}
		b.mu.Unlock()
		for i := range 40 {
			b.keeps(id.UserID(fmt.Sprintf("@u:t%d.org", i)), 1)
		}
		if b.saw(); b.most != 16 {
			t.Errorf("%d are made at once", b.most)
		}
		began := time.Now()
		b.close()
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v to stop", took)
		}
		b.hangs = nil
		b.open()
		time.Sleep(6 * time.Minute)
		if n := len(b.saw()); n != 80 {
			t.Errorf("%d of the 80 that were not made are made after a restart", n)
		}
	})
}
