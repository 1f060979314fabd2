package federation_test

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestDiscovery: each row is a way in which the specification lets a server be found. If one fails, users on servers that
// are set up that way cannot be refreshed, or the server refuses us for a wrong Host or certificate name.
func TestDiscovery(t *testing.T) {
	for _, row := range []discoveryRow{
		{name: "IPv4 literal", server: "127.1.0.1", at: "127.1.0.1:8448", cert: "127.1.0.1", host: "127.1.0.1"},
		{name: "IPv4 literal with port", server: "127.1.0.1:1234", at: "127.1.0.1:1234", cert: "127.1.0.1", host: "127.1.0.1:1234"},
		{name: "IPv6 literal", server: "[fd00:1::1]", at: "[fd00:1::1]:8448", cert: "fd00:1::1", host: "[fd00:1::1]"},
		{name: "IPv6 literal with port", server: "[fd00:1::1]:1234", at: "[fd00:1::1]:1234", cert: "fd00:1::1", host: "[fd00:1::1]:1234"},
		{
			name: "name with port, well-known not asked", server: "b.test:1234", at: "127.1.0.1:1234", cert: "b.test", host: "b.test:1234",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.wellKnown("b.test", "127.1.0.1", func(http.ResponseWriter, *http.Request) { w.Error("the well-known was asked") })
			},
		},
		{
			name: "well-known names an IP literal", server: "b.test", at: "127.1.0.2:8448", cert: "127.1.0.2", host: "127.1.0.2",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.wellKnown("b.test", "127.1.0.1", delegation("127.1.0.2"))
			},
		},
		{
			name: "well-known names an IP literal with port", server: "b.test", at: "[fd00:1::2]:99", cert: "fd00:1::2", host: "[fd00:1::2]:99",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.wellKnown("b.test", "127.1.0.1", delegation("[fd00:1::2]:99"))
			},
		},
		{
			name: "well-known names a name with port, which beats the SRV record", server: "b.test", at: "127.1.0.2:443", cert: "matrix.b.test", host: "matrix.b.test:443",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("matrix.b.test", "127.1.0.2")
				w.dns.SRV("matrix", "b.test", net.SRV{Target: "old.b.test", Port: 8448})
				w.wellKnown("b.test", "127.1.0.1", delegation("matrix.b.test:443"))
			},
		},
		{
			name: "well-known names a name with SRV", server: "b.test", at: "127.1.0.3:77", cert: "matrix.b.test", host: "matrix.b.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("node.test", "127.1.0.3")
				w.dns.SRV("matrix-fed", "matrix.b.test", net.SRV{Target: "node.test", Port: 77})
				w.wellKnown("b.test", "127.1.0.1", delegation("matrix.b.test"))
			},
		},
		{
			name: "well-known names a name with the old SRV", server: "b.test", at: "127.1.0.3:77", cert: "matrix.b.test", host: "matrix.b.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("node.test", "127.1.0.3")
				w.dns.SRV("matrix", "matrix.b.test", net.SRV{Target: "node.test", Port: 77})
				w.wellKnown("b.test", "127.1.0.1", delegation("matrix.b.test"))
			},
		},
		{
			name: "well-known names a name alone", server: "b.test", at: "127.1.0.2:8448", cert: "matrix.b.test", host: "matrix.b.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("matrix.b.test", "127.1.0.2")
				w.wellKnown("b.test", "127.1.0.1", delegation("matrix.b.test"))
			},
		},
		{
			name: "well-known behind redirects", server: "b.test", at: "127.1.0.2:99", cert: "m.test", host: "m.test:99",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("www.b.test", "127.1.0.4")
				w.dns.Host("m.test", "127.1.0.2")
				w.wellKnown("b.test", "127.1.0.1", redirect("https://www.b.test/.well-known/matrix/server"))
				w.wellKnown("www.b.test", "127.1.0.4", delegation("m.test:99"))
			},
		},
		fallback("well-known is a 404", http.NotFound),
		fallback("well-known is HTML", func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("<html>")) }),
		fallback("well-known names no server name", delegation("evil.test/path")),
		fallback("well-known names a port that is none", delegation("evil.test:99999")),
		fallback("well-known redirects to http", redirect("http://b.test/.well-known/matrix/server")),
		fallback("well-known redirects for ever", redirect("https://b.test/.well-known/matrix/server")),
		fallback("well-known redirects into our own network", redirect("https://127.0.0.1/.well-known/matrix/server")),
		fallback("well-known is too large", func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = rw.Write([]byte(`{"m.server": "evil.test"` + strings.Repeat(" ", 64<<10) + `}`))
		}),
		{
			name: "SRV", server: "b.test", at: "127.1.0.3:77", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("node.test", "127.1.0.3")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "node.test", Port: 77})
				w.dns.SRV("matrix", "b.test", net.SRV{Target: "old.test", Port: 78})
			},
		},
		{
			name: "old SRV", server: "b.test", at: "127.1.0.3:77", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("node.test", "127.1.0.3")
				w.dns.SRV("matrix", "b.test", net.SRV{Target: "node.test", Port: 77})
			},
		},
		{
			name: "SRV with targets that are down, hang, have no address, are refused or show a wrong certificate", server: "b.test", at: "127.1.0.9:9", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("n.test", "127.1.0.3")
				w.dns.Host("inner.test", "10.0.0.1")
				w.dns.Host("last.test", "127.1.0.9")
				w.net.Silence("127.1.0.3:2")
				w.serveWith("127.1.0.3:3", w.ca.Issue("other.test"))
				w.dns.SRV("matrix-fed", "b.test",
					net.SRV{Target: "last.test", Port: 9, Priority: 60}, net.SRV{Target: "n.test", Port: 1, Priority: 10},
					net.SRV{Target: "n.test", Port: 2, Priority: 20}, net.SRV{Target: "inner.test", Port: 9, Priority: 30},
					net.SRV{Target: "none.test", Port: 9, Priority: 40}, net.SRV{Target: "n.test", Port: 3, Priority: 50})
			},
		},
		{
			name: "name server fails on SRV", server: "b.test", at: "127.1.0.1:8448", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Break("_tcp.b.test")
			},
		},
		{
			name: "well-known hangs", server: "b.test", at: "127.1.0.1:8448", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.net.Silence("127.1.0.1:443")
			},
		},
		{
			name: "IPv6 closed, IPv4 open", server: "b.test:1", at: "127.1.0.1:1", cert: "b.test", host: "b.test:1",
			setup: func(w *world) { w.dns.Host("b.test", "fd00:1::1", "127.1.0.1") },
		},
		{
			name: "IPv4 closed, IPv6 open", server: "b.test:1", at: "[fd00:1::1]:1", cert: "b.test", host: "b.test:1",
			setup: func(w *world) { w.dns.Host("b.test", "fd00:1::1", "127.1.0.1") },
		},
		{
			name: "IPv6 swallows, IPv4 open", server: "b.test:1", at: "127.1.0.1:1", cert: "b.test", host: "b.test:1",
			setup: func(w *world) {
				w.dns.Host("b.test", "fd00:1::1", "127.1.0.1")
				w.net.Silence("[fd00:1::1]:1")
			},
		},
		{
			name: "capitals in the name", server: "B.Test:1", at: "127.1.0.1:1", cert: "b.test", host: "B.Test:1",
			setup: func(w *world) { w.dns.Host("b.test", "127.1.0.1") },
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			server := w.homeserver(row.server, row.at, row.cert)
			if row.setup != nil {
				row.setup(w)
			}
			if _, failure := w.fetch(id.UserID("@bob:"+row.server), 6*time.Second); failure != nil {
				t.Fatalf("no list: %v", failure)
			}
			seen := server.Requests()
			if len(seen) != 1 {
				t.Fatalf("the server saw %d requests, want 1", len(seen))
			}
			sni := row.cert
			if net.ParseIP(sni) != nil {
				sni = ""
			}
			if seen[0].Host != row.host || !strings.EqualFold(seen[0].SNI, sni) || seen[0].Denied != "" {
				t.Errorf("the server saw Host %q, SNI %q, signature %q; want Host %q, SNI %q", seen[0].Host, seen[0].SNI, seen[0].Denied, row.host, sni)
			}
			if seen[0].UserAgent != "freshen/test (+us.test)" {
				t.Errorf("User-Agent %q does not say whom to ask", seen[0].UserAgent)
			}
			for _, dialed := range w.net.Dialed() {
				if dialed.Addr().String() == "10.0.0.1" || dialed.Addr().String() == "127.0.0.1" {
					t.Errorf("%s was dialled, which is refused", dialed)
				}
			}
		})
	}
}

type discoveryRow struct {
	name   string
	server string // in the user ID
	at     string // where the homeserver stands
	cert   string // its certificate's name, and the SNI unless it is an address
	host   string // the Host header that it must see
	setup  func(w *world)
}

// fallback is a row whose well-known is no use, so that port 8448 of the name itself is used.
func fallback(name string, handler http.HandlerFunc) discoveryRow {
	return discoveryRow{
		name: name, server: "b.test", at: "127.1.0.1:8448", cert: "b.test", host: "b.test",
		setup: func(w *world) {
			w.dns.Host("b.test", "127.1.0.1")
			w.wellKnown("b.test", "127.1.0.1", handler)
		},
	}
}

func redirect(to string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, to, http.StatusFound) }
}

// TestWellKnownIsCachedWithinBounds: without the cache each refresh costs the remote site a request more; without the
// bounds a server that moves away is not found for a long time.
func TestWellKnownIsCachedWithinBounds(t *testing.T) {
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
