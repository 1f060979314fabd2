package refresh

import (
	"sync"
	"time"
)

// Limit allows a burst, and then one request every Every.
type Limit struct {
	Every time.Duration
	Burst int
}

// maxLimited bounds the keys that a limiter remembers. Past it, those whose allowance is whole again are forgotten.
const maxLimited = 100_000

// limiter is the generic cell rate algorithm (ITU-T I.371), per key: it remembers but the one time at which the key's
// allowance will be whole again.
type limiter struct {
	limit Limit

	mu    sync.Mutex
	whole map[string]time.Time
}

func newLimiter(limit Limit) *limiter {
	return &limiter{limit: limit, whole: map[string]time.Time{}}
}

// take uses up one request of key's. If none is left it uses up nothing, and wait is how long until one is.
func (l *limiter) take(key string, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.whole) >= maxLimited {
		l.forget(now)
	}
	whole := l.whole[key]
	if whole.Before(now) {
		whole = now
	}
	whole = whole.Add(l.limit.Every)
	if ahead := whole.Sub(now) - time.Duration(l.limit.Burst)*l.limit.Every; ahead > 0 {
		return ahead
	}
	l.whole[key] = whole
	return 0
}

// forget makes room. Where nobody's allowance is whole, it forgets all: letting some through early is better than
// growing without end.
func (l *limiter) forget(now time.Time) {
	for key, whole := range l.whole {
		if whole.Before(now) {
			delete(l.whole, key)
		}
	}
	if len(l.whole) >= maxLimited {
		clear(l.whole)
	}
}
