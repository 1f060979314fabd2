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
	"time"

	"freshen/internal/federation/dial"
)

const (
	maxHeaderBytes   = 64 << 10
	maxConnsPerRoute = 8
	// idleTimeout is below the keep-alive of common reverse proxies (nginx: 75 s), so that it is we who close.
	idleTimeout = 55 * time.Second
	// maxSockets bounds all sockets: connections that are made, used or kept, and name lookups.
	maxSockets = 512
	// dialMostTime bounds the connecting to one target where the context leaves more.
	dialMostTime = 15 * time.Second
)

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
	tls    *tls.Config
	pools  *pools
}

func newTransport(cfg *Config, router *router) *transport {
	t := &transport{
		router: router,
		tls: &tls.Config{
			RootCAs:            cfg.Roots,
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"h2", "http/1.1"},
			ClientSessionCache: nil, // resumption saves a tenth of a millisecond, and lets a server follow us
		},
	}
	t.pools = newPools(t.newHTTP)
	return t
}

func (t *transport) newHTTP() *http.Transport {
	return &http.Transport{
		DialTLSContext:         t.dialTLS,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a list is keys and signatures, which hardly shrink; what is not asked for cannot explode
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConnsPerHost:    maxKeptPerRoute,
		MaxConnsPerHost:        maxConnsPerRoute,
		IdleConnTimeout:        idleTimeout,
	}
}

var errNotFinal = errors.New("its answer has a status that only an interim one may have")

// RoundTrip implements [http.RoundTripper]. The context must hold an attempt, whose pool the caller leaves.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	a := attemptOf(ctx)
	if a == nil || req.URL.Scheme != "matrix-federation" {
		return nil, fmt.Errorf("a request for scheme %q is none of this client's", req.URL.Scheme)
	}
	found, err := t.router.find(ctx, req.URL.Host, a.limits.discovery)
	if err != nil {
		return nil, err
	}
	a.route, a.pool = found, t.pools.enter(found.poolKey)
	// No Got1xxResponse: with it, net/http would no longer bound how many interim answers there may be.
	ctx = httptrace.WithClientTrace(withDialContext(ctx), &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) { a.sentOn(guardOf(got.Conn), got.Reused) },
	})
	sent := req.WithContext(ctx)
	sent.URL = &url.URL{
		Scheme: "https", Host: found.poolKey,
		Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery,
	}
	sent.Host = found.host
	for {
		a.enter(stageQueue)
		resp, err := a.pool.http.RoundTrip(sent)
		switch {
		case err != nil && ctx.Err() == nil && a.wasDropped():
			continue // each time there is one connection less
		case err != nil:
			return nil, err
		case resp.StatusCode < http.StatusOK:
			_ = resp.Body.Close()
			return nil, errNotFinal
		}
		a.enter(stageBody)
		return resp, nil
	}
}

// dialError is the failure of every target of a route that was tried.
type dialError struct{ targets []targetError }

func (e *dialError) Error() string { return errors.Join(e.Unwrap()...).Error() }

func (e *dialError) Unwrap() []error {
	errs := make([]error, len(e.targets))
	for i := range e.targets {
		errs[i] = &e.targets[i]
	}
	return errs
}

// targetError is the failure of one target; err is what [dial.Dialer.Dial] says.
type targetError struct {
	target target
	err    error
}

func (e *targetError) Error() string { return fmt.Sprintf("%s: %v", e.target, e.err) }

func (e *targetError) Unwrap() error { return e.err }

// dialTLS connects to the first target of the route that lets itself be connected to and shows a good certificate. A
// target that stays silent may use up only its share of the time.
func (t *transport) dialTLS(ctx context.Context, _, _ string) (net.Conn, error) {
	ctx = dialContext(ctx)
	a := attemptOf(ctx)
	if a == nil || a.route == nil {
		return nil, errors.New("a connection without a route was asked for")
	}
	if err := a.dialling(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, before(ctx, a.limits.connect))
	defer cancel()
	secure := handshake(t.tls, a.route.tlsName, a.limits.handshake)
	failed := &dialError{}
	for i, where := range a.route.targets {
		limited, done := context.WithTimeout(ctx, share(ctx, len(a.route.targets)-i, dialMostTime))
		conn, err := t.router.dialer.Dial(limited, where.host, where.port, secure)
		done()
		if err == nil {
			return conn, nil
		}
		failed.targets = append(failed.targets, targetError{target: where, err: err})
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// handshake makes TLS connections with a server whose certificate must be for name, each within most.
func handshake(config *tls.Config, name string, most time.Duration) dial.Secure {
	return func(ctx context.Context, raw net.Conn) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		own := config.Clone()
		own.ServerName = name
		conn := tls.Client(newGuard(raw), own)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, &handshakeError{name: name, err: err}
		}
		return conn, nil
	}
}
