// Package overlay is the reverse proxy between the clients and the homeserver. A few answers are edited (/sync, sliding
// sync, /keys/changes, /keys/query and /versions), and only where something is to be added; every other byte passes as it came, in both
// directions.
package overlay

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/announce"
	"freshen/internal/homeserver"
	"freshen/internal/kept"
	"freshen/internal/overlay/wire"
	"freshen/internal/rooms"
)

// Refresher fetches a list again that is kept but may be out of date.
type Refresher interface {
	Again(ctx context.Context, target id.UserID) (ok bool)
}

// Config is what a [Proxy] stands between and asks.
type Config struct {
	// Homeserver is the upstream: scheme, host, and a path to put in front if there is one.
	Homeserver *url.URL
	Who        *homeserver.Client
	Log        *slog.Logger
	Now        func() time.Time
}

// Knowledge is what is put over the answers. It comes from the database, which may be away when freshen starts.
type Knowledge struct {
	Announcer *announce.Announcer
	Lists     *kept.Lists
	Rooms     *rooms.Rooms
	Refresher Refresher
}

// Proxy is the handler for everything that is not freshen's own.
type Proxy struct {
	cfg    Config
	prefix string // of the homeserver's paths, escaped
	// wire is the way of most requests; nil where the homeserver is reached by TLS. The rest go over proxy and transport.
	wire      *wire.Transport
	transport *http.Transport
	proxy     httputil.ReverseProxy
	buffers   bufferPool
	sticky    stickiness
	counters  counters

	knowledge atomic.Pointer[Knowledge] // nil until Learn
	learnt    chan struct{}             // closed by Learn

	hurried hurried
}

// New returns a proxy. It starts nothing, and until Learn it edits nothing but /versions.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, prefix: cfg.Homeserver.EscapedPath(), transport: newTransport(), learnt: make(chan struct{})}
	if cfg.Homeserver.Scheme == "http" {
		addr := cfg.Homeserver.Host
		if cfg.Homeserver.Port() == "" {
			addr = net.JoinHostPort(cfg.Homeserver.Hostname(), "80")
		}
		p.wire = wire.New(addr)
	}
	p.proxy = httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      hurrier{p.transport},
		ModifyResponse: p.edit,
		ErrorHandler:   p.failed,
		FlushInterval:  -1, // what the homeserver has said, the client hears at once
		BufferPool:     &p.buffers,
		ErrorLog:       slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return p
}

// Learn says what is to be put over the answers from now on. Polls that wait already hear of it as if they had come after
// it. It is called once at the most.
func (p *Proxy) Learn(k Knowledge) {
	p.knowledge.Store(&k)
	close(p.learnt)
}

// Hurry has every long poll answered at once, those that come later as well: freshen is about to stop, and a client that
// is answered comes back to whoever serves then.
func (p *Proxy) Hurry() { p.hurried.hurryAll() }

// Polls is how many syncs are being answered, most of which wait.
func (p *Proxy) Polls() int { return p.hurried.count() }

// Close closes the connections that are not in use.
func (p *Proxy) Close() {
	p.Hurry()
	p.transport.CloseIdleConnections()
	if p.wire != nil {
		p.wire.CloseIdleConnections()
	}
}

// newTransport keeps connections for less long than the homeserver keeps them (Twisted: 60 s), so that none is used in
// the moment in which it is closed. There may be as many as there are requests.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   512,
		IdleConnTimeout:       30 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // the client's own wish passes
		WriteBufferSize:       16 << 10,
	}
}

// exchange is what one of the edited routes knows about its request. It travels in the request's context.
type exchange interface {
	// edit changes the homeserver's answer.
	edit(resp *http.Response) error
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) exchange {
	x, _ := ctx.Value(exchangeKey{}).(exchange)
	return x
}

// pass has the homeserver answer the request, and x edit the answer; nil where that passes as it is.
func (p *Proxy) pass(w http.ResponseWriter, r *http.Request, x exchange) {
	if p.forwardable(r, x) {
		p.forward(w, r, x)
		return
	}
	untyped(w)
	if x != nil {
		r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	}
	p.proxy.ServeHTTP(w, r)
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Body != nil && r.Body != http.NoBody {
		// Else net/http closes the client's body once the answer begins, and the transport, which may still be looking for
		// its end, takes that for a broken upload and drops the answer. Writers other than HTTP/1's need none of this.
		_ = http.NewResponseController(w).EnableFullDuplex()
		// What is left of the body is read here, as net/http would. When it does so itself, after the handler and in full duplex, its
		// watch for the client's end collides with the wait for the next request: it panics, and the connection is gone.
		body := r.Body
		p.serve(w, r)
		_ = http.NewResponseController(w).Flush() // who sends the rest of a body slowly shall not wait for the answer
		_ = body.Close()
		return
	}
	p.serve(w, r)
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	switch route(r) {
	case routeSync:
		p.serveSync(w, r)
	case routeKeysQuery:
		p.serveKeysQuery(w, r)
	case routeSliding, routeSlidingV4:
		p.serveSliding(w, r, route(r) == routeSlidingV4)
	case routeKeysChanges:
		p.serveKeysChanges(w, r)
	case routeVersions:
		p.pass(w, r, versionsExchange{})
	default:
		p.pass(w, r, nil)
	}
}

