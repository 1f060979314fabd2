package federation

import (
	"context"
	"net"
	"net/netip"

	"freshen/internal/federation/dial"
)

// SetConnect replaces how a checked address is connected to. It must be called before the first request.
func (c *Client) SetConnect(connect func(context.Context, netip.AddrPort) (net.Conn, error)) {
	c.transport.router.dialer.Connect = connect
}

// SetMaxSockets replaces how many sockets may be open. It must be called before the first request.
func (c *Client) SetMaxSockets(most int) {
	c.sockets = dial.NewSockets(most, func() { c.transport.pools.closeKept() })
	c.transport.router.dialer.Sockets = c.sockets
}

// ShrinkCaches replaces how many servers are remembered. It must be called before the first request.
func (c *Client) ShrinkCaches(most int) {
	c.transport.router.routes = newCache[*route](most, maxCachedBytes)
	c.transport.router.delegations = newCache[delegation](most, maxCachedBytes)
}

// Pools counts the routes that have connections of their own, or had lately.
func (c *Client) Pools() int {
	p := c.transport.pools
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.of)
}

// OpenSockets counts them.
func (c *Client) OpenSockets() int { return c.sockets.Open() }

// Cached counts what the caches hold.
func (c *Client) Cached() (routes, delegations int) {
	r := c.transport.router
	return len(r.routes.entries), len(r.delegations.entries)
}

// CloseIdle closes the kept connections, so that a test can see what else is left.
func (c *Client) CloseIdle() { c.transport.pools.closeKept() }
