// Package limit is the generic cell rate algorithm (ITU-T I.371), per key: what is remembered of a key is the one time at
// which its allowance will be whole again.
package limit

import (
	"sync"
	"time"
)

// Rate allows a burst, and then one request every Every.
type Rate struct {
	Every time.Duration
	Burst int
}

// Take uses up one request of an allowance that will be whole again at whole, and returns when it will be then. If none
// is left, whole stays and wait is how long until one is.
func (r Rate) Take(whole, now time.Time) (_ time.Time, wait time.Duration) {
	return r.take(whole, now, 0)
}

// TakeSpare is Take for what nobody waits for: it leaves half of the burst to those who do.
func (r Rate) TakeSpare(whole, now time.Time) (_ time.Time, wait time.Duration) {
	return r.take(whole, now, r.Burst/2)
}

func (r Rate) take(whole, now time.Time, leave int) (_ time.Time, wait time.Duration) {
	// Later than a whole burst takes is what was used before the clock was set back; it says nothing any more.
	if whole.Before(now) || whole.After(now.Add(time.Duration(r.Burst)*r.Every)) {
		whole = now
	}
	next := whole.Add(r.Every)
	if ahead := next.Sub(now) - time.Duration(r.Burst-leave)*r.Every; ahead > 0 {
		return whole, ahead
	}
	return next, 0
}

// maxKeys bounds the keys that a limiter remembers. Past it, those whose allowance is whole again are forgotten.
const maxKeys = 100_000

// Limiter holds many keys to one rate, in memory. Its methods are safe for concurrent use.
type Limiter struct {
	mu    sync.Mutex
	rate  Rate
	whole map[string]time.Time
}

// New returns a limiter that has seen nobody yet.
func New(rate Rate) *Limiter {
	return &Limiter{rate: rate, whole: map[string]time.Time{}}
}

// SetRate holds all keys to another rate from now on. What they have used up stays so.
func (l *Limiter) SetRate(rate Rate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = rate
}

// Take uses up one request of key's. If none is left it uses up nothing, and wait is how long until one is.
func (l *Limiter) Take(key string, now time.Time) (wait time.Duration) {
	return l.take(Rate.Take, key, now)
}

// TakeSpare is Take for what nobody waits for: see [Rate.TakeSpare].
func (l *Limiter) TakeSpare(key string, now time.Time) (wait time.Duration) {
	return l.take(Rate.TakeSpare, key, now)
}

func (l *Limiter) take(take func(r Rate, whole, now time.Time) (time.Time, time.Duration), key string, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.whole) >= maxKeys {
		l.forget(now)
	}
	whole, wait := take(l.rate, l.whole[key], now)
	if wait == 0 {
		l.whole[key] = whole
	}
	return wait
}

// forget makes room. Where nobody's allowance is whole, it forgets all: letting some through early is better than
// growing without end.
func (l *Limiter) forget(now time.Time) {
	for key, whole := range l.whole {
		if whole.Before(now) {
			delete(l.whole, key)
		}
	}
	if len(l.whole) >= maxKeys {
		clear(l.whole)
	}
}
