package federation_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// headerDrip begins an answer and then sends a header line every pause, each well within what is usual, for ever.
func headerDrip(pause time.Duration) fedtest.Script {
	return func(gone context.Context, conn net.Conn, _ *http.Request) {
		_, _ = fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n")
		drop := time.NewTicker(pause)
		defer drop.Stop()
		for i := 0; ; i++ {
			select {
			case <-gone.Done():
				return
			case <-drop.C:
				if _, err := fmt.Fprintf(conn, "X-%d: x\r\n", i); err != nil {
					return
				}
			}
		}
	}
}

// seconds are what depends on how busy the machine is.
var seconds = regexp.MustCompile(`[0-9.]+ s\b`)

// TestStageThatHangsIsNamed: an administrator hears which step did not come to its end, and the request ends before its
// own time has run out, however slowly the server drips.
func TestStageThatHangsIsNamed(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, server string
		setup        func(w *world)
		reason       freshen.Reason
		says         string
	}{
		{"address swallows", "127.1.0.1:1", func(w *world) { w.net.Silence("127.1.0.1:1") }, freshen.ReasonTimeout, "127.1.0.1:1 could not be connected to within N s."},
		{
			"handshake", "127.1.0.1:1", func(w *world) {
				w.raw("127.1.0.1:1", func(ending context.Context, _ net.Conn) { <-ending.Done() })
			}, freshen.ReasonTimeout, "127.1.0.1:1 did not finish the TLS handshake within N s.",
		},
		{
			"handshake that drips", "127.1.0.1:1", func(w *world) {
				w.raw("127.1.0.1:1", func(ending context.Context, conn net.Conn) {
					drop := time.NewTicker(20 * time.Millisecond)
					defer drop.Stop()
					_, _ = conn.Write([]byte{22, 3, 3, 64, 0}) // a handshake record of 16 KiB
					for {
						select {
						case <-ending.Done():
							return
						case <-drop.C:
							if _, err := conn.Write([]byte{2}); err != nil {
								return
							}
						}
					}
				})
			}, freshen.ReasonTimeout, "127.1.0.1:1 did not finish the TLS handshake within N s.",
		},
		{"no answer", "127.1.0.1:1", func(w *world) { w.script("127.1.0.1", "127.1.0.1:1", fedtest.Hang) }, freshen.ReasonTimeout, "127.1.0.1:1 did not answer within N s."},
		{"header drips", "127.1.0.1:1", func(w *world) { w.script("127.1.0.1", "127.1.0.1:1", headerDrip(20*time.Millisecond)) }, freshen.ReasonTimeout, "127.1.0.1:1 did not answer within N s."},
		{"body drips", "127.1.0.1:1", func(w *world) { w.script("127.1.0.1", "127.1.0.1:1", fedtest.Drip(20*time.Millisecond)) }, freshen.ReasonTimeout, "127.1.0.1:1 was still sending its answer after N s."},
		{"name server", "b.test:1", func(w *world) { w.dns.Silence("b.test") }, freshen.ReasonDNS, "The name b.test could not be looked up: its name server did not answer in time."},
		{
			"name server of an SRV target", "b.test", func(w *world) {
				w.dns.Silence("node.test")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "node.test", Port: 1})
			}, freshen.ReasonDNS, "The SRV record _matrix-fed._tcp.b.test names node.test:1, a name that could not be looked up: its name server did not answer in time." +
				" The well-known of b.test is no help: the name b.test has no address.",
		},
		{
			"well-known and port 8448", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.net.Silence("127.1.0.1:443")
			}, freshen.ReasonConnect, "b.test:8448 refused the connection. The well-known of b.test is no help: b.test:443 could not be connected to within N s.",
		},
		{
			"well-known does not answer", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.script("b.test", "127.1.0.1:443", fedtest.Hang)
			}, freshen.ReasonConnect, "b.test:8448 refused the connection. The well-known of b.test is no help: its web server did not answer within N s.",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			row.setup(w)
			// The stages have parts of 4 s.
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, failure := w.fetchCtx(ctx, id.UserID("@bob:"+row.server))
			if failure == nil || failure.Reason != row.reason || seconds.ReplaceAllString(failure.Sentence, "N s") != row.says {
				t.Errorf("got %v, want %q: %q", failure, row.reason, row.says)
			}
		})
	}
}

// TestConnectionsOfOneServerAreTaken: a server that answers nobody does not make others wait for it without a reason.
func TestConnectionsOfOneServerAreTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	arrived := make(chan struct{}, 100)
	w.script("127.1.0.1", "127.1.0.1:1", func(gone context.Context, _ net.Conn, _ *http.Request) {
		arrived <- struct{}{}
		<-gone.Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for i := range 8 {
		waiting.Go(func() { w.fetchCtx(ctx, id.UserID(fmt.Sprintf("@u%d:127.1.0.1:1", i))) })
	}
	for range 8 {
		<-arrived
	}
	_, failure := w.fetch("@bob:127.1.0.1:1", 300*time.Millisecond)
	if failure == nil || failure.Reason != freshen.ReasonTimeout || !strings.Contains(failure.Sentence, "as many requests as it may have at once were still waiting for it.") {
		t.Errorf("got %v, want to hear that others wait already", failure)
	}
	cancel()
	waiting.Wait()
}

// TestSocketsRunOut: when freshen has as many connections open as it may have, the failure says so, kept connections
// make room first, and nothing that was found out wrongly in that state is kept.
func TestSocketsRunOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.client.SetMaxSockets(2)
	w.homeserver("127.1.0.2:1", "127.1.0.2:1", "127.1.0.2")
	w.homeserver("127.1.0.2:2", "127.1.0.2:2", "127.1.0.2")
	w.homeserver("127.1.0.2:3", "127.1.0.2:3", "127.1.0.2")
	for _, user := range []id.UserID{"@bob:127.1.0.2:1", "@bob:127.1.0.2:2", "@bob:127.1.0.2:3"} {
		w.good(user) // the third needs the place of a kept one
	}
	arrived := make(chan struct{}, 2)
	w.script("127.1.0.1", "127.1.0.1:1", func(gone context.Context, _ net.Conn, _ *http.Request) {
		arrived <- struct{}{}
		<-gone.Done()
	})
	w.dns.Host("b.test", "127.1.0.3")
	w.dns.Host("m.test", "127.1.0.4")
	w.wellKnown("b.test", "127.1.0.3", delegation("m.test:99"))
	server := w.homeserver("b.test", "127.1.0.4:99", "m.test")
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for i := range 2 {
		waiting.Go(func() { w.fetchCtx(ctx, id.UserID(fmt.Sprintf("@u%d:127.1.0.1:1", i))) })
		<-arrived
	}
	const busy = "freshen has as many connections open as it may have"
	if _, failure := w.fetch("@bob:127.1.0.2:1", 4*time.Second); failure == nil || failure.Reason != freshen.ReasonTimeout || !strings.Contains(failure.Sentence, busy) {
		t.Errorf("got %v, want a timeout that says %q", failure, busy)
	}
	if _, failure := w.fetch("@bob:b.test", 5*time.Second); failure == nil || failure.Reason != freshen.ReasonTimeout || !strings.Contains(failure.Sentence, busy) {
		t.Errorf("got %v, want a timeout that says %q", failure, busy)
	}
	cancel()
	waiting.Wait()
	w.good("@bob:b.test")
	if len(server.Requests()) != 1 {
		t.Error("the delegated server was not asked once there was room")
	}
}
