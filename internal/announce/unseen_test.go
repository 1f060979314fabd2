package announce_test

import (
	"testing"
	"time"

	"freshen/internal/announce"
	"freshen/internal/homeserver/hstest"
)

// told lets bob's change be carried to alice by an answer that ends in s1, and the same token be that of an answer of which it is
// not known yet whose it was.
func told(t *testing.T) (w *world, phone *device, unseen *announce.Unseen) {
	t.Helper()
	w = newWorld(t, hstest.MutualNone)
	phone = w.device(alice, "PHONE")
	waiting := phone.begin("s0")
	w.clock.advance(time.Millisecond)
	w.announce(bob, alice)
	unseen = w.announcer.Unseen()
	w.expect(waiting.answer("s1"), string(bob), "a change that was asked for")
	unseen.Ended("s1")
	return w, phone, unseen
}

// A token of the homeserver's may be that of two answers. While it is being found out whose the other was, an announcement that the
// device has surely got is not repeated, or each client that comes just when another's token is new to freshen is told twice.
func TestWhatACollidingTokenProvesIsAwaited(t *testing.T) {
	t.Parallel()
	w, phone, unseen := told(t)
	p := phone.beginAtOnce("s1")
	w.expect(p.answer("s2"), "", "while it is not known whose the other answer was")
	p = phone.beginAtOnce("s2")
	unseen.Whose(w.device(carol, "PHONE").who)
	w.announcer.Settle()
	if p.woken.Load() != 0 {
		t.Error("the poll is hurried, and there is nothing to bring")
	}
	w.expect(p.answer("s3"), "", "once the other answer is known to be another's")
	w.restart(true)
	w.expect(phone.sync(), "", "after a restart")
}

// If the other answer was the same device's, or nobody knows, it may have got that one alone: it must be told again, and at once.
func TestWhatACollidingTokenDoesNotProveIsToldAgain(t *testing.T) {
	t.Parallel()
	for name, becomes := range map[string]func(*announce.Unseen, *device){
		"the same device's": func(u *announce.Unseen, d *device) { u.Whose(d.who) },
		"nobody's":          func(u *announce.Unseen, _ *device) { u.Nobodys() },
	} {
		w, phone, unseen := told(t)
		w.expect(phone.beginAtOnce("s1").answer("s2"), "", name+": while it is not known whose it was")
		p := phone.beginAtOnce("s2")
		becomes(unseen, phone)
		w.announcer.Settle()
		w.expect(p.answer("s3"), string(bob), name)
		w.expect(phone.begin("s3").answer("s4"), "", name+": and then it has arrived")
	}
}

// A homeserver that does not say whose a token is must not keep what is announced from those who may have to hear it.
func TestWhatACollidingTokenProvesIsAwaitedForASecond(t *testing.T) {
	t.Parallel()
	w, phone, _ := told(t)
	w.expect(phone.beginAtOnce("s1").answer("s2"), "", "at first")
	w.clock.advance(time.Second)
	w.expect(phone.beginAtOnce("s2").answer("s3"), string(bob), "a second later")
}

// What is announced after the request came cannot have come before, and waits for nobody.
func TestNewsDoNotAwaitWhatACollidingTokenProves(t *testing.T) {
	t.Parallel()
	w, phone, _ := told(t)
	p := phone.beginAtOnce("s1")
	w.clock.advance(time.Millisecond)
	w.announceAtOnce(dave, alice)
	if p.woken.Load() != 1 {
		t.Error("the poll is not hurried for what is new")
	}
	w.expect(p.answer("s2"), string(dave), "what is new")
}
