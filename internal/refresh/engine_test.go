package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/store"
)

// A client that presses the button twice costs one request, and no longer than for thirty seconds.
func TestASuccessAnswersForThirtySeconds(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		for _, c := range []struct {
			wait time.Duration
			want int
		}{{0, 1}, {29 * time.Second, 1}, {time.Second, 2}, {30 * time.Second, 3}} {
			time.Sleep(c.wait)
			if err := b.refresh("@a:a.example", bob); err != nil {
				t.Fatal(err)
			}
			if got := len(b.fetched()); got != c.want {
				t.Errorf("after %v more: %d fetches, want %d", c.wait, got, c.want)
			}
		}
	})
}

// The failure that is repeated says when freshen tries next as of now, not as of then; who got it is owed as well.
func TestAFailureAnswersForTenSeconds(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		for i, c := range []struct {
			wait  time.Duration
			want  int
			after time.Duration
		}{{0, 1, 30 * time.Second}, {9 * time.Second, 1, 21 * time.Second}, {time.Second, 2, 20 * time.Second}} {
			time.Sleep(c.wait)
			err := b.refresh(id.UserID(fmt.Sprintf("@a%d:a.example", i)), bob)
			told, _ := errors.AsType[*freshen.Error](err)
			if codeOf(err) != freshen.CodeRemote || told.RetryAfter.Round(time.Millisecond) != c.after || len(b.fetched()) != c.want {
				t.Errorf("after %v more: %v in %v and %d fetches, want the failure in %v and %d", c.wait, err, told.RetryAfter, len(b.fetched()), c.after, c.want)
			}
		}
		if b.debts() != 1 {
			t.Errorf("%d debts, want 1", b.debts())
		}
	})
}

// The limits hold to the millisecond: who comes back when told to is served.
func TestLimitsComeBackWhenTheySaid(t *testing.T) {
	for name, edit := range map[string]func(*settings){
		"user":        func(c *settings) { c.PerUser = limit.Rate{Every: 6 * time.Second, Burst: 3} },
		"destination": func(c *settings) { c.perDestination = limit.Rate{Every: 6 * time.Second, Burst: 3} },
	} {
		within(t, edit, func(t *testing.T, b *bed) {
			n := 0
			next := func() error {
				n++
				return b.refresh("@a:a.example", id.UserID(fmt.Sprintf("@u%d:b.example", n)))
			}
			for range 3 {
				if err := next(); err != nil {
					t.Fatal(err)
				}
			}
			err := next()
			told, ok := errors.AsType[*freshen.Error](err)
			if !ok || told.Code != freshen.CodeLimited || told.RetryAfter != 6*time.Second {
				t.Fatalf("%s: %v, want to be limited for 6 s", name, err)
			}
			time.Sleep(told.RetryAfter - time.Millisecond)
			if codeOf(next()) != freshen.CodeLimited {
				t.Errorf("%s: served before the time", name)
			}
			time.Sleep(time.Millisecond)
			if err := next(); err != nil {
				t.Errorf("%s: came back when told to: %v", name, err)
			}
		})
	}
}

// A debt is tried 30 s after the failure, then after twice as long each time, and given up a day after it was last asked
// for.
func TestADestinationThatStaysDown(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		defer b.works()()
		if codeOf(b.refresh("@a:a.example", bob)) != freshen.CodeRemote {
			t.Fatal("no failure")
		}
		time.Sleep(23 * time.Hour)
		synctest.Wait()
		want, at := []time.Duration{0}, time.Duration(0)
		for wait := 30 * time.Second; at+wait < 23*time.Hour; wait = min(2*wait, 6*time.Hour) {
			at += wait
			want = append(want, at)
		}
		got := b.fetched()
		if len(got) != len(want) {
			t.Fatalf("tried at %v, want %v", got, want)
		}
		for i := range got {
			if late := got[i] - want[i]; late < 0 || late > time.Second {
				t.Errorf("try %d at %v, want %v", i, got[i], want[i])
			}
		}
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		if b.debts() != 0 {
			t.Error("the debt was not given up")
		}
	})
}

