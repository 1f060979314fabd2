package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/limit"
	"freshen/internal/retry"
	"freshen/internal/store"
)

func user(i int) id.UserID { return id.UserID(fmt.Sprintf("@u%d:b.example", i)) }

// owe has n users of b.example fail, and be owed.
func (b *bed) owe(n int) {
	b.t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { _ = b.refresh("@a:a.example", user(i)) })
	}
	all.Wait()
	if b.debts() != n {
		b.t.Fatalf("%d debts, want %d", b.debts(), n)
	}
}

func (b *bed) ended(want map[retry.Ending]int64) {
	b.t.Helper()
	got := b.engine.Ended()
	maps.DeleteFunc(got, func(_ retry.Ending, n int64) bool { return n == 0 })
	if !maps.Equal(got, want) {
		b.t.Errorf("debts have ended %v, want %v", got, want)
	}
}

// A server that has just come back, with much owed to it, is asked four at a time and no faster than its rate; people
// are served beside that, and the worker does not run in circles meanwhile.
func TestAServerThatIsBackIsNotStormed(t *testing.T) {
	const n = 100
	var rounds atomic.Int64
	within(t, func(c *settings) {
		c.perDestination = limit.Rate{Every: time.Second, Burst: 20}
		c.workerNow = func() { rounds.Add(1) }
	}, func(t *testing.T, b *bed) {
		b.does(down)
		for i := range n { // as a day of an outage leaves them
			_ = b.refresh("@a:a.example", user(i))
			time.Sleep(time.Second)
		}
		if b.debts() != n {
			t.Fatalf("%d debts", b.debts())
		}
		b.does(func(context.Context, id.UserID) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		began := time.Since(b.began)
		before := len(b.fetched())
		b.most = 0
		rounds.Store(0)
		defer b.works()()
		time.Sleep(time.Minute)
		for i := range 5 {
			if err := b.refresh("@a:a.example", id.UserID(fmt.Sprintf("@pressed%d:b.example", i))); err != nil {
				t.Errorf("a person was refused for the sake of what nobody waits for: %v", err)
			}
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if b.debts() != 0 {
			t.Errorf("%d debts are left after minutes", b.debts())
		}
		fetches := b.fetched()[before:]
		for i, at := range fetches {
			if at < began {
				t.Fatalf("fetched at %v", at)
			}
			if i >= 20 && at-fetches[i-20] < time.Second {
				t.Errorf("21 fetches in %v", at-fetches[i-20])
			}
		}
		if b.most > 5 { // four retries and a person
			t.Errorf("%d fetches at once", b.most)
		}
		// A few looks at the clock for each debt paid; thousands would be a worker that spins.
		if perDebt := rounds.Load() / n; perDebt > 12 {
			t.Errorf("the worker looked at the clock %d times for each debt", perDebt)
		}
		b.ended(map[retry.Ending]int64{retry.Paid: n})
	})
}

// One probe at a time visits a dead server's debts one by one; those that are never visited end in time all the same.
func TestADeadServersDebtsAreAllGivenUp(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		b.owe(30)
		defer b.works()()
		time.Sleep(23 * time.Hour)
		if b.debts() != 30 {
			t.Errorf("%d debts are left before their time is over", b.debts())
		}
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		if b.debts() != 0 {
			t.Errorf("%d debts are still owed", b.debts())
		}
		b.ended(map[retry.Ending]int64{retry.GivenUp: 30})
		b.does(nil)
		time.Sleep(24 * time.Hour)
		before := len(b.fetched())
		if err := b.refresh("@a:a.example", bob); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.fetched()) != before+1 {
			t.Error("what was given up was fetched")
		}
	})
}

// Debts that were owed while freshen did not run are tried before they are given up, however long that was.
func TestNothingIsGivenUpWithoutATry(t *testing.T) {
	within(t, nil, func(_ *testing.T, b *bed) {
		b.does(down)
		b.owe(3)
		time.Sleep(30 * 24 * time.Hour)
		b.does(nil)
		defer b.works()()
		time.Sleep(time.Minute)
		synctest.Wait()
		b.ended(map[retry.Ending]int64{retry.Paid: 3})
	})
}

