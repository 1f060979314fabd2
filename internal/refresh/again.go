package refresh

import (
	"context"
	"errors"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
)

const (
	// notWaitedFor is how long nobody waits for a destination that has kept a key query waiting in vain.
	notWaitedFor = time.Minute
	// slowFrom is from when on a wait that ends in a failure was too long.
	slowFrom = 500 * time.Millisecond
	// maxSlow bounds how many such destinations are remembered.
	maxSlow = 10_000
)

// Again fetches a target's list for the overlay, because the one that is kept may be out of date. It shares the fetch
// with whoever asks for the same target. It does not ask a destination that is backing off, nor use up what of its rate
// is for people; ok says that the list is fresh now.
//
// The context's deadline is what the caller has to wait at most. A destination that lets it pass is still asked, but not
// waited for, for a minute: else a server that is slow, or hangs until its fetch fails, would hold up each key query that
// names one of its users, and each of those users anew.
func (e *Engine) Again(ctx context.Context, target id.UserID) (ok bool) {
	if past, known := e.recent.get(target, e.cfg.Now()); known && past.failure != nil {
		return false
	}
	destination := freshen.Destination(target)
	if !e.underway(target) {
		dest, err := e.store.Backoff(ctx, destination)
		if err != nil || e.cfg.Now().Before(dest.RetryAt) {
			return false
		}
	}
	f := e.join(target, "", homeserver.Credentials{})
	if e.slow.is(destination, e.cfg.Now()) {
		select {
		case <-f.done:
			return f.answer() == nil
		default:
			return false
		}
	}
	began := e.cfg.Now()
	var inVain bool
	select {
	case <-f.done:
		ok = f.answer() == nil
		inVain = !ok && e.cfg.Now().Sub(began) >= slowFrom
	case <-ctx.Done():
		inVain = errors.Is(ctx.Err(), context.DeadlineExceeded)
	}
	if inVain {
		e.slow.put(destination, e.cfg.Now())
	}
	return ok
}

func (e *Engine) underway(target id.UserID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.flights[target] != nil
}

// slowness is since when destinations are known to answer too late for a key query.
type slowness struct {
	mu  *sync.Mutex
	all map[string]time.Time
}

func newSlowness() slowness { return slowness{mu: new(sync.Mutex), all: map[string]time.Time{}} }

func (s slowness) is(destination string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, ok := s.all[destination]
	if ok && now.Sub(since).Abs() >= notWaitedFor { // the clock may have been set back
		delete(s.all, destination)
		return false
	}
	return ok
}

func (s slowness) put(destination string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= maxSlow {
		clear(s.all)
	}
	s.all[destination] = now
}
