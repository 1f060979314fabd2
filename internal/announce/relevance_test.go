package announce_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/homeserver/hstest"
	"freshen/internal/store"
)

// A device never seen before may have lost anything: it is owed all that concerns its user.
func TestANewDeviceIsOwedEverythingRelevant(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	members := []id.UserID{alice}
	var want []string
	for i := range 30 { // more than are asked about one by one
		target := id.UserID(fmt.Sprintf("@u%02d:b.org", i))
		if i%2 == 0 {
			members = append(members, target)
			want = append(want, string(target))
		}
		w.announce(target)
	}
	w.rooms(map[id.RoomID][]id.UserID{room: members, room2: {"@u01:b.org", carol}})
	d := w.device(alice, "NEW")
	w.expect(d.sync(), strings.Join(want, " "), "a new device")
	if n := w.hs.Calls(hstest.PathJoinedRooms); n != 1 {
		t.Errorf("for 30 targets the user's rooms were asked for %d times", n)
	}
	w.expect(d.sync(), "", "acknowledged")
	if floor := w.announcer.Floor(d.who); floor != w.announcer.Head() {
		t.Errorf("the floor is %d, not the head", floor)
	}
	if n := w.announcer.Held(d.who); n != 0 {
		t.Errorf("%d things are still held of a device that needs nothing", n)
	}
}

// Each way to learn who shares a room, on each kind of homeserver: who does hears, who does not never does.
func TestRelevance(t *testing.T) {
	for name, mutual := range map[string]hstest.Mutual{"stable": hstest.MutualStable, "unstable": hstest.MutualUnstable, "none": hstest.MutualNone} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mutual)
			w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob}, room2: {carol, dave}})
			a, c := w.device(alice, "PHONE"), w.device(carol, "PHONE")
			pa, pc := a.begin("s0"), c.begin("s0")
			w.announce(bob)
			if pa.woken.Load() != 1 || pc.woken.Load() != 0 {
				t.Errorf("woken: alice %d, carol %d", pa.woken.Load(), pc.woken.Load())
			}
			w.expect(pa.answer("s1"), string(bob), "who shares a room")
			w.expect(pc.answer("s1"), "", "who shares none")
			if floor := w.announcer.Floor(c.who); floor != w.announcer.Head() {
				t.Errorf("what does not concern a device holds its floor at %d", floor)
			}
		})
	}
}

// A "no" from before the announcement says nothing about who joined in between.
func TestWhoJoinedSinceTheLastAnnouncementHears(t *testing.T) {
	for name, mutual := range map[string]hstest.Mutual{"mutual rooms": hstest.MutualStable, "members": hstest.MutualNone} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mutual)
			w.rooms(map[id.RoomID][]id.UserID{room: {carol, bob}})
			a := w.device(alice, "PHONE")
			p := a.begin("s0")
			w.announce(bob)
			w.expect(p.answer("s0"), "", "before she joins")
			w.clock.advance(time.Minute)
			together(w)
			p = a.begin("s0")
			w.announce(bob)
			if p.woken.Load() != 1 {
				t.Error("not woken")
			}
			w.expect(p.answer("s1"), string(bob), "after she joined")
		})
	}
}

// An answer of the homeserver's that is awaited delays no response; once it is there, the poll is woken.
func TestUnknownRelevanceDelaysNothing(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	asked, release := w.stuck(hstest.PathMutualRooms)
	defer release()
	d := w.device(alice, "PHONE")
	p := d.begin("s0")
	w.announceUnsettled(bob)
	<-asked
	w.expect(p.answer("s1"), "", "while it is not known")
	if floor := w.announcer.Floor(d.who); floor >= w.announcer.Head() {
		t.Error("the floor was raised over an announcement that may concern the user")
	}
	second := d.beginAtOnce("s1")
	release()
	w.announcer.Settle()
	if second.woken.Load() != 1 {
		t.Error("the answer woke nobody")
	}
	w.expect(second.answer("s2"), string(bob), "once it is known")
}

// announceUnsettled tells the announcer alone, and does not wait for the questions that this raises.
func (w *world) announceUnsettled(target id.UserID) {
	w.t.Helper()
	w.announcer.Announced([]store.Announcement{{Target: target, Position: w.announcer.Head() + 100, At: w.clock.now()}})
}

// A homeserver that is away or limits us is asked again with the next poll, and not without end in between.
func TestAFailingHomeserverIsAskedAgainAtTheNextPoll(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusBadGateway} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			w := newWorld(t, hstest.MutualStable)
			together(w)
			w.hs.Handle(hstest.PathMutualRooms, failing(status))
			d := w.device(alice, "PHONE")
			p := d.begin("s0")
			w.announce(bob)
			if n := w.hs.Calls(hstest.PathMutualRooms); n != 1 {
				t.Errorf("asked %d times", n)
			}
			w.expect(p.answer("s1"), "", "while the homeserver fails")
			w.hs.Handle(hstest.PathMutualRooms, nil)
			p = d.begin("s1")
			if p.woken.Load() != 1 {
				t.Error("not woken once the homeserver answered")
			}
			w.expect(p.answer("s2"), string(bob), "once it answers")
		})
	}
}

