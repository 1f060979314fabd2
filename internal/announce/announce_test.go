package announce_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/announce"
	"freshen/internal/homeserver/hstest"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

var hsURL = &url.URL{Path: "/_matrix/client/v3/sync"}

func together(w *world) {
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, carol, bob}})
}

// A response can be lost on the way: whoever then asks with the same token must be told again.
func TestTheSameSinceGetsTheSameEntries(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	d := w.device(alice, "PHONE")
	d.sync()
	w.announce(bob)
	for i := range 5 {
		// Also once the rooms have been forgotten: what was carried is decided.
		if i == 3 {
			w.clock.advance(6 * time.Minute)
			w.hs.Handle(hstest.PathMutualRooms, failing(http.StatusInternalServerError))
		}
		w.expect(d.begin("s1").answer("s2"), string(bob), "the same since again")
	}
	w.expect(d.begin("s2").answer("s3"), "", "the token moved to the response's")
	w.expect(d.begin("s3").answer("s4"), "", "later")
}

func failing(status int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hstest.WriteError(w, status, "M_LIMIT_EXCEEDED", "no")
	})
}

// Dendrite's token stands still while nothing happens: that acknowledges nothing, but nor may it repeat without end.
func TestAStandingTokenAcknowledgesAfterThreeCarries(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	together(w)
	d := w.device(alice, "PHONE")
	d.begin("s0").answer("s0")
	w.announce(bob)
	for range 2 {
		w.expect(d.begin("s0").answer("s0"), string(bob), "under the standing token")
	}
	w.announce(bob) // a second change counts anew
	for range 3 {
		w.expect(d.begin("s0").answer("s0"), string(bob), "the second change under the standing token")
	}
	w.expect(d.begin("s0").answer("s0"), "", "after three carries")
}

// A device may sync over two connections, such as an app and its notifications, whose tokens both stand still: that they take
// turns does not make it be told more often.
func TestTwoStandingTokensAreCountedEach(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	together(w)
	d := w.device(alice, "PHONE")
	d.begin("s0").answer("s0")
	d.begin("x0").answer("x0")
	w.announce(bob)
	for range 2 {
		w.expect(d.begin("s0").answer("s0"), string(bob), "under the one token")
		w.expect(d.begin("x0").answer("x0"), string(bob), "under the other token")
	}
	w.expect(d.begin("s0").answer("s0"), string(bob), "the third time under the one token")
	w.expect(d.begin("x0").answer("x0"), "", "after three carries under one of them")
}

// Two responses that end in one token (a broken connection, a second tab): what only the lost one carried is not heard.
func TestAnAmbiguousTokenAcknowledgesWhatBothCarried(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob, dave}})
	d := w.device(alice, "PHONE")
	d.begin("s1").answer("s1")
	w.announce(bob)
	w.expect(d.begin("s1").answer("s2"), string(bob), "the first")
	w.announce(dave)
	w.expect(d.begin("s1").answer("s2"), string(bob)+" "+string(dave), "the second")
	w.expect(d.begin("s2").answer("s3"), string(dave), "with a token that both ended in")
	w.expect(d.begin("s3").answer("s4"), "", "after a token of its own")
}

// A key query answers with what stood when it arrived; a change that comes while it runs must still be told.
func TestAKeyQueryAcknowledgesUpToItsArrival(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob, dave}})
	d := w.device(alice, "PHONE")
	d.sync()
	w.announce(bob)
	w.announce(dave)
	arrived := w.announcer.Head()
	if !w.announcer.Pending(d.who, []id.UserID{bob}) || w.announcer.Pending(d.who, []id.UserID{"@x:b.org"}) {
		t.Error("it is not known whose announcement is on its way")
	}
	w.announcer.Acked(d.who, []id.UserID{bob}, arrived)
	w.expect(d.begin("s1").answer("s1"), string(dave), "after a query for one of two")
	w.announce(bob)
	w.announcer.Acked(d.who, []id.UserID{bob}, arrived) // the older query's answer comes late
	w.expect(d.begin("s1").answer("s1"), string(bob)+" "+string(dave), "after a change while the query ran")
	w.announcer.Acked(d.who, []id.UserID{bob, dave}, w.announcer.Head())
	w.expect(d.begin("s1").answer("s1"), "", "after a query for both")
	if w.announcer.Pending(d.who, []id.UserID{bob, dave}) {
		t.Error("what is acknowledged is still pending")
	}
}

