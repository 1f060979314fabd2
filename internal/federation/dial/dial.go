// Package dial opens TCP connections for names that strangers chose. It resolves a name, refuses every address that
// lies in a network set aside for other uses, and dials exactly an address that it has checked: a name server that
// answers differently the second time gains nothing, since nothing is looked up twice.
package dial

import (
	"context"
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
	// handshakeDelay is how long an address that has let itself be connected to may take for the handshake before the
	// next is tried beside it: there is somebody, perhaps far away, so it is longer than attemptDelay.
	handshakeDelay = time.Second
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
	// Sockets bounds what is open at once; nil bounds nothing.
	Sockets *Sockets
	// Connect opens the connection to an address that was checked; nil means the net package's dialler.
	Connect func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
}

// Secure makes a connection one that can be used, by the TLS handshake. It does not close conn when it fails.
type Secure func(ctx context.Context, conn net.Conn) (net.Conn, error)

// DeniedError says that every address of a host lies in a network that may not be dialled.
type DeniedError struct {
	Host    string
	Addr    netip.Addr // one of them
	Network Network    // where Addr lies
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("all addresses of %s are refused: %s is %s (%s)", e.Host, e.Addr, e.Network.What, e.Network.Source)
}

// Stage is how far an address got.
type Stage int

const (
	StageWaiting   Stage = iota // for a free socket
	StageConnect                // until there is a TCP connection
	StageHandshake              // in Secure
)

// Error is the failure of every address of a host that was tried.
type Error struct {
	Host  string
	Port  uint16
	Addrs []AddrError // in the order in which they were tried, at least one
}

// AddrError is the failure of one address.
type AddrError struct {
	Addr  netip.Addr
	Stage Stage
	Took  time.Duration // in that stage
	Err   error
}

func (e *Error) Error() string {
	texts := make([]string, len(e.Addrs))
	for i, addr := range e.Addrs {
		texts[i] = addr.Error()
	}
	return strings.Join(texts, "; ")
}

func (e *Error) Unwrap() []error {
	errs := make([]error, len(e.Addrs))
	for i := range e.Addrs {
		errs[i] = &e.Addrs[i]
	}
	return errs
}

func (e *AddrError) Error() string {
	stage := [...]string{"waiting to dial", "connecting to", "TLS with"}[e.Stage]
	return fmt.Sprintf("%s %s: %v", stage, e.Addr, e.Err)
}

func (e *AddrError) Unwrap() error { return e.Err }

// Dial connects to port of host, a DNS name or an IP literal without brackets, within ctx, and hands the connection, a
// *[Socket], to secure (nil: none). IPv6 and IPv4 addresses take turns, each next one is tried when the last failed or
// was silent for too long; the first that passes secure wins (RFC 8305, of which this differs in that the race is over
// connection and handshake: an address where another's server stands must not hide the right one). The name lookup may
// take up half of the time. The error is a *[DeniedError] if no address may be dialled, a *net.DNSError if there is
// none, ErrBusy if there was no free socket for the lookup, else an *[Error].
func (d *Dialer) Dial(ctx context.Context, host string, port uint16, secure Secure) (net.Conn, error) {
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
		r := &race{dialer: d, host: host, port: port, addrs: takeTurns(addrs), secure: secure}
		return r.run(ctx)
	case denied != nil:
		return nil, denied
	}
	return nil, &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
}

func (d *Dialer) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
	}
	if err := d.Sockets.acquire(ctx); err != nil {
		return nil, err
	}
	defer d.Sockets.release()
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

// LookupSRV asks for _service._tcp.name. The error is a *net.DNSError or ErrBusy.
func (d *Dialer) LookupSRV(ctx context.Context, service, name string) ([]*net.SRV, error) {
	if err := d.Sockets.acquire(ctx); err != nil {
		return nil, err
	}
	defer d.Sockets.release()
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
