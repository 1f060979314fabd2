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
	c.sockets = dial.NewSockets(most, func() { c.transport.http.CloseIdleConnections() })
	c.transport.router.dialer.Sockets = c.sockets
}

// OpenSockets counts them.
func (c *Client) OpenSockets() int { return c.sockets.Open() }

// Cached counts what the caches hold.
func (c *Client) Cached() (routes, delegations int) {
	r := c.transport.router
	return len(r.routes.entries), len(r.delegations.entries)
}

// CloseIdle closes the kept connections, so that a test can see what else is left.
func (c *Client) CloseIdle() { c.transport.http.CloseIdleConnections() }
