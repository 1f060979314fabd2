package overlay

import "sync/atomic"

// Stats is what was done to answers since the start, and what is in hand.
type Stats struct {
	Sync, KeysQuery RouteStats
	// Polls are the syncs that are being answered or wait.
	Polls int
}

// RouteStats counts the answers of one route: those looked through, the bytes of these, and those that were added to.
type RouteStats struct{ Looked, Edited, Bytes int64 }

type counters struct{ sync, keysQuery routeCounters }

type routeCounters struct{ looked, edited, bytes atomic.Int64 }

// count adds an answer that was looked through.
func (c *routeCounters) count(bytes int64, edited bool) {
	c.looked.Add(1)
	c.bytes.Add(bytes)
	if edited {
		c.edited.Add(1)
	}
}

func (c *routeCounters) stats() RouteStats {
	return RouteStats{Looked: c.looked.Load(), Edited: c.edited.Load(), Bytes: c.bytes.Load()}
}

// Stats says what was done to answers since the start. Sliding sync counts as sync.
func (p *Proxy) Stats() Stats {
	return Stats{p.counters.sync.stats(), p.counters.keysQuery.stats(), p.Polls()}
}
