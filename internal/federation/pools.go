package federation

import (
	"maps"
	"net/http"
	"slices"
	"sync"
)

const (
	// maxKept bounds the connections that are kept for later requests.
	maxKept = 256
	// maxKeptPerRoute bounds those of one route.
	maxKeptPerRoute = 2
	// maxPools bounds the pools that wait for a next request.
	maxPools = maxKept / maxKeptPerRoute
)

// pools has one [http.Transport] for each route that is in use or that has kept connections. One for all would grow
// without end: it remembers each host that it was asked for and to which no connection was kept.
type pools struct {
	open func() *http.Transport

	mu     sync.Mutex
	of     map[string]*pool // by [route.poolKey]
	unused int              // pools without users
	turn   uint64
}

// pool is the connections of one route. Everything but http is guarded by the mutex of pools.
type pool struct {
	http  *http.Transport
	key   string
	users int    // requests
	used  uint64 // when it was last left, in turns
}

func newPools(open func() *http.Transport) *pools {
	return &pools{open: open, of: map[string]*pool{}}
}

// enter returns the pool of key; who enters must leave.
func (p *pools) enter(key string) *pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.of[key]
	if !ok {
		one = &pool{http: p.open(), key: key}
		p.of[key] = one
	} else if one.users == 0 {
		p.unused--
	}
	one.users++
	return one
}

// leave is told that a request is over, and whether it went badly, see [attempt.end]. The pool of one that did goes as
// soon as nobody uses it, so that a flood of dead names costs the living ones none of their connections. Of too many
// others, the one goes that was not used for longest.
func (p *pools) leave(one *pool, bad bool) {
	var gone *pool
	p.mu.Lock()
	p.turn++
	one.used = p.turn
	if one.users--; one.users == 0 {
		p.unused++
		switch {
		case bad:
			gone = one
		case p.unused > maxPools:
			gone = p.oldest()
		}
	}
	if gone != nil {
		delete(p.of, gone.key)
		p.unused--
	}
	p.mu.Unlock()
	if gone != nil {
		gone.http.CloseIdleConnections()
	}
}

// oldest is called with mu held.
func (p *pools) oldest() *pool {
	var oldest *pool
	for _, one := range p.of {
		if one.users == 0 && (oldest == nil || one.used < oldest.used) {
			oldest = one
		}
	}
	return oldest
}

// closeKept closes all connections that no request uses.
func (p *pools) closeKept() {
	p.mu.Lock()
	all := slices.Collect(maps.Values(p.of))
	p.mu.Unlock()
	for _, one := range all {
		one.http.CloseIdleConnections()
	}
}