// A failure that only the overlay's refetch met is told to a person who asks a moment later; that user of theirs waits as
// if the person had met it.
func TestAPromiseAfterAFailureThatOwedNothing(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(unknown)
		defer b.works()()
		if b.engine.Again(t.Context(), bob) {
			t.Fatal("it did not fail")
		}
		err := b.refresh("@a:a.example", bob)
		if told, _ := errors.AsType[*freshen.Error](err); codeOf(err) != freshen.CodeRemote || told.RetryAfter != time.Hour {
			t.Errorf("the person was told %v", err)
		}
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if len(b.fetched()) != 1 || b.debts() != 1 {
			t.Errorf("%d fetches, %d debts", len(b.fetched()), b.debts())
		}
	})
}

// The overlay's refetches of many lists leave room for people at the same server.
func TestAgainLeavesRoomForPeople(t *testing.T) {
	within(t, func(c *settings) { c.perDestination = limit.Rate{Every: time.Minute, Burst: 4} }, func(t *testing.T, b *bed) {
		for i := range 10 {
			b.engine.Again(t.Context(), user(i))
		}
		if n := len(b.fetched()); n != 2 {
			t.Errorf("the overlay fetched %d lists, want 2", n)
		}
		for i := range 2 {
			if err := b.refresh("@a:a.example", user(100+i)); err != nil {
				t.Errorf("a person got %v", err)
			}
		}
	})
}

// Those who waited for the probe of a server that was failing need not wait for each other once it has answered.
func TestAnAnswerLetsAllGoWhoWait(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		_ = b.refresh("@a:a.example", bob)
		b.does(func(context.Context, id.UserID) error { time.Sleep(4 * time.Second); return nil })
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				if err := b.refresh("@a:a.example", user(i)); err != nil {
					t.Errorf("the server answers, and a person is told %v", err)
				}
			})
		}
		all.Wait()
		if dest, err := b.store.Backoff(t.Context(), "b.example"); err != nil || dest.Failures != 0 {
			t.Errorf("the destination stands at %+v (%v)", dest, err)
		}
	})
}

// While freshen stops, its worker must not claim and give back the same debts as fast as the disk allows.
func TestAWorkerOverAClosedEngine(t *testing.T) {
	var paid atomic.Int64
	within(t, func(c *settings) { c.pay = func(store.Debt) { paid.Add(1) } }, func(t *testing.T, b *bed) {
		b.does(down)
		_ = b.refresh("@a:a.example", bob)
		b.stop()
		defer b.works()()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := paid.Load(); n > 4 || b.debts() != 1 {
			t.Errorf("tried %d times in 30 s with %d debts left", n, b.debts())
		}
	})
}

// A debt ends where all who were promised it have left the target's rooms, and not where one of them never was in one,
// is not online, or still is.
func TestADebtThatNobodyHasAUseForEnds(t *testing.T) {
	const alice, carol = id.UserID("@alice:a.example"), id.UserID("@carol:a.example")
	type online = map[id.UserID]bool
	for name, c := range map[string]struct {
		first, then online
		ends        bool
	}{
		"all have left":               {online{alice: true, carol: true}, online{alice: false, carol: false}, true},
		"one is still there":          {online{alice: true, carol: true}, online{alice: false, carol: true}, false},
		"one is not online":           {online{alice: true, carol: true}, online{alice: false}, false},
		"one never shared a room yet": {online{alice: true, carol: false}, online{alice: false, carol: false}, false},
		"it was never known":          {online{}, online{alice: false, carol: false}, false},
	} {
		within(t, nil, func(t *testing.T, b *bed) {
			b.does(down)
			_ = b.refresh(alice, bob)
			_ = b.refresh(carol, bob)
			defer b.works()()
			b.online(c.first)
			time.Sleep(5 * time.Hour)
			b.online(c.then)
			time.Sleep(7 * time.Hour)
			synctest.Wait()
			if ended := b.debts() == 0; ended != c.ends {
				t.Errorf("%s: the debt has ended: %v", name, ended)
			}
			if c.ends {
				b.ended(map[retry.Ending]int64{retry.NobodyShares: 1})
			}
		})
	}
}