// A second change before the first was acknowledged is a change of its own: an old acknowledgement must not cover it.
func TestASecondChangeBeforeTheFirstIsAcknowledged(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	d := w.device(alice, "PHONE")
	d.sync()
	w.announce(bob)
	p := d.begin("s1")
	entries := p.Owed()
	w.announce(bob)
	p.Delivered(entries, "s2")
	p.End()
	w.expect(d.begin("s2").answer("s3"), string(bob), "the second change")
	w.expect(d.begin("s3").answer("s4"), "", "once that is acknowledged")
}

// "An unchanged list is announced to the requester alone", and to them even if they had it: a client that died after its
// token moved has no other way to hear.
func TestAnExplicitRefreshIsAnnouncedToItsRequesterAgain(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	phone, tablet, other := w.device(alice, "PHONE"), w.device(alice, "TABLET"), w.device(carol, "PHONE")
	for _, d := range []*device{phone, tablet, other} {
		d.sync()
	}
	w.keep(bob, "same", alice)
	for _, d := range []*device{phone, tablet, other} {
		w.expect(d.sync(), string(bob), "the first list, at "+string(d.who.UserID))
		w.expect(d.sync(), "", "acknowledged")
	}
	w.keep(bob, "same", alice)
	w.expect(phone.sync(), string(bob), "unchanged, at the requester")
	w.expect(tablet.sync(), string(bob), "unchanged, at the requester's other device")
	w.expect(other.sync(), "", "unchanged, at somebody else")
	w.announceTo(dave, alice) // with whom nobody shares a room: by name all the same
	w.expect(phone.sync(), string(dave), "by name")
	w.expect(other.sync(), "", "by another's name")
}

// The specification: a first sync carries no device_lists. It must not take an announcement for told either.
func TestAFirstSyncCarriesAndAcknowledgesNothing(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	d := w.device(alice, "PHONE")
	p := d.begin("")
	w.announce(bob)
	if p.woken.Load() != 0 {
		t.Error("a first sync was hurried")
	}
	w.expect(p.answer("s1"), "", "the first sync")
	w.expect(d.begin("s1").answer("s2"), string(bob), "the next one")
	w.expect(d.begin("").answer("s3"), "", "a first sync again")
	w.expect(d.begin("s1").answer("s2"), string(bob), "which acknowledged nothing")
}

// One is known and hurried before the other, which stands lower in the stream, becomes known: both are to be hurried.
func TestAnOlderAnnouncementIsHurriedAfterANewerOne(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	asked, release := w.stuck(hstest.PathMutualRooms)
	defer release()
	d := w.device(alice, "PHONE")
	p := d.begin("s0")
	w.announceUnsettled(bob)
	<-asked
	w.announcer.Announced([]store.Announcement{{Target: dave, Audience: alice, Position: w.announcer.Head() + 1, At: w.clock.now()}})
	if p.woken.Load() != 1 {
		t.Fatal("not woken for what is known")
	}
	w.expect(p.answer("s1"), string(dave), "what is known")
	p = d.beginAtOnce("s1")
	release()
	w.announcer.Settle()
	if p.woken.Load() != 1 {
		t.Error("the older announcement waits for the end of the poll")
	}
	w.expect(p.answer("s2"), string(bob), "then the older")
}

// One wake for an announcement and device; but a wake whose response fails has told nobody.
func TestOneWakeUnlessItFails(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	d := w.device(alice, "PHONE")
	old, newer := d.begin("s0"), d.begin("s0")
	w.announce(bob)
	if old.woken.Load() != 0 || newer.woken.Load() != 1 {
		t.Errorf("woken: the older poll %d, the newer %d", old.woken.Load(), newer.woken.Load())
	}
	newer.Owed()
	w.announce("@unrelated:b.org")
	if old.woken.Load() != 0 {
		t.Error("a second poll was woken for what a response is bringing")
	}
	newer.End() // the client has gone
	if old.woken.Load() != 1 {
		t.Error("the other poll was not woken in place of the one that failed")
	}
	w.expect(old.answer("s0"), string(bob), "the other poll")
	p := d.begin("s0")
	if p.woken.Load() != 0 {
		t.Error("woken again for what has been carried, under a token that stands still")
	}
	w.expect(p.answer(""), string(bob), "carried again") // which could not be made to
	w.announce(bob)
	p = d.begin("s0")
	if p.woken.Load() != 1 {
		t.Error("not woken for a new change")
	}
	p.Delivered(p.Owed(), "")
	p.End()
	p = d.begin("s0")
	if p.woken.Load() != 0 {
		t.Error("hurried without end where the answer cannot be edited")
	}
	w.expect(p.answer("s1"), string(bob), "what could not be carried stays owed")
}

