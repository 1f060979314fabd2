package rooms_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"
	"freshen/internal/rooms"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	alice, carol = id.UserID("@alice:a.org"), id.UserID("@carol:a.org")
	bob, dave    = id.UserID("@bob:b.org"), id.UserID("@dave:b.org")
	one, two     = id.RoomID("!one:a.org"), id.RoomID("!two:b.org")
)

type world struct {
	*rooms.Rooms
	hs  *hstest.Server
	now atomic.Int64
}

func newWorld(t *testing.T, mutual hstest.Mutual) *world {
	t.Helper()
	w := &world{hs: hstest.New(t)}
	w.now.Store(1_700_000_000_000)
	w.hs.SetMutual(mutual, 1)
	w.hs.AddUser(string(alice), alice, "PHONE")
	w.hs.AddUser(string(carol), carol, "PHONE")
	hc := homeserver.New(w.hs.URL(), nil)
	t.Cleanup(hc.CloseIdleConnections)
	w.Rooms = rooms.New(hc, "a.org", w.time, nil)
	return w
}

func (w *world) time() time.Time         { return time.UnixMilli(w.now.Load()) }
func (w *world) advance(d time.Duration) { w.now.Add(d.Milliseconds()) }

func (w *world) resolve(t *testing.T, user id.UserID, targets ...id.UserID) error {
	t.Helper()
	return w.Resolve(t.Context(), user, credentials(user), targets, w.time())
}

func (w *world) expect(t *testing.T, user, target id.UserID, shares, known bool) {
	t.Helper()
	if s, k := w.Known(user, target); s != shares || k != known {
		t.Errorf("%s and %s: shares %v, known %v; not %v, %v", user, target, s, k, shares, known)
	}
}

func credentials(user id.UserID) homeserver.Credentials {
	return homeserver.CredentialsOf(&http.Request{URL: &url.URL{}, Header: http.Header{"Authorization": {"Bearer " + string(user)}}})
}

func refusing(status int, errcode string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { hstest.WriteError(w, status, errcode, "no") })
}

// On every kind of homeserver the same users hear of the same targets.
func TestWhoSharesARoom(t *testing.T) {
	for name, mutual := range map[string]hstest.Mutual{"stable": hstest.MutualStable, "unstable": hstest.MutualUnstable, "none": hstest.MutualNone} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mutual)
			w.hs.SetRooms(map[id.RoomID][]id.UserID{one: {alice, carol, bob}, two: {alice, bob}, "!three:b.org": {carol, dave}})
			w.expect(t, alice, bob, false, false)
			if err := w.resolve(t, alice, bob, dave); err != nil {
				t.Fatal(err)
			}
			w.expect(t, alice, bob, true, true)
			w.expect(t, alice, dave, false, true)
			locals, err := w.Neighbours(t.Context(), alice, credentials(alice), bob)
			if err != nil || !slices.Equal(locals, []id.UserID{alice, carol}) {
				t.Errorf("the local users in rooms with bob: %v (%v)", locals, err)
			}
			w.expect(t, carol, bob, true, true)
			w.expect(t, carol, dave, false, false)
			locals, err = w.Neighbours(t.Context(), alice, credentials(alice), dave)
			if err != nil || len(locals) != 0 {
				t.Errorf("alice sees carol's room with dave: %v (%v)", locals, err)
			}
			w.expect(t, alice, dave, false, true)
		})
	}
}

