package refresh

import (
	"fmt"
	"math"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// maxOutcomes bounds how many targets' last outcomes are remembered.
const maxOutcomes = 10_000

// outcome is how the last fetch of a target ended: failure is nil for a success, and next is when it is tried again, zero
// if that is not known here.
type outcome struct {
	at, next time.Time
	failure  *freshen.Failure
}

// outcomes is the short-lived cache of successes and failures, and of when destinations that fail are tried again.
type outcomes struct {
	successFor, failureFor time.Duration

	mu      *sync.Mutex
	all     map[id.UserID]outcome
	failing map[string]time.Time
}

func newOutcomes(successFor, failureFor time.Duration) outcomes {
	return outcomes{
		successFor: successFor, failureFor: failureFor, mu: new(sync.Mutex),
		all: map[id.UserID]outcome{}, failing: map[string]time.Time{},
	}
}

func (o outcomes) fresh(past outcome, now time.Time) bool {
	counts := o.successFor
	if past.failure != nil {
		counts = o.failureFor
	}
	return now.Sub(past.at).Abs() < counts // the clock may have been set back
}

func (o outcomes) get(target id.UserID, now time.Time) (outcome, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	past, ok := o.all[target]
	switch retryAt, failing := o.failing[freshen.Destination(target)]; {
	case !failing:
		past.next = time.Time{}
	case !past.next.IsZero() && retryAt.After(past.next):
		past.next = retryAt
	}
	return past, ok && o.fresh(past, now)
}

// backsOff notes until when a destination that fails is not asked; zero once it has answered, so that what it owes may be
// tried earlier than was known. It must be told of every change, or of none.
func (o outcomes) backsOff(destination string, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if until.IsZero() {
		delete(o.failing, destination)
		return
	}
	if len(o.failing) >= maxOutcomes {
		clear(o.failing)
	}
	o.failing[destination] = until
}

func (o outcomes) put(target id.UserID, past outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.all) >= maxOutcomes {
		for target, old := range o.all {
			if !o.fresh(old, past.at) {
				delete(o.all, target)
			}
		}
		if len(o.all) >= maxOutcomes {
			clear(o.all)
		}
	}
	o.all[target] = past
}

// tell turns a failure into what the requester is told: what failed, and when freshen tries next (zero: it does not).
func tell(failure *freshen.Failure, next, now time.Time) *freshen.Error {
	told := &freshen.Error{Code: freshen.CodeRemote, Message: failure.Sentence, Failure: failure, Err: failure.Err}
	if failure.Blames() == freshen.BlameNobody {
		told.Code = freshen.CodeForbidden
		return told
	}
	if next.IsZero() {
		return told
	}
	told.RetryAfter = max(next.Sub(now), 0)
	told.Message = fmt.Sprintf("%s freshen tries again by itself in %s.", failure.Sentence, inWords(told.RetryAfter))
	return told
}

// inWords is a duration as a person says it, rounded up: "1 second", "45 seconds", "3 minutes", "2 hours".
func inWords(d time.Duration) string {
	unit, name := time.Second, "second"
	switch {
	case d > 90*time.Minute:
		unit, name = time.Hour, "hour"
	case d > 90*time.Second:
		unit, name = time.Minute, "minute"
	}
	n := max(1, int(math.Ceil(float64(d)/float64(unit))))
	if n == 1 {
		return "1 " + name
	}
	return fmt.Sprintf("%d %ss", n, name)
}
