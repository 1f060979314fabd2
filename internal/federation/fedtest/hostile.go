package fedtest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
)

// Place is where a misbehaving server stands: the host in its name, an authority that its clients trust, and a good
// certificate for the host.
type Place struct {
	Host string
	CA   *CA
	Cert tls.Certificate
}

// Server is one misbehaving server: all that it does with one connection, from the first byte on. The connection is
// closed when it returns, and when the test ends.
type Server func(conn net.Conn, at Place)

// Misbehave serves the connections of listener with server until the test ends.
func Misbehave(tb testing.TB, listener net.Listener, at Place, server Server) {
	tb.Helper()
	ServeRaw(tb, listener, func(_ context.Context, conn net.Conn) { server(conn, at) })
}

// ServeScript serves HTTP/1.1 on listener until the test ends, see [HTTP1].
func ServeScript(tb testing.TB, listener net.Listener, cert tls.Certificate, script Script) {
	tb.Helper()
	Misbehave(tb, listener, Place{Cert: cert}, HTTP1(script))
}

// ServeRaw hands each connection to serve, and closes it afterwards. ending is done when the test ends.
func ServeRaw(tb testing.TB, listener net.Listener, serve func(ending context.Context, conn net.Conn)) {
	tb.Helper()
	ending, end := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				stop := context.AfterFunc(ending, func() { _ = conn.Close() })
				defer stop()
				serve(ending, conn)
				_ = conn.Close()
			})
		}
	})
	tb.Cleanup(func() { end(); _ = listener.Close(); serving.Wait() })
}
