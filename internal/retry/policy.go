package retry

import (
	"time"

	"freshen"
	"freshen/internal/store"
)

// Waits of a user whose server is fine, but answers about them with an error.
const (
	userFirst = time.Hour
	userMost  = 24 * time.Hour
	// maxRetryAfter bounds what a destination can ask us to wait.
	maxRetryAfter = 24 * time.Hour
	// jitter spreads waits over ±25 %, so that debts of one outage do not come back together.
	jitter = 0.25
)

// Policy is the configuration of the retry state machines.
type Policy struct {
	// First and Most bound a destination's wait; it doubles in between.
	First, Most time.Duration
	// GiveUpAfter is how long after it was last asked for a debt lives.
	GiveUpAfter time.Duration
}

// Wait is how long to wait after the given number of failures in a row (1 is the first), before jitter.
func Wait(failures int, first, most time.Duration) time.Duration {
	wait := first
	for range failures - 1 {
		if wait >= most/2 {
			return most
		}
		wait *= 2
	}
	return min(wait, most)
}

// Failure says how a failure at now changes the states of its destination and debt. It is pure; random is from [0, 1).
// owed is false where the debt ends: it is too old, or nothing is owed to whom the configuration denies.
func (p Policy) Failure(dest store.Destination, debt store.Debt, f *freshen.Failure, now time.Time, random float64) (_ store.Destination, _ store.Debt, owed bool) {
	spread := func(wait time.Duration) time.Duration {
		return time.Duration(float64(wait) * (1 - jitter + 2*jitter*random))
	}
	switch f.Blames() {
	case freshen.BlameNobody:
		return dest, debt, false
	case freshen.BlameDestination:
		if !now.Before(dest.RetryAt) {
			if dest.Failures == 0 {
				dest.FailingSince = now
			}
			dest.Failures++
			dest.RetryAt = now.Add(spread(Wait(dest.Failures, p.First, p.Most)))
		}
		dest.RetryAt = later(dest.RetryAt, now.Add(min(f.RetryAfter, maxRetryAfter)))
		dest.Reason, dest.Sentence = f.Reason, f.Sentence
		if debt.Lease != "" { // the claim moved DueAt to the lease's end
			debt.DueAt = now
		}
	case freshen.BlameUser:
		dest = store.Destination{Name: dest.Name}
		if debt.Lease != "" || !now.Before(debt.DueAt) {
			debt.Failures++
			debt.DueAt = now.Add(spread(Wait(debt.Failures, userFirst, userMost)))
		}
		debt.DueAt = later(debt.DueAt, now.Add(min(f.RetryAfter, maxRetryAfter)))
	}
	debt.Reason, debt.Sentence = f.Reason, f.Sentence
	return dest, debt, now.Before(debt.AskedAt.Add(p.GiveUpAfter))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