// A user whom their server does not know waits an hour, and nobody else there waits for them.
func TestAUsersFailureIsTheirOwn(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(unknown)
		defer b.works()()
		if codeOf(b.refresh("@a:a.example", bob)) != freshen.CodeRemote {
			t.Fatal("no failure")
		}
		b.does(nil)
		if err := b.refresh("@a:a.example", eve); err != nil {
			t.Errorf("another user of the server: %v", err)
		}
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if b.debts() != 1 {
			t.Errorf("%d debts before the hour is over", b.debts())
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if b.debts() != 0 {
			t.Error("the debt was not paid after an hour")
		}
	})
}

// A server that is failing gets one request at a time, and those that wait share its failure instead of repeating it.
func TestOneProbeWhileBackingOff(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		_ = b.refresh("@a:a.example", bob)
		release := make(chan struct{})
		b.does(func(ctx context.Context, target id.UserID) error { <-release; return down(ctx, target) })
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				if err := b.refresh("@a:a.example", id.UserID(fmt.Sprintf("@u%d:b.example", i))); codeOf(err) != freshen.CodeRemote {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		close(release)
		all.Wait()
		if got := len(b.fetched()); got != 2 || b.most != 1 {
			t.Errorf("%d fetches, %d at once; want the first and one probe", got, b.most)
		}
		if b.debts() != 6 {
			t.Errorf("%d debts, want one for each who was told so", b.debts())
		}
		if dest, err := b.store.Backoff(t.Context(), "b.example"); err != nil || dest.Failures != 1 {
			t.Errorf("one outage counts %d times: %v", dest.Failures, err)
		}
	})
}

// What is asked for while a fetch runs that began before may not be answered by it: another instance may have been asked.
func TestAskedAgainDuringAFetchIsNotSwallowed(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		_ = b.refresh("@a:a.example", bob)
		time.Sleep(time.Minute)
		release := make(chan struct{})
		b.does(func(context.Context, id.UserID) error { <-release; return nil })
		done := make(chan error, 1)
		go func() { done <- b.refresh("@a:a.example", bob) }()
		synctest.Wait()
		if _, err := b.store.AskAgain(t.Context(), bob, []id.UserID{"@c:a.example"}, time.Now(), time.Time{}, func(debt store.Debt) store.Debt { return debt }); err != nil {
			t.Fatal(err)
		}
		close(release)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if b.debts() != 1 {
			t.Error("what was asked for meanwhile was swallowed")
		}
		stop := b.works()
		synctest.Wait()
		stop()
		if b.debts() != 0 || len(b.fetched()) != 3 {
			t.Errorf("%d debts, %d fetches; want it paid by a fetch of its own", b.debts(), len(b.fetched()))
		}
	})
}

