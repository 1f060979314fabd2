// Package dial opens TCP connections for names that strangers chose. It resolves a name, refuses every address that
// lies in a network set aside for other uses, and dials exactly an address that it has checked: a name server that
// answers differently the second time gains nothing, since nothing is looked up twice.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// attemptDelay is how long one address may stay silent before the next is tried beside it (RFC 8305 §5).
	attemptDelay = 250 * time.Millisecond
	// maxAddresses bounds how many addresses of one name are tried: a name server may list hundreds.
	maxAddresses = 8
)

// Resolver looks names up; *net.Resolver is one. LookupSRV returns targets in the order in which they are to be tried
// (RFC 2782: by priority, within one priority drawn by weight).
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Dialer is ready with its zero value. It may be used by several goroutines at once; its fields must not change then.
type Dialer struct {
	// Resolver is net.DefaultResolver if nil.
	Resolver Resolver
	// Allow opens networks that would be refused.
	Allow []netip.Prefix
	// Connect opens the connection to an address that was checked; nil means the net package's dialler.
	Connect func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
}

// DeniedError says that every address of a host lies in a network that may not be dialled.
type DeniedError struct {
	Host    string
	Addr    netip.Addr // one of them
	Network Network    // where Addr lies
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("all addresses of %s are refused: %s is %s (%s)", e.Host, e.Addr, e.Network.What, e.Network.Source)
}

// Dial connects to port of host, a DNS name or an IP literal without brackets, within ctx. IPv6 and IPv4 addresses take
// turns, each next one is tried when the last failed or has been silent for 250 ms; the first connection wins (RFC
// 8305). The error is a *[DeniedError] if no address may be dialled, a *net.DNSError if there is none, else it wraps
// the failure of each address.
func (d *Dialer) Dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	addrs, err := d.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var denied *DeniedError
	addrs = slices.DeleteFunc(addrs, func(addr netip.Addr) bool {
		network, refuse := refusal(addr, d.Allow)
		if refuse && denied == nil {
			denied = &DeniedError{Host: host, Addr: addr, Network: network}
		}
		return refuse
	})
	switch {
	case len(addrs) > 0:
		return d.race(ctx, takeTurns(addrs), port)
	case denied != nil:
		return nil, denied
	}
	return nil, &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
}

func (d *Dialer) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	addrs, err := d.resolver().LookupNetIP(ctx, "ip", Absolute(host))
	if err != nil {
		return nil, err
	}
	// Resolvers may give the addresses of A records as IPv4-mapped IPv6; it is the IPv4 address that is checked and
	// dialled. Only literals are still told apart.
	unmapped := make([]netip.Addr, 0, len(addrs))
	for _, addr := range addrs {
		unmapped = append(unmapped, addr.Unmap())
	}
	return unmapped, nil
}

// LookupSRV asks for _service._tcp.name.
func (d *Dialer) LookupSRV(ctx context.Context, service, name string) ([]*net.SRV, error) {
	_, targets, err := d.resolver().LookupSRV(ctx, service, "tcp", Absolute(name))
	if len(targets) > 0 {
		// Beside usable records there may be an error about others, whose names are no names.
		return targets, nil
	}
	return nil, err
}

func (d *Dialer) resolver() Resolver {
	if d.Resolver == nil {
		return net.DefaultResolver
	}
	return d.Resolver
}

// Absolute keeps a name of several labels from being looked up below the search domains of this machine, where it would
// be another's name. A single label stays as it is: container networks know their hosts by such names.
func Absolute(name string) string {
	if !strings.Contains(name, ".") || strings.HasSuffix(name, ".") {
		return name
	}
	return name + "."
}

// takeTurns orders addresses so that the families alternate, beginning with the resolver's first, and bounds them.
func takeTurns(addrs []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, addr := range addrs {
		if addr.Is4() == addrs[0].Is4() {
			first = append(first, addr)
		} else {
			second = append(second, addr)
		}
	}
	ordered := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			ordered = append(ordered, first[i])
		}
		if i < len(second) {
			ordered = append(ordered, second[i])
		}
	}
	return ordered[:min(len(ordered), maxAddresses)]
}

type outcome struct {
	conn net.Conn
	err  error
}

// race returns when the first attempt has won or all have lost; what still runs is cancelled, and closes its connection
// should it get one.
func (d *Dialer) race(ctx context.Context, addrs []netip.Addr, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan outcome) // unbuffered: a conn has a receiver or is closed by its own goroutine
	attempt := func(addr netip.Addr) {
		conn, err := d.connect(ctx, netip.AddrPortFrom(addr, port))
		select {
		case done <- outcome{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				_ = conn.Close()
			}
		}
	}
	var errs []error
	next, running := 0, 0
	silence := time.NewTimer(0)
	defer silence.Stop()
	for {
		select {
		case <-silence.C:
		case result := <-done:
			running--
			if result.err == nil {
				return result.conn, nil
			}
			errs = append(errs, result.err)
			if next == len(addrs) && running == 0 {
				return nil, errors.Join(errs...)
			}
		case <-ctx.Done():
			return nil, errors.Join(append(errs, ctx.Err())...)
		}
		if next < len(addrs) {
			go attempt(addrs[next])
			next, running = next+1, running+1
			silence.Reset(attemptDelay)
		}
	}
}

func (d *Dialer) connect(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	if d.Connect != nil {
		return d.Connect(ctx, addr)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", addr.String())
}
