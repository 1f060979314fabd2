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

// Ending is how a debt ends.
type Ending string

const (
	// Owed is no ending: the debt lives.
	Owed Ending = ""
	// Paid: a fetch succeeded.
	Paid Ending = "paid"
	// GivenUp: it was last asked for too long ago.
	GivenUp Ending = "given_up"
	// Denied: the configuration denies the destination, or the networks that it is in.
	Denied Ending = "denied"
	// NobodyShares: none of those who were promised it shares a room with the target any more.
	NobodyShares Ending = "nobody_shares"
	// Dropped: the administrator ended it.
	Dropped Ending = "dropped"
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

// spread is the jitter; random is from [0, 1).
func spread(wait time.Duration, random float64) time.Duration {
	return time.Duration(float64(wait) * (1 - jitter + 2*jitter*random))
}

// Longest is the longest that anything waits.
func (p Policy) Longest() time.Duration {
	return max(maxRetryAfter, spread(max(p.Most, userMost), 1))
}

// Expired says whether a debt that was last asked for at askedAt is given up at its next failure.
func (p Policy) Expired(askedAt, now time.Time) bool { return !now.Before(askedAt.Add(p.GiveUpAfter)) }

// Failure says how a failure at now changes the states of its destination and debt. It is pure; random is from [0, 1).
func (p Policy) Failure(dest store.Destination, debt store.Debt, f *freshen.Failure, now time.Time, random float64) (store.Destination, store.Debt, Ending) {
	switch f.Blames() {
	case freshen.BlameNobody:
		return dest, debt, Denied
	case freshen.BlameDestination:
		if !now.Before(dest.RetryAt) {
			if dest.Failures == 0 {
				dest.FailingSince = now
			}
			dest.Failures++
			dest.RetryAt = now.Add(spread(Wait(dest.Failures, p.First, p.Most), random))
		}
		dest.RetryAt = later(dest.RetryAt, now.Add(retryAfter(f)))
		dest.Reason, dest.Sentence = f.Reason, f.Sentence
		if debt.Lease != "" { // the claim moved DueAt to the lease's end
			debt.DueAt = now
		}
		debt.Reason, debt.Sentence = f.Reason, f.Sentence
	case freshen.BlameUser:
		dest = store.Destination{Name: dest.Name}
		debt = failUser(debt, f, now, random)
	}
	if p.Expired(debt.AskedAt, now) {
		return dest, debt, GivenUp
	}
	return dest, debt, Owed
}

func failUser(debt store.Debt, f *freshen.Failure, now time.Time, random float64) store.Debt {
	if debt.Lease != "" || !now.Before(debt.DueAt) {
		debt.Failures++
		debt.DueAt = now.Add(spread(Wait(debt.Failures, userFirst, userMost), random))
	}
	debt.DueAt = later(debt.DueAt, now.Add(retryAfter(f)))
	debt.Reason, debt.Sentence = f.Reason, f.Sentence
	return debt
}

// Begins says how a debt begins when a client is told of a failure for which nothing has been fetched just now: it waits
// as past wants, that of a moment ago; nil where there is none to wait for. It is pure.
func (p Policy) Begins(debt store.Debt, past *freshen.Failure, now time.Time, random float64) store.Debt {
	debt.DueAt = now
	if past == nil {
		return debt
	}
	if past.Blames() == freshen.BlameUser {
		return failUser(debt, past, now, random)
	}
	debt.Reason, debt.Sentence = past.Reason, past.Sentence
	return debt
}

func retryAfter(f *freshen.Failure) time.Duration { return min(f.RetryAfter, maxRetryAfter) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
