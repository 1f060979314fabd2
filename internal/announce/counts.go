package announce

import (
	"sync/atomic"
	"time"
)

// Counts is what an Announcer has done since the start, and has in hand.
type Counts struct {
	// Announced counts announcements that were made or heard of.
	Announced int64
	// Polls are those between Begin and End.
	Polls int64
}

type counters struct {
	announced, polls atomic.Int64
	// woken is told how long the answer of a woken poll took to begin; nil for nobody.
	woken func(time.Duration)
}

// Counts says what was done.
func (a *Announcer) Counts() Counts {
	return Counts{Announced: a.counters.announced.Load(), Polls: a.counters.polls.Load()}
}

// OnWoken has told be called when the answer of a poll begins that was woken, with how long that took. It must not
// block, and be set before the first poll.
func (a *Announcer) OnWoken(told func(time.Duration)) { a.counters.woken = told }