// An answer counts for minutes: a user who joined must not be left out for hours, nor the homeserver be asked each time.
func TestAnswersExpire(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	w.hs.SetRoom(one, alice, bob)
	for range 2 {
		if err := w.resolve(t, alice, bob, dave); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.hs.Calls(hstest.PathJoinedMembers(one)); n != 1 {
		t.Errorf("asked for the members %d times within minutes", n)
	}
	w.advance(5*time.Minute - time.Second)
	w.expect(t, alice, bob, true, true)
	w.advance(time.Second)
	w.expect(t, alice, bob, false, false)
	w.hs.SetRoom(one, alice, dave)
	if err := w.resolve(t, alice, bob, dave); err != nil {
		t.Fatal(err)
	}
	w.expect(t, alice, bob, false, true)
	w.expect(t, alice, dave, true, true)
}

// A "no" from before what happened says nothing about who has joined since; a "yes" is good enough.
func TestANoCountsOnlyForWhatWasBefore(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	w.hs.SetRoom(one, alice, bob)
	w.hs.SetRoom(two, carol, dave)
	if err := w.resolve(t, alice, bob, dave); err != nil {
		t.Fatal(err)
	}
	asked := w.time()
	w.advance(time.Second)
	for target, want := range map[id.UserID][2]bool{bob: {true, true}, dave: {false, false}} {
		if shares, known := w.KnownSince(alice, target, w.time()); shares != want[0] || known != want[1] {
			t.Errorf("%s, a second later: shares %v, known %v", target, shares, known)
		}
		if _, known := w.KnownSince(alice, target, asked); !known {
			t.Errorf("%s is not known as of the question", target)
		}
	}
	w.hs.SetRoom(two, alice, carol, dave)
	if err := w.resolve(t, alice, dave); err != nil {
		t.Fatal(err)
	}
	w.expect(t, alice, dave, true, true)
}

// Who joins a room and asks for a refresh at once is not refused from memory.
func TestSharesAsksAgainAfterANo(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	ask := func(want bool) {
		t.Helper()
		if shares, err := w.Shares(t.Context(), alice, credentials(alice), bob); shares != want || err != nil {
			t.Errorf("shares %v, not %v (%v)", shares, want, err)
		}
	}
	ask(false)
	w.hs.SetRoom(one, alice, bob)
	ask(true)
	ask(true)
	if n := w.hs.Calls(hstest.PathMutualRooms); n != 2 {
		t.Errorf("asked %d times", n)
	}
	w.hs.Close()
	ask(true)
	if _, err := w.Shares(t.Context(), alice, credentials(alice), dave); err == nil {
		t.Error("a homeserver that is down says no")
	}
}

// An error is no answer: it must neither count as "no", nor keep the next question from being asked.
func TestErrorsAreNotRemembered(t *testing.T) {
	for name, path := range map[string]string{"mutual_rooms": hstest.PathMutualRooms, "joined_rooms": hstest.PathJoinedRooms, "joined_members": hstest.PathJoinedMembers(one)} {
		for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusUnauthorized} {
			t.Run(fmt.Sprint(name, " ", status), func(t *testing.T) {
				w := newWorld(t, hstest.MutualNone)
				if path == hstest.PathMutualRooms {
					w.hs.SetMutual(hstest.MutualStable, 1)
				}
				w.hs.SetRoom(one, alice, bob)
				w.hs.Handle(path, refusing(status, "M_UNKNOWN"))
				err := w.resolve(t, alice, bob)
				if path == hstest.PathMutualRooms && status == http.StatusUnauthorized {
					if err != nil {
						t.Errorf("refused mutual_rooms are no reason not to look at the rooms: %v", err)
					}
					return
				}
				if err == nil {
					t.Fatal("no error")
				}
				w.expect(t, alice, bob, false, false)
				w.hs.Handle(path, nil)
				if err := w.resolve(t, alice, bob); err != nil {
					t.Fatal(err)
				}
				w.expect(t, alice, bob, true, true)
			})
		}
	}
}

// mutual_rooms that a homeserver refuses (403) or lacks (M_UNRECOGNIZED) is not the end: the rooms' members tell too.
func TestWithoutMutualRooms(t *testing.T) {
	for _, h := range []http.Handler{refusing(http.StatusForbidden, "M_FORBIDDEN"), refusing(http.StatusNotFound, "M_UNRECOGNIZED")} {
		w := newWorld(t, hstest.MutualStable)
		w.hs.SetRoom(one, alice, bob)
		w.hs.Handle(hstest.PathMutualRooms, h)
		w.hs.Handle(hstest.PathMutualRoomsUnstable, h)
		if err := w.resolve(t, alice, bob, dave); err != nil {
			t.Fatal(err)
		}
		w.expect(t, alice, bob, true, true)
		w.expect(t, alice, dave, false, true)
	}
}

// A room that the user has just left must not keep all their other rooms from being looked at.
func TestARoomThatIsForbidden(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	w.hs.SetRoom(one, alice, bob)
	w.hs.SetRoom(two, alice, carol, dave)
	w.hs.Handle(hstest.PathJoinedMembers(one), refusing(http.StatusForbidden, "M_FORBIDDEN"))
	if err := w.resolve(t, alice, bob, dave); err != nil {
		t.Fatal(err)
	}
	w.expect(t, alice, bob, false, true)
	w.expect(t, alice, dave, true, true)
	// It is forbidden to her, not to others.
	w.hs.Handle(hstest.PathJoinedMembers(one), nil)
	w.hs.SetRoom(one, carol, bob)
	if err := w.resolve(t, carol, bob); err != nil {
		t.Fatal(err)
	}
	w.expect(t, carol, bob, true, true)
}

