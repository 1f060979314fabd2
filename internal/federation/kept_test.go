package federation_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"freshen/internal/federation/fedtest"
)

// TestKeptConnectionThatWentSilent: when a firewall in between forgot a kept connection, the user gets their list by a
// new one instead of a timeout.
func TestKeptConnectionThatWentSilent(t *testing.T) {
	for proto, serve := range map[string]func(*world, net.Listener, http.Handler){
		"HTTP/1.1": func(w *world, l net.Listener, h http.Handler) { fedtest.ServeTLS1(w, l, w.ca.Issue("127.1.0.1"), h) },
		"HTTP/2.0": func(w *world, l net.Listener, h http.Handler) { fedtest.ServeTLS(w, l, w.ca.Issue("127.1.0.1"), h) },
	} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			server := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
			serve(w, w.net.Listen("127.1.0.9:9"), server)
			forgotten := make(chan struct{}) // once closed, the first connection carries nothing more
			var first sync.Once
			w.raw("127.1.0.1:1", func(ending context.Context, conn net.Conn) {
				var forget chan struct{}
				first.Do(func() { forget = forgotten })
				through, err := w.net.Connect(ending, netip.MustParseAddrPort("127.1.0.9:9"))
				if err != nil {
					return
				}
				var both sync.WaitGroup
				both.Go(func() { relay(conn, through, forget) })
				both.Go(func() { relay(through, conn, forget) })
				both.Wait()
			})
			w.good("@bob:127.1.0.1:1")
			close(forgotten)
			if _, failure := w.fetch("@bob:127.1.0.1:1", 10*time.Second); failure != nil {
				t.Error(failure)
			}
			if seen := server.Requests(); len(seen) != 2 || seen[1].Proto != proto {
				t.Errorf("the server saw %+v, want two requests over %s", seen, proto)
			}
		})
	}
}

// relay copies what to reads from from, until either ends; it drops everything once forget is closed.
func relay(to, from net.Conn, forget <-chan struct{}) {
	defer func() { _ = to.Close() }()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		select {
		case <-forget:
			continue
		default:
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}
