package federation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/dial"
)

const (
	defaultPort = 8448
	// routeLifetime is how long a route with its SRV targets is used again without asking. Resolvers do not tell the
	// lifetime of records, so it is short; it only keeps a burst of requests from asking each time.
	routeLifetime = time.Minute
	// maxTargets bounds how many SRV targets are tried.
	maxTargets = 8
	// srvMostTime bounds each SRV lookup.
	srvMostTime = 3 * time.Second
	// maxCached bounds each cache, in destinations.
	maxCached = 10_000
)

// route is where and how a server is reached.
type route struct {
	host    string   // the Host header
	tlsName string   // the name or address that the certificate must be for
	targets []target // in the order in which they are tried, at least one
	// poolKey stands in for the host towards net/http, so that connections are shared exactly between requests with the
	// same route: a changed delegation or SRV record is never answered from a connection to the old place.
	poolKey string
	// wellKnownErr says why there is no delegation, where one was looked for.
	wellKnownErr error
}

// target is a host, a DNS name or an IP literal without brackets, and a port.
type target struct {
	host string
	port uint16
}

func (t target) String() string {
	return net.JoinHostPort(t.host, strconv.Itoa(int(t.port)))
}

// router finds the route to a server name (server-server API, "Resolving server names").
type router struct {
	dialer    *dial.Dialer
	wellKnown *http.Client
	userAgent string
	now       func() time.Time

	routes      *cache[*route]
	delegations *cache[delegation]
}

// errNoService is an SRV record whose target is the root (RFC 2782).
var errNoService = errors.New("its SRV record says that it offers no federation")

// tcpDialer is what the well-known client needs of *dial.Dialer.
type tcpDialer interface {
	Dial(ctx context.Context, host string, port uint16) (net.Conn, error)
}

// find returns the route to name, which must be a valid server name. It fails only where the name server says that
// there is no federation, or with the error of ctx.
func (r *router) find(ctx context.Context, name string) (*route, error) {
	if known, ok := r.routes.get(name, r.now()); ok {
		return known, nil
	}
	found, lifetime, err := r.discover(ctx, name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if lifetime > 0 {
		r.routes.put(name, found, r.now().Add(lifetime))
	}
	return found, nil
}

// discover also returns how long the route may be kept, 0 for not at all.
func (r *router) discover(ctx context.Context, name string) (*route, time.Duration, error) {
	parsed, err := parseName(name)
	if err != nil {
		return nil, 0, err
	}
	if parsed.direct() {
		return newRoute(parsed, []target{parsed.target()}), routeLifetime, nil
	}
	told := r.delegate(ctx, parsed.host)
	lifetime := min(routeLifetime, told.expires.Sub(r.now()))
	if told.err == nil {
		if parsed, err = parseName(told.server); err != nil {
			return nil, 0, err
		}
		if parsed.direct() {
			return newRoute(parsed, []target{parsed.target()}), lifetime, nil
		}
	}
	targets, sure, err := r.srv(ctx, parsed.host)
	if err != nil {
		return nil, 0, err
	}
	if !sure {
		lifetime = 0
	}
	if len(targets) == 0 {
		targets = []target{parsed.target()}
	}
	found := newRoute(parsed, targets)
	found.wellKnownErr = told.err
	return found, lifetime, nil
}

// srv returns the targets of host's SRV records, of the newer service name if that has any, else of the older. A name
// server that fails is taken as having none, but then the answer is not sure: hosts exist whose name server fails on
// SRV and whose homeserver stands on port 8448.
func (r *router) srv(ctx context.Context, host string) (targets []target, sure bool, err error) {
	sure = true
	for _, service := range []string{"matrix-fed", "matrix"} {
		limited, cancel := context.WithTimeout(ctx, share(ctx, 3, srvMostTime))
		records, err := r.dialer.LookupSRV(limited, service, host)
		cancel()
		if dnsErr, ok := errors.AsType[*net.DNSError](err); err != nil && (!ok || !dnsErr.IsNotFound) {
			sure = false
		}
		for _, record := range records[:min(len(records), maxTargets)] {
			if name := strings.TrimSuffix(record.Target, "."); name != "" {
				targets = append(targets, target{name, record.Port})
			}
		}
		if len(targets) > 0 {
			return targets, sure, nil
		}
		if len(records) > 0 {
			return nil, sure, fmt.Errorf("%s: %w", host, errNoService)
		}
	}
	return nil, sure, nil
}

// serverName is a parsed server name.
type serverName struct {
	full    string // as it was, for the Host header
	host    string // without brackets and port
	port    uint16 // 0: none given
	literal bool   // host is an IP address
}

func parseName(name string) (serverName, error) {
	parsed := id.ParseServerName(name)
	if parsed == nil || parsed.Port < 0 || parsed.Port > 65535 {
		return serverName{}, errors.New("the server name is none")
	}
	// The grammar also takes 999.1.1.1 for an address; that can only be looked up, and is not found.
	_, err := netip.ParseAddr(parsed.Host)
	return serverName{full: name, host: parsed.Host, port: uint16(parsed.Port), literal: err == nil}, nil
}

// direct says whether the name tells by itself where to connect.
func (n serverName) direct() bool { return n.literal || n.port != 0 }

func (n serverName) target() target {
	if n.port == 0 {
		return target{n.host, defaultPort}
	}
	return target{n.host, n.port}
}

func newRoute(name serverName, targets []target) *route {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n%v", name.full, name.host, targets)
	return &route{
		host:    name.full,
		tlsName: name.host,
		targets: targets,
		poolKey: hex.EncodeToString(sum.Sum(nil)[:16]) + ".route",
	}
}

// share is the part'th part of the time that ctx leaves, at most most.
func share(ctx context.Context, part int, most time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(time.Until(deadline)/time.Duration(part), most)
	}
	return most
}
