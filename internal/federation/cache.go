package federation

import (
	"sync"
	"time"
)

// entryCost is what an entry takes beside what its strings take, roughly.
const entryCost = 256

// cache is a map whose entries expire, bounded in entries and in bytes. A full one makes room by forgetting any entry
// (Go's map order): strangers choose the names, and no order of eviction protects the useful ones from a flood of new
// ones.
type cache[V any] struct {
	most      int
	mostBytes int

	mu      sync.Mutex
	entries map[string]cacheEntry[V]
	bytes   int
}

type cacheEntry[V any] struct {
	value   V
	bytes   int
	expires time.Time
}

func newCache[V any](most, mostBytes int) *cache[V] {
	return &cache[V]{most: most, mostBytes: mostBytes, entries: make(map[string]cacheEntry[V])}
}

func (c *cache[V]) get(key string, now time.Time) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.entries[key]
	if ok && !now.Before(entry.expires) {
		c.forget(key)
		ok = false
	}
	if !ok {
		var none V
		return none, false
	}
	return entry.value, true
}

// put keeps value, whose strings have so many bytes. What alone is more than the cache may hold is not kept.
func (c *cache[V]) put(key string, value V, bytes int, expires time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	bytes += len(key) + entryCost
	c.forget(key)
	if bytes > c.mostBytes {
		return
	}
	for victim := range c.entries {
		if len(c.entries) < c.most && c.bytes+bytes <= c.mostBytes {
			break
		}
		c.forget(victim)
	}
	c.entries[key] = cacheEntry[V]{value, bytes, expires}
	c.bytes += bytes
}

// forget is called with mu held.
func (c *cache[V]) forget(key string) {
	if entry, known := c.entries[key]; known {
		delete(c.entries, key)
		c.bytes -= entry.bytes
	}
}