// Who asks again soon after a failure is told when it is really tried, also if somebody else's failure has put that off since,
// or a success has brought it forward. Else people wait for what has long been there, or come back too early.
func TestWhoAsksAgainIsToldWhenItIsTried(t *testing.T) {
	within(t, func(c *settings) { c.FailureFor = time.Hour }, func(t *testing.T, b *bed) {
		for _, step := range []struct {
			what  string
			wait  time.Duration
			other id.UserID
			does  func(context.Context, id.UserID) error
			want  time.Duration
		}{
			{"its own failure", 0, bob, down, 30 * time.Second},
			{"a while", 10 * time.Second, "", nil, 20 * time.Second},
			{"another's failure", 21 * time.Second, eve, down, time.Minute},
			{"a failure of a user unknown to it", 10 * time.Second, "@nobody:b.example", unknown, 0},
			{"a new failure", time.Second, "@joe:b.example", down, 30 * time.Second},
			{"another's success", time.Second, "@zoe:b.example", func(context.Context, id.UserID) error { return nil }, 0},
		} {
			time.Sleep(step.wait)
			if step.other != "" {
				b.does(step.does)
				_ = b.refresh("@a:a.example", step.other)
			}
			told, ok := errors.AsType[*freshen.Error](b.refresh("@c:a.example", bob))
			if !ok || told.Code != freshen.CodeRemote {
				t.Fatalf("after %s: %v", step.what, told)
			}
			stands, err := b.store.AskAgain(t.Context(), bob, []id.UserID{"@d:a.example"}, time.Now(), time.Time{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if really := max(0, time.Until(stands)); told.RetryAfter != really || really.Round(time.Second) != step.want {
				t.Errorf("after %s: told %v, and it is tried in %v; want %v", step.what, told.RetryAfter, really, step.want)
			}
		}
	})
}

// Many who ask at once are one fetch; who leaves takes nothing from the others; each of them is told of.
func TestOneFlightForMany(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		release := make(chan struct{})
		b.does(func(ctx context.Context, _ id.UserID) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			left <- b.engine.Refresh(ctx, freshen.Requester{UserID: "@first:a.example"}, bob, homeserver.Credentials{})
		}()
		synctest.Wait()
		var all sync.WaitGroup
		for i := range 49 {
			all.Go(func() {
				if err := b.refresh(id.UserID(fmt.Sprintf("@a%d:a.example", i)), bob); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		close(release)
		all.Wait()
		synctest.Wait()
		if got := len(b.fetched()); got != 1 {
			t.Errorf("%d fetches", got)
		}
		announced, _, err := b.store.Announcements(t.Context())
		if err != nil || len(announced) != 51 { // 50 who asked, and everybody
			t.Errorf("%d announcements: %v", len(announced), err)
		}
		if len(b.explore) != 50 {
			t.Errorf("the rooms of %d requesters are looked at, want 50", len(b.explore))
		}
	})
}

// Closing ends a fetch that runs, and what it was for is owed: no answer promises what is not kept.
func TestCloseOwesWhatItInterrupts(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(func(ctx context.Context, _ id.UserID) error { <-ctx.Done(); return ctx.Err() })
		done := make(chan error, 1)
		go func() { done <- b.refresh("@a:a.example", bob) }()
		synctest.Wait()
		b.stop()
		told, ok := errors.AsType[*freshen.Error](<-done)
		if !ok || told.Code != freshen.CodeRemote || told.Failure.Reason != freshen.ReasonTimeout || b.debts() != 1 {
			t.Errorf("%v with %d debts", told, b.debts())
		}
		if dest, err := b.store.Backoff(t.Context(), "b.example"); err != nil || dest.Failures != 0 {
			t.Errorf("our own stop counts against the server: %+v %v", dest, err)
		}
		if codeOf(b.refresh("@a:a.example", eve)) != freshen.CodeDatabaseAway {
			t.Error("a refresh after the end was not refused")
		}
	})
}

// What the configuration has come to deny is not asked for, and not owed either.
func TestADeniedDebtIsDropped(t *testing.T) {
	allowed := true
	within(t, func(c *settings) { c.ServerAllowed = func(string) bool { return allowed } }, func(t *testing.T, b *bed) {
		b.does(down)
		_ = b.refresh("@a:a.example", bob)
		allowed = false
		defer b.works()()
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.debts() != 0 || len(b.fetched()) != 1 {
			t.Errorf("%d debts, %d fetches", b.debts(), len(b.fetched()))
		}
		if codeOf(b.refresh("@a:a.example", bob)) != freshen.CodeForbidden {
			t.Error("a denied server was asked")
		}
	})
}

// The overlay's own refetch neither promises anybody anything nor announces to anybody who did not ask.
func TestAgainOwesNobody(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(down)
		if b.engine.Again(t.Context(), bob) || b.debts() != 0 {
			t.Errorf("%d debts", b.debts())
		}
		if b.engine.Again(t.Context(), bob) || len(b.fetched()) != 1 {
			t.Error("a failure of a moment ago was repeated: every key query would cost a request")
		}
		b.does(nil)
		time.Sleep(10 * time.Second)
		if b.engine.Again(t.Context(), bob) || b.engine.Again(t.Context(), eve) || len(b.fetched()) != 1 {
			t.Error("a destination that is backing off was asked, and nobody had asked for it")
		}
		time.Sleep(20 * time.Second)
		if !b.engine.Again(t.Context(), bob) {
			t.Error("the list was not fetched")
		}
	})
}
