package federation

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"freshen"
	"freshen/internal/federation/dial"
)

const (
	// maxAsked is what one request may bring in, in bytes on the wire: the largest list, what HTTP/2 may have sent beyond
	// what was read, headers and framing.
	maxAsked = freshen.MaxDeviceListBytes + 8<<20
	// maxUnasked is what may come in while no request waits: the pings and settings of HTTP/2, a farewell.
	maxUnasked = 64 << 10
	// maxHandshake is more than crypto/tls lets a handshake have.
	maxHandshake = 1 << 20
	// maxConnects bounds the connections that are made for one request. An HTTP/2 server that says of each request that
	// it was not processed makes net/http connect again and again, thousands of times within the request's limit.
	maxConnects = 3
)

var (
	errFlooded   = errors.New("it sent far more than it was asked for")
	errBreaksOff = errors.New("it broke off every connection before it answered")
)

// guard is a socket below TLS that ends when its other end sends without being asked: net/http answers pings and reads
// what it does not know as long as it comes, also while the connection is merely kept. A nil guard guards nothing.
type guard struct {
	net.Conn

	mu    sync.Mutex
	users int   // requests that wait
	left  int64 // bytes that may still come
}

func newGuard(conn net.Conn) *guard { return &guard{Conn: conn, left: maxUnasked + maxHandshake} }

// guardOf is the guard below a connection that dialTLS made.
func guardOf(conn net.Conn) *guard {
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	g, _ := conn.(*guard)
	return g
}

func (g *guard) socket() *dial.Socket {
	if g == nil {
		return nil
	}
	socket, _ := g.Conn.(*dial.Socket)
	return socket
}

// Read implements [net.Conn].
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.mu.Lock()
	g.left -= int64(n)
	flooded, used := g.left < 0, g.users > 0
	g.mu.Unlock()
	if !flooded {
		return n, err
	}
	if socket := g.socket(); socket != nil && !used {
		socket.Drop() // who comes now is sent elsewhere
	}
	_ = g.Close()
	return 0, errFlooded
}

// begin is told of a request that is sent on the connection.
func (g *guard) begin() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users == 0 {
		g.left = 0
	}
	g.users++
	g.left += maxAsked
}

// end is told that the request is over.
func (g *guard) end() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users--; g.users == 0 {
		g.left = maxUnasked
	}
}
