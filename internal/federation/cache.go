package federation

import (
	"sync"
	"time"
)

// cache is a bounded map whose entries expire. A full one makes room by forgetting any entry (Go's map order): strangers
// choose the names, and no order of eviction protects the useful ones from a flood of new ones.
type cache[V any] struct {
	most int

	mu      sync.Mutex
	entries map[string]cacheEntry[V]
}

type cacheEntry[V any] struct {
	value   V
	expires time.Time
}

func newCache[V any](most int) *cache[V] {
	return &cache[V]{most: most, entries: make(map[string]cacheEntry[V])}
}

func (c *cache[V]) get(key string, now time.Time) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.entries[key]
	if ok && !now.Before(entry.expires) {
		delete(c.entries, key)
		ok = false
	}
	if !ok {
		var none V
		return none, false
	}
	return entry.value, true
}

func (c *cache[V]) put(key string, value V, expires time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.entries[key]; !known && len(c.entries) >= c.most {
		for victim := range c.entries {
			delete(c.entries, victim)
			break
		}
	}
	c.entries[key] = cacheEntry[V]{value, expires}
}
