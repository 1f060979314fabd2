package federation

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"freshen"
)

const (
	// maxAsked is what one request may bring in, in bytes on the wire: the largest list, what HTTP/2 may have sent beyond
	// what was read, headers and framing.
	maxAsked = freshen.MaxDeviceListBytes + 8<<20
	// maxUnasked is what may come in while no request waits: the pings and settings of HTTP/2, a farewell.
	maxUnasked = 64 << 10
	// maxConnects bounds the connections that are made for one request. An HTTP/2 server that says of each request that
	// it was not processed makes net/http connect again and again, thousands of times within the request's limit.
	maxConnects = 3
)

var (
	errFlooded   = errors.New("it sent far more than it was asked for")
	errBreaksOff = errors.New("it broke off every connection before it answered")
)

// guard is a TCP connection below TLS that ends when its other end sends without being asked: net/http answers pings and
// reads what it does not know as long as it comes, also while the connection is merely kept. And it ends when an answer
// on it was not waited for to its end, so that the next request is not sent where nobody answers, or behind a flood;
// unless others still wait on it.
type guard struct {
	net.Conn

	mu    sync.Mutex
	users int   // requests that wait
	left  int64 // bytes that may still come
	ended bool  // it was closed while no request was waiting
}

func newGuard(conn net.Conn) *guard { return &guard{Conn: conn, left: maxUnasked + tlsHandshakeBytes} }

// tlsHandshakeBytes is more than crypto/tls lets a handshake have.
const tlsHandshakeBytes = 1 << 20

// guardOf is the guard below a connection that dialTLS made.
func guardOf(conn net.Conn) *guard {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	g, _ := conn.(*guard)
	return g
}

// Read implements [net.Conn].
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.mu.Lock()
	g.left -= int64(n)
	flooded := g.left < 0
	g.ended = g.ended || flooded && g.users == 0
	g.mu.Unlock()
	if flooded {
		_ = g.Close()
		return 0, errFlooded
	}
	return n, err
}

// begin is told of a request that is sent on the connection.
func (g *guard) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users == 0 {
		g.left = 0
	}
	g.users++
	g.left += maxAsked
}

// end is told that the request is over, and whether the rest of its answer was not waited for.
func (g *guard) end(unread bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.users--
	if g.users > 0 {
		return
	}
	g.left = maxUnasked
	if unread {
		g.ended = true
		_ = g.Close()
	}
}

// hasEnded says whether the connection was closed before the request came that was sent on it: net/http learns of that
// a moment later.
func (g *guard) hasEnded() bool {
	if g == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended
}
