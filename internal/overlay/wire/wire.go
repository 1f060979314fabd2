// Package wire is an HTTP/1.1 client to one server, for requests whose body, if there is one, is at hand: the goroutine
// that asks writes the request and reads the answer itself. net/http's own transport has two more goroutines for each
// connection, which hand every request and answer over; that is most of what a long poll that waits takes, and much of
// what a small answer costs. What needs more than this (a long body, an upgrade) is not for this package.
package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"syscall"
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
	// abandonedFor is how long the connection of an abandoned request stays open. Where many are abandoned, which is to have
	// them answered at once, their homeserver is not to be busy with their ends first.
	abandonedFor = time.Second
	// maxHead bounds the status line and headers of an answer, as net/http does.
	maxHead = 10 << 20
	// maxInterim bounds the 1xx answers before the answer proper, as net/http does.
	maxInterim = 5
	// readBuffer: the head of an answer mostly fits; large reads of a body go past it.
	readBuffer = 4 << 10
	// maxWriteBuffer is the longest request whose buffer is kept for the next.
	maxWriteBuffer = 64 << 10
)

// Request is one that may be sent again if a kept connection turns out to be closed. All of it goes out as it stands: who
// makes it answers for it that no part has a line break of its own.
type Request struct {
	Method string
	// Target is the path and query, as they are to stand in the request line.
	Target string
	Host   string
	// Header has the other fields, but for Content-Length.
	Header iter.Seq2[string, string]
	Body   []byte
	// Wait says that the answer may take long, and is told how to abandon it; nil for one that comes soon.
	Wait Wait
	// Again changes the request when it is abandoned, to be sent once more without Wait; nil where that is not wanted.
	Again func()
	// Interim is told of the 1xx answers; nil where nobody wants to hear of them.
	Interim func(status int, header http.Header)
}

// Wait is who may abandon a request while its answer has not begun.
type Wait interface {
	// Begin is called before the request is sent, more than once if it is sent again. abandon, which may be called until
	// Over is, ends the request. If Begin returns false, it is not sent.
	Begin(abandon func()) bool
	// Over is called once the answer has begun or failed, and says whether it was abandoned before.
	Over() (abandoned bool)
}

// ErrAbandoned is what RoundTrip returns if the request was abandoned and has no [Request.Again].
var ErrAbandoned = errors.New("the request was abandoned while it waited for its answer")

// Transport is the connections. It may be used by several goroutines at once.
type Transport struct {
	addr   string
	dialer net.Dialer

	mu     sync.Mutex
	idle   []*conn // the last used last
	timer  *time.Timer
	closed bool
	// abandoned are closed when ending fires.
	abandoned []*conn
	ending    *time.Timer
}

// New returns a transport to addr, host:port. It connects to nothing yet.
func New(addr string) *Transport {
	return &Transport{addr: addr, dialer: net.Dialer{Timeout: dialTimeout, KeepAlive: idleTimeout}}
}

// CloseIdleConnections closes what is kept. The transport goes on working, and keeps nothing more.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	kept := slices.Concat(t.idle, t.abandoned)
	t.idle, t.abandoned, t.closed = nil, nil, true
	for _, timer := range []*time.Timer{t.timer, t.ending} {
		if timer != nil {
			timer.Stop()
		}
	}
	t.mu.Unlock()
	for _, c := range kept {
		_ = c.net.Close()
	}
}

// closeLater closes the connection of an abandoned request.
func (t *Transport) closeLater(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.net.Close()
		return
	}
	t.abandoned = append(t.abandoned, c)
	if t.ending == nil {
		t.ending = time.AfterFunc(abandonedFor, t.end)
	}
}

// end closes what is abandoned.
func (t *Transport) end() {
	t.mu.Lock()
	abandoned := t.abandoned
	t.abandoned, t.ending = nil, nil
	t.mu.Unlock()
	for _, c := range abandoned {
		_ = c.net.Close()
	}
}

// conn is one connection. The one who has it is its only user.
type conn struct {
	net  net.Conn
	raw  syscall.RawConn
	in   *bufio.Reader // nil while there is nothing to read
	head headLimit
	used time.Time // when it was put back
}

// RoundTrip sends the request and returns once the head of the answer is there. The body, which is a [*Body] or
// [http.NoBody], must be closed.
func (t *Transport) RoundTrip(ctx context.Context, req *Request) (*http.Response, error) {
	u := &use{t: t, ctx: ctx}
	u.stop = context.AfterFunc(ctx, u.hangUp)
	for {
		kept, err := u.connect()
		if err != nil {
			u.stop()
			return nil, err
		}
		resp, untouched, err := u.ask(req)
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case errors.Is(err, ErrAbandoned):
			if req.Again != nil {
				req.Again()
				req.Wait, req.Again = nil, nil
				continue
			}
		case kept && untouched:
			continue // the server had closed it in the moment in which we took it
		}
		u.stop()
		return nil, err
	}
}

// use is what one request has of the transport: a connection, or one after the other, until the body of its answer is read. It
// hangs up when its context ends.
type use struct {
	t    *Transport
	ctx  context.Context
	stop func() bool // the watch for the context's end

	mu   sync.Mutex
	c    *conn
	hung bool
}

func (u *use) hangUp() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hung = true
	if u.c != nil {
		_ = u.c.net.SetDeadline(longAgo)
	}
}

