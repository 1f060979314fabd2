package federation_test

import (
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"freshen/internal/federation/fedtest"
)

// TestWellKnownIsCachedWithinBounds: without the cache each refresh costs the remote site a request more; without the
// bounds a server that moves away is not found for a long time.
func TestWellKnownIsCachedWithinBounds(t *testing.T) {
	t.Parallel()
	expiresIn := time.Now().Add(2 * time.Hour).UTC().Format(http.TimeFormat)
	for _, row := range []struct {
		name, header, value string
		status              int
		within, after       time.Duration // asked again not before, and surely after
	}{
		{"max-age", "Cache-Control", "public, max-age=7200", 200, 119 * time.Minute, 121 * time.Minute},
		{"max-age of a year", "Cache-Control", "max-age=31536000", 200, 47 * time.Hour, 49 * time.Hour},
		{"max-age of nothing", "Cache-Control", "max-age=0", 200, 4 * time.Minute, 6 * time.Minute},
		{"no-store", "Cache-Control", "no-store", 200, 4 * time.Minute, 6 * time.Minute},
		{"nothing said", "X-Nothing", "", 200, 23 * time.Hour, 25 * time.Hour},
		{"Expires", "Expires", expiresIn, 200, 119 * time.Minute, 121 * time.Minute},
		{"Expires long ago", "Expires", "Thu, 01 Jan 1970 00:00:00 GMT", 200, 4 * time.Minute, 6 * time.Minute},
		{"Expires that is no date", "Expires", "0", 200, 4 * time.Minute, 6 * time.Minute},
		{"an error", "Cache-Control", "max-age=86400", 404, 9 * time.Minute, 11 * time.Minute},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.dns.Host("b.test", "127.1.0.1")
			w.homeserver("b.test", "127.1.0.1:8448", "b.test")
			asked := make(chan struct{}, 10)
			w.wellKnown("b.test", "127.1.0.1", func(rw http.ResponseWriter, _ *http.Request) {
				asked <- struct{}{}
				rw.Header().Set(row.header, row.value)
				rw.WriteHeader(row.status)
				_, _ = rw.Write([]byte(`{"m.server": "b.test:8448"}`))
			})
			for _, step := range []struct {
				advance time.Duration
				want    int
			}{{0, 1}, {row.within, 1}, {row.after - row.within, 2}} {
				w.clock.Advance(step.advance)
				w.good("@bob:b.test")
				if len(asked) != step.want {
					t.Errorf("after %s more the well-known was asked %d times in all, want %d", step.advance, len(asked), step.want)
				}
			}
		})
	}
}

// TestChangedDelegationIsUsed: a server that moves is found at its new place once the old answer has run out, although a
// connection to the old place is still open.
func TestChangedDelegationIsUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dns.Host("b.test", "127.1.0.1")
	w.dns.Host("m.test", "127.1.0.2")
	before := w.homeserver("b.test", "127.1.0.2:1", "m.test")
	after := w.homeserver("b.test", "127.1.0.2:2", "m.test")
	answers := []string{"m.test:1", "m.test:2"}
	w.wellKnown("b.test", "127.1.0.1", func(rw http.ResponseWriter, r *http.Request) {
		answer := answers[0]
		answers = answers[1:]
		rw.Header().Set("Cache-Control", "max-age=600")
		delegation(answer)(rw, r)
	})
	w.good("@bob:b.test")
	w.clock.Advance(11 * time.Minute)
	w.good("@bob:b.test")
	if len(before.Requests()) != 1 || len(after.Requests()) != 1 {
		t.Errorf("the old place saw %d requests and the new one %d, want 1 and 1", len(before.Requests()), len(after.Requests()))
	}
}

// TestChangedSRVIsUsed: a server that moves by its SRV record is found at its new place a minute later, although a
// connection to the old place is still open.
func TestChangedSRVIsUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dns.Host("node.test", "127.1.0.3")
	w.dns.Host("b.test", "127.1.0.1")
	w.wellKnown("b.test", "127.1.0.1", http.NotFound)
	before := w.homeserver("b.test", "127.1.0.3:1", "b.test")
	after := w.homeserver("b.test", "127.1.0.3:2", "b.test")
	w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "node.test", Port: 1})
	w.good("@bob:b.test")
	w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "node.test", Port: 2})
	w.clock.Advance(59 * time.Second)
	w.good("@bob:b.test")
	if asked := w.dns.Asked("_matrix-fed._tcp.b.test"); asked != 1 {
		t.Errorf("the name server was asked %d times within a minute, want once", asked)
	}
	w.clock.Advance(2 * time.Second)
	w.good("@bob:b.test")
	if len(before.Requests()) != 2 || len(after.Requests()) != 1 {
		t.Errorf("the old place saw %d requests and the new one %d, want 2 and 1", len(before.Requests()), len(after.Requests()))
	}
}

// TestAddressesAreNotKept: a server that moves to another address is found there by the next connection.
func TestAddressesAreNotKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dns.Host("b.test", "127.1.0.1")
	w.script("b.test", "127.1.0.1:1", fedtest.Answer(200, "Connection: close", string(listOf("@bob:b.test:1"))))
	after := w.homeserver("b.test:1", "127.1.0.2:1", "b.test")
	w.good("@bob:b.test:1")
	w.dns.Host("b.test", "127.1.0.2")
	w.good("@bob:b.test:1")
	if len(after.Requests()) != 1 {
		t.Errorf("the new address saw %d requests, want 1", len(after.Requests()))
	}
}

// TestLongAnswersOfTheNameServer: a site with many SRV records or addresses, whose answers do not fit into a datagram,
// is found all the same.
func TestLongAnswersOfTheNameServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var targets []net.SRV
	var addrs []string
	for i := range 60 {
		name := "a-rather-long-name-of-a-node-that-fills-datagrams.test"
		targets = append(targets, net.SRV{Target: name, Port: 77, Priority: uint16(i), Weight: 1})
		addrs = append(addrs, netip.AddrFrom4([4]byte{127, 1, 2, byte(i)}).String())
	}
	w.dns.SRV("matrix-fed", "b.test", targets...)
	w.dns.Host(targets[0].Target, addrs...)
	for _, addr := range addrs[:8] {
		w.homeserver("b.test", addr+":77", "b.test")
	}
	w.good("@bob:b.test")
	if asked := w.dns.AskedOverTCP(); asked == 0 {
		t.Error("nothing was asked over TCP: the answers were not long enough to test it")
	}
}

// TestSlowNameServer: a name server that takes its time is waited for.
func TestSlowNameServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.dns.Host("b.test", "127.1.0.1")
	w.dns.Slow("b.test", 300*time.Millisecond)
	w.homeserver("b.test", "127.1.0.1:8448", "b.test")
	if _, failure := w.fetch("@bob:b.test", 30*time.Second); failure != nil {
		t.Error(failure)
	}
}
