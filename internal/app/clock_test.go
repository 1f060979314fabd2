package app_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"maunium.net/go/mautrix/id"

	"freshen/internal/app"
)

// steppedClock is the machine's clock after somebody has set it: what it reads is moved, what has passed is not.
type steppedClock struct{ seconds atomic.Int64 }

func (c *steppedClock) now() time.Time {
	now := time.Now()
	// Time.Add would move the monotonic reading as well, which no setting of a clock does, and there is no other way to
	// make such a time: the wall clock's seconds stand in the bits of the first word from the 30th on, to the 62nd.
	wall := (*uint64)(unsafe.Pointer(&now))
	*wall += uint64(c.seconds.Load()) << 30
	return now
}

// A clock that is set back by an hour, or forward, while polls wait and debts are owed must cost nobody a message: what is
// owed is paid, nobody is refused or misses what they wait for, and no server is stormed.
func TestAClockThatJumps(t *testing.T) {
	w := newWorld(t, soon)
	clock := new(steppedClock)
	w.openWith(func(ctx context.Context) (*app.App, error) { return app.OpenAt(ctx, w.cfg, w.logger(), clock.now) })
	r := w.remote()
	for i, jump := range []time.Duration{0, -time.Hour, time.Hour, time.Hour, -time.Hour} {
		name := string(rune('a' + i))
		owed, asked := r.has("owed-"+name, "D"), r.has("asked-"+name, "D")
		r.down()
		if got := w.refresh(aliceToken, owed); got.status != http.StatusBadGateway {
			t.Fatalf("%d %s", got.status, got.body)
		}
		call, replies := w.waiting(aliceToken, "s"+name)
		before := clock.now()
		clock.seconds.Add(int64(jump / time.Second))
		after := clock.now()
		if read := after.Round(0).Sub(before.Round(0)) - jump; after.Sub(before) < 0 || read < 0 || max(read, after.Sub(before)) > time.Minute {
			t.Fatalf("this is no step of the clock by %v: it reads %v more, and %v have passed", jump, after.Round(0).Sub(before.Round(0)), after.Sub(before))
		}
		asks := r.asked.Load()
		r.up()
		// A person who does not want to wait need not, wherever the clock went.
		w.refreshed(carolToken, asked)
		heard := w.heardOf(call, replies, name, owed)
		if !heard {
			t.Errorf("after a jump of %v a debt was not paid", jump)
		}
		if n := r.asked.Load() - asks; n > 10 {
			t.Errorf("after a jump of %v the server was asked %d times for two lists", jump, n)
		}
	}
	if n := owed(t, w); n != 0 {
		t.Errorf("%d debts are left", n)
	}
}

// heardOf polls until the user is announced to Alice.
func (w *world) heardOf(call *syncCall, replies <-chan reply, name string, user id.UserID) bool {
	w.t.Helper()
	for range 5 {
		body := w.woken(call, replies, `{"next_batch":"`+name+`"}`)
		for _, changed := range changedIn(w.t, body) {
			if id.UserID(changed) == user {
				return true
			}
		}
		call, replies = w.waiting(aliceToken, name)
	}
	return false
}
