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
	if whole.Before(now) {
		whole = now
	}
	next := whole.Add(r.Every)
	if ahead := next.Sub(now) - time.Duration(r.Burst)*r.Every; ahead > 0 {
		return whole, ahead
	}
	return next, 0
}

// maxKeys bounds the keys that a limiter remembers. Past it, those whose allowance is whole again are forgotten.
const maxKeys = 100_000

// Limiter holds many keys to one rate, in memory. Its methods are safe for concurrent use.
type Limiter struct {
	rate Rate

	mu    sync.Mutex
	whole map[string]time.Time
}

// New returns a limiter that has seen nobody yet.
func New(rate Rate) *Limiter {
	return &Limiter{rate: rate, whole: map[string]time.Time{}}
}

// Take uses up one request of key's. If none is left it uses up nothing, and wait is how long until one is.
func (l *Limiter) Take(key string, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.whole) >= maxKeys {
		l.forget(now)
	}
	whole, wait := l.rate.Take(l.whole[key], now)
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