type routeName int

const (
	routePass routeName = iota
	routeSync
	routeKeysQuery
	routeVersions
	routeSliding
	routeSlidingV4
	routeKeysChanges
)

// route names the edited routes. It looks at the path as it was sent: an odd spelling of one is the homeserver's to
// judge, and passes.
func route(r *http.Request) routeName {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/_matrix/client/")
	if !ok {
		return routePass
	}
	switch {
	case r.Method == http.MethodGet && (path == "v3/sync" || path == "r0/sync"):
		return routeSync
	case r.Method == http.MethodPost && (path == "v3/keys/query" || path == "r0/keys/query" || path == "unstable/keys/query"):
		return routeKeysQuery
	case r.Method == http.MethodPost && path == "unstable/org.matrix.simplified_msc3575/sync":
		return routeSliding
	case r.Method == http.MethodPost && path == "v4/sync":
		return routeSlidingV4
	case r.Method == http.MethodGet && (path == "v3/keys/changes" || path == "r0/keys/changes" || path == "unstable/keys/changes"):
		return routeKeysChanges
	case r.Method == http.MethodGet && path == "versions":
		return routeVersions
	}
	return routePass
}

// untyped keeps net/http from guessing a type where the homeserver names none.
func untyped(w http.ResponseWriter) { w.Header()["Content-Type"] = nil }

func (p *Proxy) rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	out.URL.Scheme, out.URL.Host = p.cfg.Homeserver.Scheme, p.cfg.Homeserver.Host
	out.Host = in.Host
	// The path goes on in the very bytes in which it came; net/url would spell odd ones its own way. It must where the
	// path begins with "//", which net/http takes for a host, and where a whole URL was asked for.
	if path, _, _ := strings.Cut(in.RequestURI, "?"); strings.HasPrefix(path, "/") && !strings.HasPrefix(p.prefix+path, "//") {
		out.URL.Opaque = p.prefix + path
	} else {
		out.URL.Path, out.URL.RawPath = p.cfg.Homeserver.Path+in.URL.Path, p.prefix+in.URL.EscapedPath()
	}
	out.URL.RawQuery, out.URL.ForceQuery = in.URL.RawQuery, in.URL.ForceQuery
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values := in.Header[name]; len(values) > 0 {
			out.Header[name] = values
		}
	}
	out.Trailer = in.Trailer // filled in once the body has been read, so it must be the same map
	pr.SetXForwarded()
	// What the proxy in front of us says of the client's connection is truer than what we see of its own.
	for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values := in.Header[name]; len(values) > 0 {
			out.Header[name] = values
		}
	}
	if hops := in.Header["X-Forwarded-For"]; len(hops) > 0 && len(out.Header["X-Forwarded-For"]) == 0 {
		out.Header["X-Forwarded-For"] = []string{strings.Join(hops, ", ")} // over a unix socket, where SetXForwarded drops it
	}
	if exchangeOf(in.Context()) != nil {
		out.Header.Set("Accept-Encoding", "identity")
	}
}

func (p *Proxy) edit(resp *http.Response) error {
	if x := exchangeOf(resp.Request.Context()); x != nil {
		return x.edit(resp)
	}
	return nil
}

// failed answers in place of a homeserver that did not.
func (p *Proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		// Most have gone and need not be told. One that only closed its sending side must not take silence for an empty
		// success.
		panic(http.ErrAbortHandler)
	}
	p.cfg.Log.Warn("the homeserver did not answer", "method", r.Method, "err", homeserver.WithoutURL(err))
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Access-Control-Allow-Origin", "*")
	const answer = `{"errcode":"M_UNKNOWN","error":"The homeserver behind freshen cannot be reached: please try again in a minute."}` + "\n"
	header.Set("Content-Length", strconv.Itoa(len(answer)))
	w.WriteHeader(http.StatusBadGateway)
	_, _ = io.WriteString(w, answer)
}

// bufferSize is how much of a body is passed at a time, and so in how many writes to the client: measured, 128 KB take half
// the time of 32, and more gain nothing. Only an answer that is being passed on has such a buffer.
const bufferSize = 128 << 10

type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferSize)
}

func (b *bufferPool) Put(buf []byte) {
	if cap(buf) >= bufferSize {
		b.pool.Put((*[bufferSize]byte)(buf[:bufferSize]))
	}
}
