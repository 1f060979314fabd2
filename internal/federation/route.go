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
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/dial"
)

const (
	defaultPort = 8448
	// routeLifetime is how long a route with its SRV targets is used again without asking. Resolvers do not tell the
	// lifetime of records, so it is short; it only keeps a burst of requests from asking each time. Addresses are not
	// kept at all: they are looked up for each new connection.
	routeLifetime = time.Minute
	// maxTargets bounds how many SRV targets are tried.
	maxTargets = 8
	// maxCached and maxCachedBytes bound each cache, in destinations and in bytes.
	maxCached      = 10_000
	maxCachedBytes = 8 << 20
)

// route is where and how a server is reached.
type route struct {
	host    string   // the Host header
	tlsName string   // the name or address that the certificate must be for
	targets []target // in the order in which they are tried, at least one
	// poolKey stands in for the host towards net/http, so that connections are shared exactly between requests with the
	// same route: a changed delegation or SRV record is never answered from a connection to the old place.
	poolKey string

	// How the targets were found, for people: delegated is what the well-known names, srv is the SRV record; "" each if
	// there is none. noWellKnown says why there is no delegation, where one was looked for.
	delegated, srv, noWellKnown string
}

// bytes is how much the strings of the route take.
func (r *route) bytes() int {
	sum := len(r.host) + len(r.tlsName) + len(r.poolKey) + len(r.delegated) + len(r.srv) + len(r.noWellKnown)
	for _, t := range r.targets {
		sum += len(t.host) + 32
	}
	return sum
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
	closing   context.Context // ends what is being discovered

	routes      *cache[*route]
	delegations *cache[delegation]

	mu      sync.Mutex
	flights map[string]*flight
	running sync.WaitGroup
}

// flight is one discovery that everybody who wants the same name waits for. It belongs to none of them: who gives up
// ends nothing for the others, and what is found out is kept for the next.
type flight struct {
	done  chan struct{} // closed at the end, after which route and err stand
	route *route
	err   error
}

// noServiceError is an SRV record whose target is the root (RFC 2782).
type noServiceError struct{ record, host string }

func (e *noServiceError) Error() string {
	return fmt.Sprintf("the SRV record %s says that %s offers no federation", e.record, e.host)
}

var errNoName = errors.New("the server name is none")

// find returns the route to name, which must be a valid server name. It waits within ctx for a discovery that has, if it
// must be begun, the time within for itself. It fails with a *noServiceError, errNoName, dial.ErrBusy, or an error of a
// context.
func (r *router) find(ctx context.Context, name string, within time.Duration) (*route, error) {
	if known, ok := r.routes.get(name, r.now()); ok {
		return known, nil
	}
	joined := r.join(name, within)
	select {
	case <-joined.done:
		return joined.route, joined.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join is called while a request runs, so that running does not grow once the client has waited for its requests.
func (r *router) join(name string, within time.Duration) *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	if begun, ok := r.flights[name]; ok {
		return begun
	}
	begun := &flight{done: make(chan struct{})}
	r.flights[name] = begun
	r.running.Go(func() {
		ctx, cancel := context.WithTimeout(r.closing, within)
		defer cancel()
		found, lifetime, err := r.discover(ctx, name, within)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && lifetime > 0 {
			r.routes.put(name, found, found.bytes(), r.now().Add(lifetime))
		}
		r.mu.Lock()
		delete(r.flights, name)
		r.mu.Unlock()
		begun.route, begun.err = found, err
		close(begun.done)
	})
	return begun
}

// discover also returns how long the route may be kept, 0 for not at all. Its steps together take less than within.
func (r *router) discover(ctx context.Context, name string, within time.Duration) (*route, time.Duration, error) {
	parsed, err := parseName(name)
	if err != nil {
		return nil, 0, err
	}
	if parsed.direct() {
		return newRoute(parsed, []target{parsed.target()}), routeLifetime, nil
	}
	told, err := r.delegate(ctx, parsed.host, within*5/10)
	if err != nil {
		return nil, 0, err
	}
	lifetime := min(routeLifetime, told.expires.Sub(r.now()))
	if told.server != "" {
		if parsed, err = parseName(told.server); err != nil {
			return nil, 0, err
		}
		if parsed.direct() {
			found := newRoute(parsed, []target{parsed.target()})
			found.delegated = told.server
			return found, lifetime, nil
		}
	}
	targets, record, sure, err := r.srv(ctx, parsed.host, within*2/10)
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
	found.delegated, found.srv, found.noWellKnown = told.server, record, told.why
	return found, lifetime, nil
}

// srv returns the targets of host's SRV records, of the newer service name if that has any, else of the older, and the
// record's name. A name server that fails is taken as having none, but then the answer is not sure: hosts exist whose
// name server fails on SRV and whose homeserver stands on port 8448. Each lookup may take so long.
func (r *router) srv(ctx context.Context, host string, most time.Duration) (targets []target, record string, sure bool, err error) {
	sure = true
	for _, service := range []string{"matrix-fed", "matrix"} {
		record = fmt.Sprintf("_%s._tcp.%s", service, host)
		limited, cancel := context.WithTimeout(ctx, most)
		records, err := r.dialer.LookupSRV(limited, service, host)
		cancel()
		if errors.Is(err, dial.ErrBusy) {
			return nil, "", false, err
		}
		if dnsErr, ok := errors.AsType[*net.DNSError](err); err != nil && (!ok || !dnsErr.IsNotFound) {
			sure = false
		}
		for _, one := range records[:min(len(records), maxTargets)] {
			if name := strings.TrimSuffix(one.Target, "."); name != "" && one.Port != 0 {
				targets = append(targets, target{name, one.Port})
			}
		}
		if len(targets) > 0 {
			return targets, record, sure, nil
		}
		if len(records) > 0 {
			return nil, "", sure, &noServiceError{record: record, host: host}
		}
	}
	return nil, "", sure, nil
}

// serverName is a parsed server name.
type serverName struct {
	full    string // as it was, for the Host header
	host    string // without brackets and port
	port    uint16 // 0: none given
	literal bool   // host is an IP address
}

// parseName fails with errNoName.
func parseName(name string) (serverName, error) {
	parsed := id.ParseServerName(name)
	if parsed == nil || parsed.Port < 0 || parsed.Port > 65535 {
		return serverName{}, errNoName
	}
	_, err := netip.ParseAddr(parsed.Host)
	if err != nil && parsed.Type == id.ServerNameIPv6 {
		return serverName{}, errNoName // the grammar takes [:::::] too
	}
	// It also takes 999.1.1.1 for an address; that can only be looked up, and is not found.
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
