package federation_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"freshen/internal/federation/fedtest"
)

// TestKeptConnectionThatWentSilent: when a firewall in between forgot a kept connection, the user gets their list by a
// new one instead of a timeout.
func TestKeptConnectionThatWentSilent(t *testing.T) {
	t.Parallel()
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

// TestKeptConnectionToAServerThatIsGone: a kept connection that fell silent is given up once; that there is no new one is
// then told at once.
func TestKeptConnectionToAServerThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
	fedtest.ServeTLS(w, w.net.Listen("127.1.0.9:9"), w.ca.Issue("127.1.0.1"), server)
	forgotten := make(chan struct{})
	w.raw("127.1.0.1:1", func(ending context.Context, conn net.Conn) {
		through, err := w.net.Connect(ending, netip.MustParseAddrPort("127.1.0.9:9"))
		if err != nil {
			return
		}
		var both sync.WaitGroup
		both.Go(func() { relay(conn, through, forgotten) })
		both.Go(func() { relay(through, conn, forgotten) })
		both.Wait()
	})
	w.good("@bob:127.1.0.1:1")
	close(forgotten)
	w.net.Remove("127.1.0.1:1")
	_, failure := w.fetch("@bob:127.1.0.1:1", 10*time.Second)
	if failure == nil || failure.Sentence != "127.1.0.1:1 refused the connection." {
		t.Errorf("got %v, want to hear of the refused connection", failure)
	}
	if dialed := len(w.net.Dialed()); dialed != 3 { // this server, what is behind it, and this server again
		t.Errorf("%d connections were dialled, want 3", dialed)
	}
}

// TestNeighbourOnTheSameConnection: one user whose list a server never sends costs the other users of that server
// nothing, although their requests share a connection that is given up for it.
func TestNeighbourOnTheSameConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
	arrived := make(chan struct{}, 10)
	var asked atomic.Int32
	fedtest.ServeTLS(w, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		hangs := strings.Contains(r.URL.Path, "@hang:")
		if hangs || strings.Contains(r.URL.Path, "@slow:") && asked.Add(1) == 1 {
			arrived <- struct{}{}
			<-r.Context().Done()
			return
		}
		server.ServeHTTP(rw, r)
	}))
	w.good("@bob:127.1.0.1:1")
	var both sync.WaitGroup
	both.Go(func() {
		if _, failure := w.fetch("@slow:127.1.0.1:1", 30*time.Second); failure != nil {
			t.Error(failure)
		}
	})
	<-arrived
	both.Go(func() {
		if _, failure := w.fetch("@hang:127.1.0.1:1", 2*time.Second); failure == nil {
			t.Error("there is a list of a user whose list is never sent")
		}
	})
	<-arrived
	both.Wait()
	if asked.Load() != 2 {
		t.Errorf("the slow list was asked for %d times, want twice", asked.Load())
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
