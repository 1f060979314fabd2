package federation

import (
	"context"
	"net"
	"net/netip"
)

// SetConnect replaces how a checked address is connected to. It must be called before the first request.
func (c *Client) SetConnect(connect func(context.Context, netip.AddrPort) (net.Conn, error)) {
	c.transport.router.dialer.Connect = connect
}

// Cached counts what the caches hold.
func (c *Client) Cached() (routes, delegations int) {
	r := c.transport.router
	return len(r.routes.entries), len(r.delegations.entries)
}

// CloseIdle closes the kept connections, so that a test can see what else is left.
func (c *Client) CloseIdle() { c.transport.http.CloseIdleConnections() }