// connect takes the connection to use from now on.
func (u *use) connect() (kept bool, err error) {
	c, kept, err := u.t.get(u.ctx)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.c = c; err == nil && u.hung {
		_ = c.net.SetDeadline(longAgo)
	}
	return kept, err
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
		if time.Since(c.used) < idleTimeout && quiet(c.raw) {
			return c, true, nil
		}
		_ = c.net.Close()
	}
	opened, err := t.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	raw, err := opened.(syscall.Conn).SyscallConn()
	if err != nil {
		_ = opened.Close()
		return nil, false, err
	}
	return &conn{net: opened, raw: raw}, false, nil
}

// dial connects on a stack of its own: this goroutine's may be about to wait for long, and does not shrink while it does.
func (t *Transport) dial(ctx context.Context) (opened net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		opened, err = t.dialer.DialContext(ctx, "tcp", t.addr)
		close(done)
	}()
	<-done
	return opened, err
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

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}
	writes  = sync.Pool{New: func() any { return new([]byte) }}
)

// longAgo is a deadline that ends every read and write.
var longAgo = time.Unix(1, 0)

// ask uses the connection for one request. On an error it is closed, and untouched says that not one byte of an answer
// had come.
func (u *use) ask(req *Request) (_ *http.Response, untouched bool, err error) {
	c := u.c
	defer func() {
		switch {
		case errors.Is(err, ErrAbandoned):
			u.t.closeLater(c)
		case err != nil:
			c.close()
		}
	}()
	if err := c.send(req); err != nil {
		return nil, true, err
	}
	c.head = headLimit{net: c.net, left: maxHead}
	c.in = readers.Get().(*bufio.Reader)
	c.in.Reset(&c.head)
	if _, err := c.in.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, true, fmt.Errorf("the connection broke before an answer: %w", err)
	}
	resp, err := c.read(req)
	if err != nil {
		return nil, false, err
	}
	c.head.left = -1
	b := &Body{body: resp.Body, use: u, keep: !resp.Close, known: resp.ContentLength >= 0}
	if resp.Body == http.NoBody {
		b.end(true)
	} else {
		resp.Body = b
	}
	return resp, false, nil
}

// send writes the request, and if that may take long awaits its answer.
func (c *conn) send(req *Request) (err error) {
	if req.Wait == nil {
		return c.write(req)
	}
	if !req.Wait.Begin(func() { _ = c.net.SetDeadline(longAgo) }) {
		return ErrAbandoned
	}
	if err = c.write(req); err == nil {
		err = await(c.raw)
	}
	if req.Wait.Over() {
		return ErrAbandoned
	}
	return err
}

func (c *conn) write(req *Request) error {
	buffer := writes.Get().(*[]byte)
	out := (*buffer)[:0]
	out = append(out, req.Method...)
	out = append(out, ' ')
	out = append(out, req.Target...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, req.Host...)
	out = append(out, "\r\n"...)
	for name, value := range req.Header {
		out = append(out, name...)
		out = append(out, ": "...)
		out = append(out, value...)
		out = append(out, "\r\n"...)
	}
	if req.Body != nil {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, int64(len(req.Body)), 10)
		out = append(out, "\r\n"...)
	}
	out = append(out, "\r\n"...)
	out = append(out, req.Body...)
	_, err := c.net.Write(out)
	if cap(out) <= maxWriteBuffer {
		*buffer = out
		writes.Put(buffer)
	}
	return err
}

// toHead tells net/http that an answer has no body; which request any other is to, it need not know.
var toHead = &http.Request{Method: http.MethodHead}

// read reads the answer's head.
func (c *conn) read(req *Request) (*http.Response, error) {
	var to *http.Request
	if req.Method == http.MethodHead {
		to = toHead
	}
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(c.in, to)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 {
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, errors.New("the server switches protocols unasked")
		}
		if req.Interim != nil {
			req.Interim(resp.StatusCode, resp.Header)
		}
	}
	return nil, errors.New("the server sends one interim answer after the other")
}

// close ends the connection.
func (c *conn) close() {
	_ = c.net.Close()
	c.doneReading()
}

// doneReading gives the buffer back, and says whether there was anything left in it.
func (c *conn) doneReading() (left bool) {
	if c.in == nil {
		return false
	}
	left = c.in.Buffered() > 0
	c.in.Reset(nil)
	readers.Put(c.in)
	c.in = nil
	return left
}

// Body is an answer's. Read to its end, it gives the connection back.
type Body struct {
	*use

	body  io.Reader
	keep  bool
	known bool // the length
	done  bool
}

func (b *Body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	n, err := b.body.Read(p)
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

// Ready says that the next Read does not wait for the server.
func (b *Body) Ready() bool {
	if b.done {
		return true
	}
	buffered, _ := b.c.in.Peek(b.c.in.Buffered())
	if b.known {
		return len(buffered) > 0
	}
	// Of chunks, only the last one is sure to be whole.
	return bytes.HasPrefix(bytes.TrimPrefix(buffered, []byte("\r\n")), []byte("0\r\n\r\n"))
}

// Close gives up what has not been read, and the connection with it.
func (b *Body) Close() error {
	if !b.done {
		b.end(false)
	}
	return nil
}

func (b *Body) end(whole bool) {
	b.done = true
	stopped := b.stop()
	if left := b.c.doneReading(); !stopped || !whole || !b.keep || left {
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
