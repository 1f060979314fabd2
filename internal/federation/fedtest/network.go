package fedtest

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// Network leads connections for any address and port to listeners on loopback, so that a test can have servers on port
// 443 of many addresses. What no listener was made for refuses the connection.
type Network struct {
	tb testing.TB

	mu     sync.Mutex
	leads  map[netip.AddrPort]string
	silent map[netip.AddrPort]bool
	dialed []netip.AddrPort
}

// NewNetwork makes a network without a server.
func NewNetwork(tb testing.TB) *Network {
	return &Network{tb: tb, leads: map[netip.AddrPort]string{}, silent: map[netip.AddrPort]bool{}}
}

// Listen opens a listener that stands at addr ("127.1.0.1:443") in this network. The caller closes it.
func (n *Network) Listen(addr string) net.Listener {
	n.tb.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(n.tb.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		n.tb.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leads[netip.MustParseAddrPort(addr)] = listener.Addr().String()
	return listener
}

// Silence makes addr swallow connections: they are neither refused nor accepted.
func (n *Network) Silence(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[netip.MustParseAddrPort(addr)] = true
}

// Remove makes addr refuse connections from now on; the listener that stood there is left alone.
func (n *Network) Remove(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.leads, netip.MustParseAddrPort(addr))
}

// Dialed lists the addresses that were dialled, in order.
func (n *Network) Dialed() []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dialed)
}

// Connect dials addr within this network.
func (n *Network) Connect(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, addr)
	lead, silent := n.leads[addr], n.silent[addr]
	n.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case lead == "":
		return nil, &net.OpError{
			Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr),
			Err: os.NewSyscallError("connect", syscall.ECONNREFUSED),
		}
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp4", lead)
}
