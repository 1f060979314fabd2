package retry_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"freshen"
	"freshen/internal/retry"
	"freshen/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	start  = time.UnixMilli(1_700_000_000_000)
	policy = retry.Policy{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 7 * 24 * time.Hour}
	down   = &freshen.Failure{Destination: "b.org", Reason: freshen.ReasonConnect, Sentence: "b.org refused the connection."}
	busy   = &freshen.Failure{Destination: "b.org", Reason: freshen.ReasonHTTP, Status: 429, RetryAfter: time.Hour}
	absent = &freshen.Failure{Destination: "b.org", Reason: freshen.ReasonHTTP, Status: 404, ErrCode: "M_NOT_FOUND"}
	gone   = &freshen.Failure{Destination: "b.org", Reason: freshen.ReasonHTTP, Status: 404}
	denied = &freshen.Failure{Destination: "b.org", Reason: freshen.ReasonDenied}
)

func TestWaitDoublesUpToTheMost(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		1: 30 * time.Second, 2: time.Minute, 3: 2 * time.Minute, 10: 4*time.Hour + 16*time.Minute, 11: 6 * time.Hour, 1_000_000: 6 * time.Hour,
	} {
		if got := retry.Wait(failures, policy.First, policy.Most); got != want {
			t.Errorf("after %d failures it waits %v, not %v", failures, got, want)
		}
	}
}

func owed(at time.Time) (store.Destination, store.Debt) {
	return store.Destination{Name: "b.org"}, store.Debt{Target: "@bob:b.org", Destination: "b.org", AskedAt: at, DueAt: at}
}

// A server that is down is left alone for longer each time; its users are not to blame for it.
func TestADestinationThatFails(t *testing.T) {
	dest, debt := owed(start)
	now := start
	for i, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute} {
		var ended retry.Ending
		dest, debt, ended = policy.Failure(dest, debt, down, now, 0.5)
		if ended != retry.Owed || dest.Failures != i+1 || !dest.RetryAt.Equal(now.Add(want)) || debt.Failures != 0 || debt.DueAt.After(now) {
			t.Fatalf("failure %d: %+v %+v %v", i+1, dest, debt, ended)
		}
		now = dest.RetryAt
	}
	if !dest.FailingSince.Equal(start) {
		t.Errorf("failing since %v", dest.FailingSince)
	}
}

// Pressing the button while a server is down must not push the retry away from everybody.
func TestAFailureDuringBackoffChangesNoSchedule(t *testing.T) {
	dest, debt := owed(start)
	dest, debt, _ = policy.Failure(dest, debt, down, start, 0.5)
	again, _, _ := policy.Failure(dest, debt, down, start.Add(time.Second), 0.5)
	if again != dest {
		t.Errorf("the schedule went from %+v to %+v", dest, again)
	}
}

func TestRetryAfterIsHonouredUpToADay(t *testing.T) {
	dest, debt := owed(start)
	dest, _, _ = policy.Failure(dest, debt, busy, start, 0.5)
	if !dest.RetryAt.Equal(start.Add(time.Hour)) {
		t.Errorf("asked to wait an hour, waits until %v", dest.RetryAt)
	}
	forEver := *busy
	forEver.RetryAfter = 1000 * time.Hour
	dest, debt = owed(start)
	dest, _, _ = policy.Failure(dest, debt, &forEver, start, 0.5)
	if !dest.RetryAt.Equal(start.Add(24 * time.Hour)) {
		t.Errorf("a server can make us wait until %v", dest.RetryAt)
	}
}

// One user whom their server does not know must hold back nobody else there.
func TestAUserWhoIsToBlame(t *testing.T) {
	dest, debt := owed(start)
	dest, _, _ = policy.Failure(dest, debt, down, start, 0.5)
	dest, debt, ended := policy.Failure(dest, debt, absent, start.Add(time.Minute), 0.5)
	if ended != retry.Owed || dest.Failures != 0 || !dest.RetryAt.IsZero() {
		t.Errorf("the destination answered, and stands at %+v", dest)
	}
	if !debt.DueAt.Equal(start.Add(time.Minute + time.Hour)) {
		t.Errorf("the user waits until %v", debt.DueAt)
	}
	debt.Lease = "claimed"
	now := debt.DueAt
	_, debt, _ = policy.Failure(dest, debt, absent, now, 0.5)
	if !debt.DueAt.Equal(now.Add(2 * time.Hour)) {
		t.Errorf("the second failure waits until %v", debt.DueAt)
	}
	if dest, _, _ := policy.Failure(dest, debt, gone, now, 0.5); dest.Failures != 1 {
		t.Error("a 404 that is no Matrix error is a host that is no homeserver any more; it counted against the user")
	}
}

func TestDebtsEnd(t *testing.T) {
	dest, debt := owed(start)
	if _, _, ended := policy.Failure(dest, debt, down, start.Add(policy.GiveUpAfter-time.Second), 0.5); ended != retry.Owed {
		t.Errorf("%s before its time", ended)
	}
	if _, _, ended := policy.Failure(dest, debt, down, start.Add(policy.GiveUpAfter), 0.5); ended != retry.GivenUp {
		t.Errorf("after its time it is %q", ended)
	}
	if after, _, ended := policy.Failure(dest, debt, denied, start, 0.5); ended != retry.Denied || after != dest {
		t.Errorf("a debt to a destination that the configuration denies is %q", ended)
	}
}

// Who gets a failure that was somebody else's is promised the same as they: not sooner, which would have a user whom
// nobody knows asked for at once, nor later.
func TestAPromiseWithoutAFetch(t *testing.T) {
	none := store.Debt{Target: "@bob:b.org", Destination: "b.org", Gen: 1, AskedAt: start}
	for name, c := range map[string]struct {
		past *freshen.Failure
		due  time.Time
	}{"none": {nil, start}, "the destination's": {down, start}, "the user's": {absent, start.Add(time.Hour)}} {
		debt := policy.Begins(none, c.past, start, 0.5)
		if !debt.DueAt.Equal(c.due) || debt.Gen != 1 || !debt.AskedAt.Equal(start) {
			t.Errorf("after %s failure a new debt is %+v", name, debt)
		}
	}
}

// Whatever happens, a wait is never negative or beyond bounds, and only an answer shortens it.
func TestBackoffInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dest, debt := owed(start)
		now := start
		failures := []*freshen.Failure{down, busy, absent, gone}
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(8*time.Hour)).Draw(t, "pause")))
			f := failures[rapid.IntRange(0, len(failures)-1).Draw(t, "failure")]
			before := dest
			dest, debt, _ = policy.Failure(dest, debt, f, now, rapid.Float64Range(0, 0.999999).Draw(t, "random"))
			switch {
			case f.Blames() == freshen.BlameDestination && dest.RetryAt.Before(before.RetryAt):
				t.Fatalf("a failure shortened the wait from %v to %v", before.RetryAt, dest.RetryAt)
			case f.Blames() == freshen.BlameDestination && dest.RetryAt.Before(now):
				t.Fatalf("a failing destination is due at once")
			case dest.RetryAt.After(now.Add(policy.Longest())) || debt.DueAt.After(now.Add(policy.Longest())):
				t.Fatalf("waits for %v and %v", dest.RetryAt.Sub(now), debt.DueAt.Sub(now))
			}
		}
	})
}