// A proxy cuts each poll before the homeserver has news, and the one response that carried the change was lost: nobody
// would ever hear of it if no other were hurried.
func TestAPollThatIsCutHasTheNextOneHurried(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	d := w.device(alice, "PHONE")
	p := d.begin("s0")
	w.announce(bob)
	w.expect(p.answer("s0"), string(bob), "what the client loses")
	p = d.begin("s0")
	if p.woken.Load() != 0 {
		t.Error("woken again for what has been carried")
	}
	p.End() // cut
	p = d.begin("s0")
	if p.woken.Load() != 1 {
		t.Error("the poll after the one that was cut waits for the homeserver")
	}
	w.expect(p.answer("s1"), string(bob), "the poll after the cut")
	w.expect(d.begin("s1").answer("s2"), "", "acknowledged")
}

// An announcement that comes after a response took what it carries must wake the next poll at once.
func TestAnAnnouncementWhileAResponseGoesOut(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob, dave}})
	d := w.device(alice, "PHONE")
	p := d.begin("s0")
	w.announce(bob)
	entries := p.Owed()
	w.announce(dave)
	p.Delivered(entries, "s1")
	p.End()
	p = d.begin("s1")
	if p.woken.Load() != 1 {
		t.Error("the next poll waits")
	}
	w.expect(p.answer("s2"), string(dave), "the next poll")
}

// A key query can be the first that is heard of a device after a restart; what it acknowledges counts all the same.
func TestAnAcknowledgementBeforeTheDeviceIsLoaded(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	w.announce(bob)
	w.restart(true)
	d := w.device(alice, "PHONE")
	if !w.announcer.Pending(d.who, []id.UserID{bob}) {
		t.Error("nothing is pending for a device that is not loaded")
	}
	w.announcer.Acked(d.who, []id.UserID{bob}, w.announcer.Head())
	w.announcer.Settle()
	w.expect(d.sync(), "", "after the query")
}

// Restarts: what was saved holds, what was not costs a duplicate and never an announcement.
func TestRestarts(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob, dave}})
	d := w.device(alice, "PHONE")
	w.announce(bob)
	w.announce(dave)
	w.expect(d.begin("s0").answer("s0"), string(bob)+" "+string(dave), "at first")
	w.announcer.Acked(d.who, []id.UserID{dave}, w.announcer.Head()) // out of order
	w.restart(true)
	w.expect(d.begin("s0").answer("s1"), string(bob), "the saved acknowledgement")
	w.expect(d.begin("s1").answer("s2"), "", "acknowledged")
	w.restart(false)
	w.expect(d.begin("s2").answer("s3"), string(bob), "the unsaved one")
	w.expect(d.begin("s3").answer("s4"), "", "acknowledged again")
	w.announcer.Flush(t.Context())
	w.restart(false)
	w.expect(d.begin("s4").answer("s5"), "", "saved by the clock")
}

// The database away for a while: nothing is lost that was acknowledged meanwhile, and polls go on.
func TestTheDatabaseAway(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	d := w.device(alice, "PHONE")
	w.announce(bob)
	w.expect(d.sync(), string(bob), "with the database")
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	w.expect(d.sync(), "", "acknowledged without the database")
	w.announcer.Flush(t.Context())
	fresh := w.device(alice, "NEW")
	w.expect(fresh.sync(), "", "a device whose acknowledgements cannot be read")
	w.clock.advance(time.Hour)
	w.announcer.Flush(t.Context())
	if w.announcer.Floor(fresh.who) != -1 {
		t.Error("a device that cannot be loaded and does not come back stays in memory")
	}
	if w.announcer.Floor(d.who) == -1 {
		t.Error("an acknowledgement that could not be saved was forgotten")
	}
	w.stop()
	w.open()
	// What the closed one held is gone with it, as in a crash: a duplicate.
	w.expect(d.sync(), string(bob), "after the restart")
}

// Who comes while the database is away for a moment is woken soon after it is back, though nothing else happens: what was
// announced before the read failed would come with their next poll only, half a minute later.
func TestWhoCouldNotBeReadIsReadAgain(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	w.announce(bob)
	w.announcer.FailReads(3)
	polls := []*poll{w.device(alice, "PHONE").begin("s0"), w.device(carol, "PHONE").begin("s0")}
	w.announcer.Flush(t.Context())
	w.announcer.Settle() // the third, of one of them: the other is not tried while that fails
	for _, p := range polls {
		if p.woken.Load() != 0 {
			t.Fatal("woken without the database")
		}
	}
	for range 2 { // one, and then all
		w.announcer.Flush(t.Context())
		w.announcer.Settle()
	}
	for _, p := range polls {
		if p.woken.Load() != 1 {
			t.Error("not woken though the database is back")
		}
		w.expect(p.answer("s1"), string(bob), "once the database is back")
	}
}