func (s *script) online(shares map[id.UserID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shares = shares
}

// Whoever asks while it is being found out that nobody has a use for the debt is promised it anew.
func TestAskedForWhileItIsFoundOutThatNobodyShares(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		_ = b.refresh("@alice:a.example", bob)
		stop := b.works()
		b.online(map[id.UserID]bool{"@alice:a.example": true})
		time.Sleep(5 * time.Hour)
		stop()
		time.Sleep(7 * time.Hour)
		claimed, err := b.store.Claim(t.Context(), time.Now(), time.Minute, "claim", store.Places{Fine: 1, Failing: 1})
		if err != nil || len(claimed) != 1 {
			t.Fatalf("claimed %v (%v)", claimed, err)
		}
		_ = b.refresh("@carol:a.example", bob)
		if dropped, err := b.store.DropDebt(t.Context(), claimed[0], time.Now()); dropped || err != nil || b.debts() != 1 {
			t.Errorf("dropped: %v (%v)", dropped, err)
		}
	})
}

// The clock of a machine is set. Nothing is lost, nothing waits for ever, and no server is stormed.
func TestTheClockIsSet(t *testing.T) {
	for _, jump := range []time.Duration{-24 * time.Hour, -time.Hour, time.Hour, 20 * time.Hour, -10 * 365 * 24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			var set atomic.Int64
			now := func() time.Time { return time.Now().Round(0).Add(time.Duration(set.Load())) }
			within(t, func(c *settings) { c.Now = now }, func(t *testing.T, b *bed) {
				b.does(down)
				b.owe(8) // and one more after the clock was set
				defer b.works()()
				time.Sleep(2 * time.Hour)
				set.Store(int64(jump))
				before := len(b.fetched())
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if n := len(b.fetched()) - before; n > 4 {
					t.Errorf("%d requests to a server that is down, right after the clock was set", n)
				}
				// What was told within the caches' time may be told again, but not for a day.
				if err := b.refresh("@a:a.example", bob); codeOf(err) != freshen.CodeRemote {
					t.Errorf("got %v", err)
				}
				time.Sleep(time.Minute)
				b.does(nil)
				if err := b.refresh("@a:a.example", eve); err != nil {
					t.Errorf("a person got %v", err)
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if b.debts() != 0 {
					t.Errorf("%d debts are left an hour after the server is back", b.debts())
				}
				b.ended(map[retry.Ending]int64{retry.Paid: 9})
			})
		})
	}
}

// Without anybody who asks, a server that is back is found out about within the longest wait, whatever the clock does.
func TestTheClockIsSetBackAndNobodyAsks(t *testing.T) {
	var set atomic.Int64
	now := func() time.Time { return time.Now().Round(0).Add(time.Duration(set.Load())) }
	within(t, func(c *settings) { c.Now = now }, func(t *testing.T, b *bed) {
		b.does(down)
		b.owe(5)
		defer b.works()()
		time.Sleep(2 * time.Hour)
		b.does(nil)
		set.Store(-int64(1000 * time.Hour))
		time.Sleep(b.policy.Longest() + time.Hour)
		synctest.Wait()
		if b.debts() != 0 {
			t.Errorf("%d debts are left after the longest wait there is", b.debts())
		}
	})
}

// A person's request may pay a debt between its claim and its retry: the server is not asked for the same once more.
func TestADebtThatWasJustPaidIsNotFetchedAgain(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		b.owe(1)
		time.Sleep(time.Minute)
		claimed, err := b.store.Claim(t.Context(), time.Now(), time.Minute, "claim", store.Places{Fine: 1, Failing: 1})
		if err != nil || len(claimed) != 1 {
			t.Fatalf("claimed %v, %v", claimed, err)
		}
		b.does(func(context.Context, id.UserID) error { return nil })
		if err := b.refresh("@a:a.example", user(0)); err != nil {
			t.Fatal(err)
		}
		if err := b.engine.Pay(t.Context(), claimed[0]); err != nil {
			t.Error(err)
		}
		if got := len(b.fetched()); got != 2 || b.debts() != 0 {
			t.Errorf("%d fetches and %d debts, want the failure and the success, and nothing owed", got, b.debts())
		}
		b.ended(map[retry.Ending]int64{retry.Paid: 1})
	})
}
