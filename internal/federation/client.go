// Package federation asks other homeservers for the device lists of their users: GET
// /_matrix/federation/v1/user/devices/{userId} of the Matrix server-server API, signed as our homeserver.
//
// Any user may name any server of the world, so what is named decides nothing here: where it leads is found by the
// specification's discovery (route.go, wellknown.go), every connection goes through one dialler that refuses private
// and reserved networks (package dial), certificates are always verified, and time (in all and for each stage,
// limits.go), what comes in (guard.go), bodies, headers, redirects, caches, kept connections (pools.go) and sockets are
// all bounded. Proxies from the environment are not used: the dialler could not see where they connect. Whatever goes
// wrong comes back as a [freshen.Failure] with a sentence for people.
package federation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/dial"
)

// Resolver looks names up, see [dial.Resolver]; *net.Resolver is one.
type Resolver = dial.Resolver

// Config is what a [Client] needs. ServerName and Key are required.
type Config struct {
	// ServerName is our homeserver's name, the origin of each request.
	ServerName string
	// Key is our homeserver's signing key.
	Key *SigningKey
	// Roots are the certificate authorities that are trusted; nil means the system's. See [LoadRoots].
	Roots *x509.CertPool
	// AllowNetworks are networks that may be dialled although they are private or reserved.
	AllowNetworks []netip.Prefix
	// UserAgent tells the administrator of a remote server whom to ask about our requests.
	UserAgent string
	// Resolver is net.DefaultResolver if nil.
	Resolver Resolver
	// Now is time.Now if nil. It governs caches and Retry-After; time limits are the context's.
	Now func() time.Time
}

// Client asks other servers. It may be used by several goroutines at once.
type Client struct {
	mx        *mxfed.Client
	transport *transport
	sockets   *dial.Sockets
	now       func() time.Time

	closing context.Context // done once Close was called
	close   context.CancelFunc
	mu      sync.Mutex // guards closed, and running.Add against running.Wait
	closed  bool
	running sync.WaitGroup
}

// New returns a client that must be closed. It connects to nothing yet.
func New(cfg Config) (*Client, error) {
	switch {
	case !freshen.ValidServerName(cfg.ServerName):
		return nil, fmt.Errorf("the federation client needs our server's name; %q is none", cfg.ServerName)
	case cfg.Key == nil:
		return nil, errors.New("the federation client needs our server's signing key; there is none")
	case strings.ContainsFunc(cfg.UserAgent, func(r rune) bool { return r < ' ' || r > '~' }):
		return nil, fmt.Errorf("the User-Agent %q must be printable ASCII", cfg.UserAgent)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Client{now: cfg.Now}
	c.closing, c.close = context.WithCancel(context.Background())
	c.sockets = dial.NewSockets(maxSockets, func() { c.transport.pools.closeKept() })
	dialer := &dial.Dialer{Resolver: cfg.Resolver, Allow: slices.Clone(cfg.AllowNetworks), Sockets: c.sockets}
	c.transport = newTransport(&cfg, &router{
		dialer:      dialer,
		wellKnown:   newWellKnownClient(&cfg, dialer),
		userAgent:   cfg.UserAgent,
		now:         cfg.Now,
		closing:     c.closing,
		routes:      newCache[*route](maxCached, maxCachedBytes),
		delegations: newCache[delegation](maxCached, maxCachedBytes),
		flights:     map[string]*flight{},
	})
	c.mx = &mxfed.Client{
		HTTP: &http.Client{
			Transport:     c.transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		ServerName:        cfg.ServerName,
		UserAgent:         cfg.UserAgent,
		Key:               cfg.Key.key,
		ResponseSizeLimit: freshen.MaxDeviceListBytes,
	}
	return c, nil
}

// Close ends all requests, waits for them, and closes all connections. Requests after it fail. It may be called
// more than once.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.close()
	c.running.Wait()
	c.transport.router.running.Wait()
	c.sockets.Close()
	c.transport.pools.closeKept()
}

// errClosed is the cause of requests that Close ended or that came after it.
var errClosed = errors.New("the federation client is closed")

// FetchDeviceList asks the server of target for target's device list. ctx bounds it all, from the name lookup to the
// last byte. The list is checked as [freshen.ParseDeviceList] does. The error is always a *[freshen.Failure]; where ctx
// was cancelled, that wraps context.Canceled.
func (c *Client) FetchDeviceList(ctx context.Context, target id.UserID) (*freshen.DeviceList, error) {
	_, server, err := freshen.ParseUserID(string(target))
	if err != nil {
		return nil, &freshen.Failure{
			Destination: freshen.Destination(target), Reason: freshen.ReasonDenied,
			Sentence: "No server was asked, because the target is no user ID.", Err: err,
		}
	}
	if !c.begin() {
		return nil, &freshen.Failure{
			Destination: server, Reason: freshen.ReasonTimeout,
			Sentence: fmt.Sprintf("%s was not asked, because freshen is stopping.", server), Err: errClosed,
		}
	}
	defer c.running.Done()
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > requestMostTime {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestMostTime)
		defer cancel()
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	defer context.AfterFunc(c.closing, func() { giveUp(errClosed) })()

	a := newAttempt(share(ctx, 1, requestMostTime), giveUp)
	body, resp, err := c.mx.MakeFullRequest(context.WithValue(ctx, attemptKey{}, a), mxfed.RequestParams{
		ServerName:   server,
		Method:       http.MethodGet,
		Path:         mxfed.URLPath{"v1", "user", "devices", target},
		Authenticate: true,
	})
	unanswered := ctx.Err() != nil || resp == nil || err != nil && resp.StatusCode == http.StatusOK
	defer func() {
		bad := unanswered && !errors.Is(context.Cause(ctx), context.Canceled)
		a.end(bad)
		if a.pool != nil {
			c.transport.pools.leave(a.pool, bad)
		}
	}()
	failed := func(err error) error {
		f := failing{server: server, attempt: a, ended: ctx.Err(), cause: context.Cause(ctx), now: c.now()}
		if f.ended == nil && c.closing.Err() != nil {
			f.cause = errClosed // which a shared discovery may have noticed first
		}
		return f.failure(resp, err)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, failed(err)
	}
	list, err := freshen.ParseDeviceList(body, target)
	switch {
	case err == nil:
		return list, nil
	case ctx.Err() != nil:
		// A server that was told of our leaving may end its half answer in good order.
		return nil, failed(ctx.Err())
	default:
		return nil, notAList(server, resp, err)
	}
}

func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.running.Add(1)
	return true
}
