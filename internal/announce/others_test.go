package announce_test

import (
	"context"
	"testing"
	"time"

	"freshen/internal/homeserver/hstest"
	"freshen/internal/store"
)

// gated are the other instances, of which there are none, who answer when they are let.
type gated struct {
	*store.Store
	asked, let chan struct{}
	over       <-chan struct{}
}

func (g *gated) Ask(_ context.Context, questions []string) (store.Replies, error) {
	for _, c := range []chan struct{}{g.asked, g.let} {
		select {
		case <-c:
		case <-g.over:
		}
	}
	return store.Replies{Answers: make([][]string, len(questions)), Left: -1}, nil
}

// await returns once they are asked.
func (g *gated) await(t *testing.T) {
	t.Helper()
	select {
	case g.asked <- struct{}{}:
	case <-time.After(10 * time.Second):
		t.Fatal("the others are not asked")
	}
}

func (g *gated) answer(t *testing.T) {
	t.Helper()
	g.await(t)
	g.let <- struct{}{}
}

// An announcement waits a second for other instances from when it is held for them. A failure means that who comes to another
// instance after a while is told at once what they have heard long ago.
func TestWhatIsHeldForOthersIsHeldAsLongEachTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hstest.MutualNone)
	others := &gated{w.store, make(chan struct{}), make(chan struct{}), t.Context().Done()}
	w.announcer.Share(others)
	phone := w.device(alice, "PHONE")
	phone.begin("s0").End()
	w.announce(bob, alice)
	for range 2 {
		phone.beginAtOnce("s0").End() // gone before the others have answered
		others.answer(t)
		w.announcer.Settle()
		w.clock.advance(time.Minute)
	}
	p := phone.beginAtOnce("s0")
	w.expect(p.answer("s1"), "", "while the others are being asked")
	others.answer(t)
	w.announcer.Settle()
	w.expect(phone.beginAtOnce("s1").answer("s2"), "", "while they are being asked once more")
	others.answer(t)
	w.announcer.Settle()
	p = phone.beginAtOnce("s2")
	w.expect(p.answer("s3"), "", "and once more")
	others.await(t)
	w.clock.advance(time.Second)
	w.expect(phone.beginAtOnce("s3").answer("s4"), string(bob), "a second later")
	others.let <- struct{}{}
}
