package federation

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"
)

const (
	maxHeaderBytes   = 64 << 10
	maxIdleConns     = 256
	maxIdlePerRoute  = 2
	maxConnsPerRoute = 8
	// idleTimeout is below the keep-alive of common reverse proxies (nginx: 75 s), so that it is we who close.
	idleTimeout = 55 * time.Second
	// dialMostTime bounds one connection with its handshake where the context leaves more.
	dialMostTime = 15 * time.Second
)

// attempt is one request on its way; it travels in the request's context.
type attempt struct {
	route     *route      // nil until it is found
	connected atomic.Bool // a connection was there to send the request on
	connects  atomic.Int32
	conn      *guard // that the request was sent on last
}

// sentOn is told of each connection that the request is sent on.
func (a *attempt) sentOn(conn *guard) {
	a.connected.Store(true)
	a.leave(false)
	if a.conn = conn; conn != nil {
		conn.begin()
	}
}

// leave is told that the request is over, and whether the rest of its answer was not waited for.
func (a *attempt) leave(unread bool) {
	if a.conn != nil {
		a.conn.end(unread)
	}
	a.conn = nil
}

type attemptKey struct{}

func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

type dialContextKey struct{}

// withDialContext makes ctx reach the dial functions: net/http hands them a context that outlives the request, so that
// a dial nobody waits for any more would go on.
func withDialContext(ctx context.Context) context.Context {
	return context.WithValue(ctx, dialContextKey{}, ctx)
}

func dialContext(ctx context.Context) context.Context {
	if own, ok := ctx.Value(dialContextKey{}).(context.Context); ok {
		return own
	}
	return ctx
}

// transport sends requests for matrix-federation://name/… to the server of that name.
type transport struct {
	router *router
	dialer tcpDialer
	tls    *tls.Config
	http   *http.Transport
}

func newTransport(cfg *Config, router *router) *transport {
	t := &transport{
		router: router,
		dialer: router.dialer,
		tls: &tls.Config{
			RootCAs:            cfg.Roots,
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"h2", "http/1.1"},
			ClientSessionCache: nil, // resumption saves a tenth of a millisecond, and lets a server follow us
		},
	}
	t.http = &http.Transport{
		DialTLSContext:         t.dialTLS,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a list is keys and signatures, which hardly shrink; what is not asked for cannot explode
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    maxIdlePerRoute,
		MaxConnsPerHost:        maxConnsPerRoute,
		IdleConnTimeout:        idleTimeout,
		// An HTTP/2 connection whose other end vanished would take request after request to its time limit.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	return t
}

var errNotFinal = errors.New("its answer has a status that only an interim one may have")

// RoundTrip implements [http.RoundTripper]. The context must hold an attempt.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	a := attemptOf(ctx)
	if a == nil || req.URL.Scheme != "matrix-federation" {
		return nil, fmt.Errorf("a request for scheme %q is none of this client's", req.URL.Scheme)
	}
	found, err := t.router.find(ctx, req.URL.Host)
	if err != nil {
		return nil, err
	}
	a.route = found
	ctx = httptrace.WithClientTrace(withDialContext(ctx), &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) { a.sentOn(guardOf(got.Conn)) },
	})
	sent := req.WithContext(ctx)
	sent.URL = &url.URL{
		Scheme: "https", Host: found.poolKey,
		Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery,
	}
	sent.Host = found.host
	resp, err := t.http.RoundTrip(sent)
	for err != nil && ctx.Err() == nil && a.conn.hasEnded() {
		resp, err = t.http.RoundTrip(sent) // each time there is one kept connection less
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < http.StatusOK {
		_ = resp.Body.Close()
		return nil, errNotFinal
	}
	return resp, nil
}

// dialError is the failure of every target of a route.
type dialError struct{ targets []targetError }

func (e *dialError) Error() string { return errors.Join(e.Unwrap()...).Error() }

func (e *dialError) Unwrap() []error {
	errs := make([]error, len(e.targets))
	for i := range e.targets {
		errs[i] = &e.targets[i]
	}
	return errs
}

// targetError is the failure of one target, in the handshake or before it.
type targetError struct {
	target    target
	handshake bool
	err       error
}

func (e *targetError) Error() string {
	if e.handshake {
		return fmt.Sprintf("TLS with %s: %v", e.target, e.err)
	}
	return fmt.Sprintf("connecting to %s: %v", e.target, e.err)
}

func (e *targetError) Unwrap() error { return e.err }

// dialTLS connects to the first target of the route that lets itself be connected to and shows a good certificate. A
// target that stays silent may use up only its share of the time.
func (t *transport) dialTLS(ctx context.Context, _, _ string) (net.Conn, error) {
	ctx = dialContext(ctx)
	a := attemptOf(ctx)
	if a == nil || a.route == nil {
		return nil, errors.New("a connection without a route was asked for")
	}
	if a.connects.Add(1) > maxConnects {
		return nil, errBreaksOff
	}
	failed := &dialError{}
	for i, where := range a.route.targets {
		conn, err := t.dialTarget(ctx, a.route, where, len(a.route.targets)-i)
		if err == nil {
			return conn, nil
		}
		failed.targets = append(failed.targets, *err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func (t *transport) dialTarget(ctx context.Context, to *route, where target, left int) (net.Conn, *targetError) {
	ctx, cancel := context.WithTimeout(ctx, share(ctx, left, dialMostTime))
	defer cancel()
	raw, err := t.dialer.Dial(ctx, where.host, where.port)
	if err != nil {
		return nil, &targetError{target: where, err: err}
	}
	config := t.tls.Clone()
	config.ServerName = to.tlsName
	conn := tls.Client(newGuard(raw), config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, &targetError{target: where, handshake: true, err: err}
	}
	return conn, nil
}
