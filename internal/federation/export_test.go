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
