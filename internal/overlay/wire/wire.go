// Package wire is an HTTP/1.1 transport to one server for requests without a body: the goroutine that asks writes the
// request and reads the answer itself. net/http's own transport has two more goroutines for each connection, which hand
// every request and answer over; that is most of what a long poll that waits takes, and a third of what a small answer
// costs. What needs more than this (a body, an upgrade) is not for this package.
package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"
)

const (
	// dialTimeout bounds connecting.
	dialTimeout = 10 * time.Second
	// idleTimeout is less than the homeserver keeps connections (Twisted: 60 s), so that none is used in the moment in
	// which it is closed.
	idleTimeout = 30 * time.Second
	// maxIdle bounds the connections that are kept without a request.
	maxIdle = 512
	// maxHead bounds the status line and headers of an answer, as net/http does.
	maxHead = 10 << 20
	// maxInterim bounds the 1xx answers before the answer proper, as net/http does.
	maxInterim = 5
	// readBuffer and writeBuffer: a request and the head of an answer mostly fit; large reads of a body go past it.
	readBuffer, writeBuffer = 4 << 10, 4 << 10
)

// Transport implements [http.RoundTripper] for requests that [Transport.Takes]. It may be used by several goroutines at
// once.
type Transport struct {
	addr   string
	dialer net.Dialer

	mu     sync.Mutex
	idle   []*conn // the last used last
	timer  *time.Timer
	closed bool
}

// New returns a transport to addr, host:port. It connects to nothing yet.
func New(addr string) *Transport {
	return &Transport{addr: addr, dialer: net.Dialer{Timeout: dialTimeout, KeepAlive: idleTimeout}}
}

// Takes says whether a request is one for this transport: one of plain HTTP that can be asked again if a kept connection
// turns out to be closed, without a body and without leaving HTTP.
func (t *Transport) Takes(req *http.Request) bool {
	return (req.Method == http.MethodGet || req.Method == http.MethodHead) && req.URL.Scheme == "http" &&
		(req.Body == nil || req.Body == http.NoBody) && len(req.Header["Upgrade"]) == 0 && len(req.Header["Expect"]) == 0 && len(req.Trailer) == 0
}

// CloseIdleConnections closes what is kept. The transport goes on working, and keeps nothing more.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	idle := t.idle
	t.idle, t.closed = nil, true
	if t.timer != nil {
		t.timer.Stop()
	}
	t.mu.Unlock()
	for _, c := range idle {
		_ = c.net.Close()
	}
}

// conn is one connection. The one who has it is its only user.
type conn struct {
	net  net.Conn
	in   *bufio.Reader
	head headLimit
	used time.Time // when it was put back
}

// RoundTrip sends the request and returns once the head of the answer is there. The body must be closed.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	for {
		c, kept, err := t.get(ctx)
		if err != nil {
			return nil, err
		}
		resp, untouched, err := t.ask(ctx, c, req)
		if err == nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// The server had closed it in the moment in which we took it.
		if !kept || !untouched {
			return nil, err
		}
	}
}

func (t *Transport) get(ctx context.Context) (c *conn, kept bool, err error) {
	for {
		t.mu.Lock()
		last := len(t.idle) - 1
		if last < 0 {
			t.mu.Unlock()
			break
		}
		c, t.idle[last], t.idle = t.idle[last], nil, t.idle[:last]
		t.mu.Unlock()
		if time.Since(c.used) < idleTimeout && quiet(c.net) {
			return c, true, nil
		}
		_ = c.net.Close()
	}
	opened, err := t.dialer.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, false, err
	}
	c = &conn{net: opened}
	c.head.net = opened
	c.in = bufio.NewReaderSize(&c.head, readBuffer)
	return c, false, nil
}

// put keeps a connection whose answer was read to its end.
func (t *Transport) put(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.idle) >= maxIdle {
		_ = c.net.Close()
		return
	}
	c.used = time.Now()
	t.idle = append(t.idle, c)
	if t.timer == nil {
		t.timer = time.AfterFunc(idleTimeout, t.sweep)
	}
}

// sweep closes what has been kept too long. The oldest come first.
func (t *Transport) sweep() {
	var old []*conn
	t.mu.Lock()
	for len(t.idle) > 0 && time.Since(t.idle[0].used) >= idleTimeout {
		old = append(old, t.idle[0])
		t.idle = t.idle[1:]
	}
	t.timer = nil
	if len(t.idle) > 0 {
		t.timer = time.AfterFunc(max(idleTimeout-time.Since(t.idle[0].used), time.Millisecond), t.sweep)
	}
	t.mu.Unlock()
	for _, c := range old {
		_ = c.net.Close()
	}
}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, writeBuffer) }}

// longAgo is a deadline that ends every read and write.
var longAgo = time.Unix(1, 0)

// ask uses the connection for one request. On an error it is closed, and untouched says that not one byte of an answer
// had come.
func (t *Transport) ask(ctx context.Context, c *conn, req *http.Request) (_ *http.Response, untouched bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.net.SetDeadline(longAgo) })
	defer func() {
		if err != nil {
			stop()
			_ = c.net.Close()
		}
	}()
	out := writers.Get().(*bufio.Writer)
	out.Reset(c.net)
	err = req.Write(out)
	if err == nil {
		err = out.Flush()
	}
	out.Reset(nil)
	writers.Put(out)
	if err != nil {
		return nil, true, err
	}
	c.head.left = maxHead
	if _, err := c.in.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, true, fmt.Errorf("the connection broke before an answer: %w", err)
	}
	resp, err := c.read(ctx, req)
	if err != nil {
		return nil, false, err
	}
	c.head.left = -1
	b := &body{ReadCloser: resp.Body, t: t, c: c, ctx: ctx, stop: stop, keep: !resp.Close}
	if resp.Body == http.NoBody {
		b.end(true)
	} else {
		resp.Body = b
	}
	return resp, false, nil
}

// read reads the answer's head. What goes before it (1xx) is told to whom the request's trace names.
func (c *conn) read(ctx context.Context, req *http.Request) (*http.Response, error) {
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(c.in, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 {
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("the server switches protocols unasked")
		}
		trace := httptrace.ContextClientTrace(ctx)
		if trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
				return nil, err
			}
		}
	}
	return nil, errors.New("the server sends one interim answer after the other")
}

// body is the answer's. Read to its end, it gives the connection back.
type body struct {
	io.ReadCloser
	t    *Transport
	c    *conn
	ctx  context.Context
	stop func() bool
	keep bool
	done bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) {
		b.end(false)
		if b.ctx.Err() != nil {
			err = context.Cause(b.ctx)
		}
		return n, err
	}
	b.end(true)
	return n, io.EOF
}

// Close gives up what has not been read, and the connection with it.
func (b *body) Close() error {
	if !b.done {
		b.end(false)
	}
	return nil
}

func (b *body) end(whole bool) {
	b.done = true
	if !b.stop() || !whole || !b.keep || b.c.in.Buffered() > 0 {
		_ = b.c.net.Close()
		return
	}
	b.t.put(b.c)
}

// headLimit bounds how much of an answer is read before its head is complete; left < 0: no more.
type headLimit struct {
	net  net.Conn
	left int
}

var errLongHead = fmt.Errorf("the head of the answer is over %d bytes", maxHead)

func (l *headLimit) Read(p []byte) (int, error) {
	if l.left < 0 {
		return l.net.Read(p)
	}
	if l.left == 0 {
		return 0, errLongHead
	}
	n, err := l.net.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