// A target that the homeserver chokes on must hold up no other.
func TestOneTargetThatCannotBeToldAbout(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob, dave}})
	w.hs.HandleFunc(hstest.PathMutualRooms, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("user_id") == string(bob) {
			hstest.WriteError(rw, http.StatusInternalServerError, "M_UNKNOWN", "no")
			return
		}
		hstest.WriteJSON(rw, http.StatusOK, map[string]any{"joined": []id.RoomID{room}})
	})
	d := w.device(alice, "PHONE")
	w.announce(bob)
	w.announce(dave)
	p := d.begin("s0")
	if p.woken.Load() != 1 {
		t.Error("not woken for the one that is known")
	}
	w.expect(p.answer("s1"), string(dave), "with one unknown")
	w.expect(d.begin("s1").answer("s2"), "", "with one acknowledged")
	w.hs.Handle(hstest.PathMutualRooms, nil)
	w.expect(d.begin("s2").answer("s3"), string(bob), "once the other is known")
}

// The requester's view names the others in the room, so that one question wakes them all.
func TestExploreWakesTheOthersInTheRoom(t *testing.T) {
	for name, mutual := range map[string]hstest.Mutual{"mutual rooms": hstest.MutualStable, "members": hstest.MutualNone} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mutual)
			together(w)
			w.hs.RemoveUser(string(carol)) // her own token is of no use
			c := w.device(carol, "PHONE")
			p := c.begin("s0")
			w.announce(bob, alice)
			if p.woken.Load() != 0 {
				t.Fatal("woken without knowing")
			}
			w.announcer.Explore(alice, credentials(alice), bob)
			w.announcer.Settle()
			if p.woken.Load() != 1 {
				t.Error("the requester's view woke nobody")
			}
			w.expect(p.answer("s1"), string(bob), "the other's poll")
			shares, err := w.announcer.Shares(t.Context(), alice, credentials(alice), dave)
			if shares || err != nil {
				t.Errorf("alice shares a room with dave: %v (%v)", shares, err)
			}
		})
	}
}

// A device that asks something else in the moment in which the answer is there has its waiting poll woken all the same: it would
// hear of the change half a minute later.
func TestTheAnswerWakesWhoeverHasLookedMeanwhile(t *testing.T) {
	for name, look := range map[string]func(w *world, d *device){
		"with /keys/changes": func(w *world, d *device) { w.announcer.OwedSince(d.who, "s0") },
		"with /keys/query":   func(w *world, d *device) { w.announcer.Acked(d.who, []id.UserID{dave}, w.announcer.Head()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, hstest.MutualStable)
			together(w)
			w.hs.RemoveUser(string(carol))
			d := w.device(carol, "PHONE")
			p := d.begin("s0")
			w.announce(bob, alice)
			w.hs.AddUser(string(carol), carol, "PHONE")
			if shares, err := w.announcer.Shares(t.Context(), carol, credentials(carol), bob); !shares || err != nil {
				t.Fatalf("carol shares a room with bob: %v (%v)", shares, err)
			}
			look(w, d)
			if p.woken.Load() != 0 {
				t.Fatal("woken before anything was answered")
			}
			w.announcer.Explore(alice, credentials(alice), bob)
			w.announcer.Settle()
			if p.woken.Load() != 1 {
				t.Error("the answer did not wake the poll that waits")
			}
			w.expect(p.answer("s1"), string(bob), "the poll that waited")
		})
	}
}

// Whether somebody still shares a room with a target is asked with the request that they have in flight, and nobody is
// spoken for who has none.
func TestSharing(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob}})
	defer w.device(alice, "PHONE").begin("s0").End()
	defer w.device(carol, "PHONE").begin("s0").End()
	yes, no := w.announcer.Sharing(t.Context(), []id.UserID{alice, carol, erin}, bob)
	if !slices.Equal(yes, []id.UserID{alice}) || !slices.Equal(no, []id.UserID{carol}) {
		t.Errorf("%v share a room and %v do not", yes, no)
	}
	w.hs.HandleFunc("/_matrix/client/v1/mutual_rooms", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) })
	w.hs.HandleFunc("/_matrix/client/v3/joined_rooms", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) })
	w.clock.advance(time.Hour)
	if yes, no := w.announcer.Sharing(t.Context(), []id.UserID{alice, carol}, bob); len(yes)+len(no) > 0 {
		t.Errorf("the homeserver says nothing, and %v share a room and %v do not", yes, no)
	}
}