// Devices that stop syncing leave memory, not the database; one that polls stays.
func TestIdleDevicesLeaveMemory(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	gone, here := w.device(alice, "PHONE"), w.device(carol, "PHONE")
	w.announce(bob)
	gone.sync()
	gone.sync()
	p := here.begin("s0")
	w.clock.advance(11 * time.Minute)
	w.announcer.Flush(t.Context())
	if w.announcer.Floor(gone.who) != -1 || w.announcer.Floor(here.who) == -1 {
		t.Error("the wrong device was forgotten")
	}
	if n := w.announcer.Polls(); n != 1 {
		t.Errorf("%d polls are held", n)
	}
	p.End()
	w.expect(gone.begin("s7").answer("s8"), "", "a device that comes back")
}

// After 90 days an announcement is of no use to anybody; a device that syncs all the time keeps its acknowledgements.
func TestAfterNinetyDays(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	w.rooms(map[id.RoomID][]id.UserID{room: {alice, bob, dave}})
	d := w.device(alice, "PHONE")
	w.announce(bob)
	w.clock.advance(80 * 24 * time.Hour)
	w.announce(dave)
	d.sync()
	d.sync()
	w.announcer.Flush(t.Context())
	for range 11 {
		w.clock.advance(24*time.Hour + time.Minute)
		d.sync() // short polls: none is open when the positions are saved
		w.announcer.Flush(t.Context())
	}
	w.announcer.Forget()
	if err := w.store.Prune(t.Context(), w.clock.now().Add(-90*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.expect(w.device(alice, "NEW").sync(), string(dave), "a new device")
	w.restart(false)
	w.expect(w.device(alice, "NEWER").sync(), string(dave), "a new device after a restart")
	w.expect(d.sync(), "", "the device that synced all the time")
	w.announce(bob)
	if head := w.announcer.Head(); head <= 2 {
		t.Errorf("positions are given twice: the head is %d", head)
	}
}

// Run serves, and saves when it is told to end.
func TestRunSavesAtItsEnd(t *testing.T) {
	w := newWorld(t, hstest.MutualStable)
	together(w)
	w.stop()
	a, err := announce.Open(t.Context(), w.store, rooms.New(w.hc, "a.org", w.clock.now, nil), slog.New(slog.DiscardHandler), w.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	w.announcer = a
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.Run(ctx) })
	w.stop = func() { cancel(); wg.Wait() }
	d := w.device(alice, "PHONE")
	w.announce(bob)
	w.expect(d.sync(), string(bob), "under Run")
	w.expect(d.sync(), "", "acknowledged")
	w.stop()
	w.restart(false)
	w.expect(d.sync(), "", "after Run has ended in order")
}

// The race detector's part: everything at once.
func TestAllAtOnce(t *testing.T) {
	w := newWorld(t, hstest.MutualNone)
	together(w)
	var wg sync.WaitGroup
	for _, user := range []id.UserID{alice, carol, erin} {
		for _, name := range []id.DeviceID{"A", "B"} {
			d := w.device(user, name)
			wg.Go(func() {
				for i := range 50 {
					p := d.beginAtOnce(fmt.Sprint("s", i))
					p.Delivered(p.Owed(), fmt.Sprint("s", i+i%2))
					w.announcer.Acked(d.who, []id.UserID{bob}, w.announcer.Head())
					w.announcer.Pending(d.who, []id.UserID{bob})
					p.End()
				}
			})
		}
	}
	wg.Go(func() {
		for i := range 50 {
			if err := w.store.AnnounceTo(t.Context(), bob, []id.UserID{alice, carol}, w.clock.now()); err != nil {
				t.Error(err)
			}
			w.announcer.Explore(alice, credentials(alice), bob)
			w.announcer.Flush(t.Context())
			w.clock.advance(time.Duration(i) * time.Second)
		}
	})
	wg.Wait()
	w.announcer.Settle()
	last := w.device(alice, "A")
	w.announceTo(bob, alice)
	w.expect(last.begin("x").answer("y"), string(bob), "after it all")
}
