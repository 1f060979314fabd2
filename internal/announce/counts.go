package announce

import (
	"sync/atomic"
	"time"
)

type counters struct {
	announced atomic.Int64
	// woken is told how long the answer of a woken poll took to begin; nil for nobody.
	woken func(time.Duration)
}

// Count says how many announcements were made or heard of since the start.
func (a *Announcer) Count() int64 { return a.counters.announced.Load() }

// OnWoken has told be called when the answer of a poll begins that was woken, with how long that took. It must not
// block, and be set before the first poll.
func (a *Announcer) OnWoken(told func(time.Duration)) { a.counters.woken = told }