// A room whose members the homeserver cannot give settles no "no", but what other rooms say is good.
func TestARoomThatFails(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	w.hs.SetRoom(one, alice, bob)
	w.hs.SetRoom(two, alice, dave)
	if err := w.resolve(t, alice, dave); err != nil {
		t.Fatal(err)
	}
	w.advance(time.Second)
	w.hs.SetRoom("!three:b.org", alice, "@frank:b.org")
	w.hs.Handle(hstest.PathJoinedMembers("!three:b.org"), refusing(http.StatusInternalServerError, "M_UNKNOWN"))
	if err := w.resolve(t, alice, bob, "@frank:b.org"); err == nil {
		t.Fatal("no error")
	}
	w.expect(t, alice, bob, true, true)
	w.expect(t, alice, "@frank:b.org", false, false)
	locals, err := w.Neighbours(t.Context(), alice, credentials(alice), bob)
	if err == nil || !slices.Equal(locals, []id.UserID{alice}) {
		t.Errorf("locals %v, err %v", locals, err)
	}
}

// However many ask, the homeserver has four questions at a time: we must not be the load that takes it down.
func TestFourQuestionsAtATime(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	var now, most atomic.Int32
	var gate sync.WaitGroup
	gate.Add(4)
	w.hs.HandleFunc(hstest.PathMutualRooms, func(rw http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n <= 4 && r.URL.Query().Get("user_id") < "@u04" {
			gate.Done()
			gate.Wait() // the first four are there at once
		}
		now.Add(-1)
		hstest.WriteJSON(rw, http.StatusOK, map[string]any{"joined": []id.RoomID{one}})
	})
	var wg sync.WaitGroup
	ask := func(i int) {
		target := id.UserID(fmt.Sprintf("@u%02d:b.org", i))
		wg.Go(func() {
			if err := w.resolve(t, alice, target); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 4 {
		ask(i)
	}
	gate.Wait()
	for i := 4; i < 40; i++ {
		ask(i)
	}
	wg.Wait()
	if most.Load() != 4 {
		t.Errorf("%d questions at a time", most.Load())
	}
}

// Whoever gives up waiting gets their own error at once, and takes no turn from others.
func TestGivingUp(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	arrived := make(chan struct{}, 10)
	w.hs.HandleFunc(hstest.PathMutualRooms, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 6)
	for i := range 6 {
		go func() {
			errs <- w.Resolve(ctx, alice, credentials(alice), []id.UserID{id.UserID(fmt.Sprintf("@u%d:b.org", i))}, w.time())
		}()
	}
	for range 4 {
		<-arrived
	}
	cancel()
	for range 6 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	}
	w.hs.Handle(hstest.PathMutualRooms, nil)
	if err := w.resolve(t, alice, bob); err != nil {
		t.Errorf("after they gave up: %v", err)
	}
}

// A room of 50,000 costs one question for everybody, and its local members are named.
func TestABigRoom(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	members := []id.UserID{alice, carol, bob}
	for i := range 50_000 {
		members = append(members, id.UserID(fmt.Sprintf("@u%05d:c.org", i)))
	}
	w.hs.SetRoom(one, members...)
	targets := append(slices.Clone(members[3:1003]), dave)
	if err := w.resolve(t, alice, targets...); err != nil {
		t.Fatal(err)
	}
	for _, target := range targets[:1000] {
		w.expect(t, alice, target, true, true)
	}
	w.expect(t, alice, dave, false, true)
	if err := w.resolve(t, carol, targets...); err != nil {
		t.Fatal(err)
	}
	w.expect(t, carol, targets[0], true, true)
	locals, err := w.Neighbours(t.Context(), alice, credentials(alice), bob)
	if err != nil || !slices.Equal(locals, []id.UserID{alice, carol}) {
		t.Errorf("locals: %v (%v)", locals, err)
	}
	if n := w.hs.Calls(hstest.PathJoinedMembers(one)); n != 1 {
		t.Errorf("its members were asked for %d times", n)
	}
}
