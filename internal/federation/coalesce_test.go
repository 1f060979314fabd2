package federation_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// delegated is a world in which the well-known of b.test delegates to m.test:99. Each request for it is told on arrived,
// and answered after release is closed.
func delegated(t *testing.T) (w *world, server *fedtest.Homeserver, arrived, release chan struct{}) {
	w = newWorld(t)
	w.dns.Host("b.test", "127.1.0.1")
	w.dns.Host("m.test", "127.1.0.2")
	server = w.homeserver("b.test", "127.1.0.2:99", "m.test")
	arrived, release = make(chan struct{}, 100), make(chan struct{})
	w.wellKnown("b.test", "127.1.0.1", func(rw http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
			delegation("m.test:99")(rw, r)
		case <-r.Context().Done():
		}
	})
	return w, server, arrived, release
}

// TestDiscoveryIsShared: when a room full of people refreshes users of one server, that server's site is asked for its
// well-known once, not once for each; and who hangs up spoils it for nobody.
func TestDiscoveryIsShared(t *testing.T) {
	t.Parallel()
	w, server, arrived, release := delegated(t)
	impatient, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if _, failure := w.fetchCtx(impatient, id.UserID(fmt.Sprintf("@i%d:b.test", i))); failure == nil || failure.Reason != freshen.ReasonTimeout {
				t.Errorf("a cancelled request ended with %v, want a timeout", failure)
			}
		})
	}
	<-arrived
	var patient sync.WaitGroup
	for i := range 10 {
		patient.Go(func() {
			if _, failure := w.fetch(id.UserID(fmt.Sprintf("@p%d:b.test", i)), 10*time.Second); failure != nil {
				t.Error(failure)
			}
		})
	}
	hangUp()
	all.Wait()
	if routes, delegations := w.client.Cached(); routes+delegations != 0 {
		t.Errorf("%d routes and %d delegations are cached before anything was found out", routes, delegations)
	}
	close(release)
	patient.Wait()
	w.good("@later:b.test")
	if again := len(arrived); again != 0 {
		t.Errorf("the well-known was asked %d times, want once", again+1)
	}
	if seen := len(server.Requests()); seen != 11 {
		t.Errorf("the server saw %d requests, want 11", seen)
	}
}

// TestSRVIsShared: the same for what the name server is asked.
func TestSRVIsShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dns.Host("node.test", "127.1.0.3")
	w.dns.Slow("_tcp.b.test", 100*time.Millisecond)
	w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "node.test", Port: 77})
	w.homeserver("b.test", "127.1.0.3:77", "b.test")
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if _, failure := w.fetch(id.UserID(fmt.Sprintf("@p%d:b.test", i)), 10*time.Second); failure != nil {
				t.Error(failure)
			}
		})
	}
	all.Wait()
	if asked := w.dns.Asked("_matrix-fed._tcp.b.test"); asked != 1 {
		t.Errorf("the SRV record was asked for %d times, want once", asked)
	}
}

// TestNobodyWaitsAnyMore: a discovery whose only caller has left is of use to the next one.
func TestNobodyWaitsAnyMore(t *testing.T) {
	t.Parallel()
	w, server, arrived, release := delegated(t)
	ctx, cancel := context.WithCancel(t.Context())
	var leaving sync.WaitGroup
	leaving.Go(func() { w.fetchCtx(ctx, "@bob:b.test") })
	<-arrived
	cancel()
	leaving.Wait()
	close(release)
	w.good("@bob:b.test")
	if again := len(arrived); again != 0 || len(server.Requests()) != 1 {
		t.Errorf("the well-known was asked %d times and the server %d times, want once each", again+1, len(server.Requests()))
	}
}

// TestDiscoveryEnds: one that nothing answers ends by itself, although its callers have more time; and the client can be
// closed in the middle of one, with nothing kept from it (and no goroutine left: goleak).
func TestDiscoveryEnds(t *testing.T) {
	t.Parallel()
	w, _, arrived, _ := delegated(t)
	w.homeserver("b.test", "127.1.0.1:8448", "b.test")
	started := time.Now()
	if _, failure := w.fetch("@bob:b.test", time.Minute); failure != nil {
		t.Errorf("with a silent well-known: %v", failure)
	}
	if took := time.Since(started); took > 30*time.Second {
		t.Errorf("a silent well-known was waited for %s", took)
	}
	w.clock.Advance(time.Hour)
	var closing sync.WaitGroup
	closing.Go(func() {
		if _, failure := w.fetch("@bob:b.test", time.Minute); failure == nil || failure.Sentence != "b.test was not waited for, because freshen is stopping." {
			t.Errorf("got %v, want to hear that freshen stops", failure)
		}
	})
	<-arrived
	<-arrived
	before := fmt.Sprint(w.client.Cached())
	w.client.Close()
	closing.Wait()
	if after := fmt.Sprint(w.client.Cached()); after != before {
		t.Errorf("routes and delegations %s became %s by a discovery that Close ended", before, after)
	}
	if open := w.client.OpenSockets(); open != 0 {
		t.Errorf("%d sockets are open after Close", open)
	}
}
