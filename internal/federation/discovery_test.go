package federation_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
)

// TestDiscovery: each row is a way in which the specification lets a server be found. If one fails, users on servers that
// are set up that way cannot be refreshed, or the server refuses us for a wrong Host or certificate name.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	for _, row := range []discoveryRow{
		{name: "IPv4 literal", server: "127.1.0.1", at: "127.1.0.1:8448", cert: "127.1.0.1", host: "127.1.0.1", setup: func(w *world) {
			w.wellKnown("127.1.0.1", "127.1.0.1", func(http.ResponseWriter, *http.Request) { w.Error("the well-known was asked") })
		}},
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
		{
			name: "well-known behind a redirect to another port of an IP literal", server: "b.test", at: "127.1.0.2:99", cert: "m.test", host: "m.test:99",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("m.test", "127.1.0.2")
				w.wellKnown("b.test", "127.1.0.1", redirect("https://127.1.0.4:444/anything"))
				fedtest.ServeTLS(w, w.net.Listen("127.1.0.4:444"), w.ca.Issue("127.1.0.4"), delegation("m.test:99"))
			},
		},
		{
			name: "well-known names a name with a well-known of its own, which is not asked", server: "b.test", at: "127.1.0.2:8448", cert: "m.test", host: "m.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("m.test", "127.1.0.2")
				w.wellKnown("b.test", "127.1.0.1", delegation("m.test"))
				w.wellKnown("m.test", "127.1.0.2", func(http.ResponseWriter, *http.Request) { w.Error("the second well-known was asked") })
			},
		},
		{
			name: "well-known names a name alone, and the SRV record is another's", server: "b.test", at: "127.1.0.2:8448", cert: "m.test", host: "m.test",
			setup: func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("m.test", "127.1.0.2")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "old.b.test", Port: 8448})
				w.wellKnown("b.test", "127.1.0.1", delegation("m.test"))
			},
		},
		delegatedTo("with capitals", "M.Test:99", "m.test", "M.Test:99"),
		delegatedTo("with a dot at the end", "m.test.:99", "m.test", "m.test.:99"),
		delegatedTo("in Punycode", "xn--bcher-kva.test:99", "xn--bcher-kva.test", "xn--bcher-kva.test:99"),
		fallback("well-known is a 404", http.NotFound),
		fallback("well-known is a 500", func(rw http.ResponseWriter, _ *http.Request) {
			http.Error(rw, `{"m.server": "evil.test:1"}`, http.StatusInternalServerError)
		}),
		fallback("well-known is no content", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) }),
		fallback("well-known has another certificate", nil),
		fallback("well-known is null", body("null")),
		fallback("well-known is a list", body(`["m.server"]`)),
		fallback("well-known names nothing", body(`{}`)),
		fallback("well-known names a number", body(`{"m.server": 5}`)),
		fallback("well-known names an empty string", delegation("")),
		fallback("well-known names a URL", delegation("https://evil.test")),
		fallback("well-known names a user", delegation("user@evil.test:1")),
		fallback("well-known names a name in Unicode", delegation("bücher.test")),
		fallback("well-known names a name with a space", delegation(" evil.test:1")),
		fallback("well-known names a header", delegation(`evil.test:1\r\nX: y`)),
		fallback("well-known names port 0", delegation("evil.test:0")),
		fallback("well-known names port 65536", delegation("evil.test:65536")),
		fallback("well-known names no port after the colon", delegation("evil.test:")),
		fallback("well-known names an address that is none", delegation("[:::::]:1")),
		fallback("well-known names an address with a zone", delegation("[fe80::1%eth0]:1")),
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
			name: "SRV whose targets are other names, in order of priority", server: "b.test", at: "127.1.0.3:77", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("node.test", "127.1.0.3")
				w.dns.CNAME("alias.test", "alias2.test")
				w.dns.CNAME("alias2.test", "node.test")
				w.serveWith("127.1.0.3:78", w.ca.Issue("b.test")) // answers 404
				w.dns.SRV("matrix-fed", "b.test",
					net.SRV{Target: "node.test", Port: 78, Priority: 2, Weight: 100}, net.SRV{Target: "alias.test", Port: 77, Priority: 1})
			},
		},
		{
			name: "SRV without a port", server: "b.test", at: "127.1.0.3:77", cert: "b.test", host: "b.test",
			setup: func(w *world) {
				w.dns.Host("node.test", "127.1.0.3")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "node.test", Port: 0, Priority: 1}, net.SRV{Target: "node.test", Port: 77, Priority: 2})
			},
		},
		{
			name: "name is another name", server: "b.test:1", at: "127.1.0.1:1", cert: "b.test", host: "b.test:1",
			setup: func(w *world) {
				w.dns.CNAME("b.test", "c.test")
				w.dns.CNAME("c.test", "d.test")
				w.dns.Host("d.test", "127.1.0.1")
			},
		},
		{
			name: "name with a dot at the end", server: "b.test.:1", at: "127.1.0.1:1", cert: "b.test", host: "b.test.:1",
			setup: func(w *world) { w.dns.Host("b.test", "127.1.0.1") },
		},
		{
			name: "IPv6 is another site's, IPv4 is right", server: "b.test:1", at: "127.1.0.1:1", cert: "b.test", host: "b.test:1",
			setup: func(w *world) {
				w.dns.Host("b.test", "fd00:1::1", "127.1.0.1")
				w.serveWith("[fd00:1::1]:1", w.ca.Issue("other.test"))
			},
		},
		{
			name: "IPv6 hangs in the handshake, IPv4 is right", server: "b.test:1", at: "127.1.0.1:1", cert: "b.test", host: "b.test:1",
			setup: func(w *world) {
				w.dns.Host("b.test", "fd00:1::1", "127.1.0.1")
				w.raw("[fd00:1::1]:1", func(ending context.Context, _ net.Conn) { <-ending.Done() })
			},
		},
		{
			name: "well-known's IPv6 hangs in the handshake, its IPv4 is right", server: "b.test", at: "127.1.0.2:99", cert: "m.test", host: "m.test:99",
			setup: func(w *world) {
				w.dns.Host("b.test", "fd00:1::1", "127.1.0.1")
				w.dns.Host("m.test", "127.1.0.2")
				w.raw("[fd00:1::1]:443", func(ending context.Context, _ net.Conn) { <-ending.Done() })
				w.wellKnown("b.test", "127.1.0.1", delegation("m.test:99"))
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
			if _, failure := w.fetch(id.UserID("@bob:"+row.server), 20*time.Second); failure != nil {
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

// fallback is a row whose well-known is no use (with no handler: has a wrong certificate), so that port 8448 of the name itself is used.
func fallback(name string, handler http.HandlerFunc) discoveryRow {
	return discoveryRow{
		name: name, server: "b.test", at: "127.1.0.1:8448", cert: "b.test", host: "b.test",
		setup: func(w *world) {
			w.dns.Host("b.test", "127.1.0.1")
			if handler == nil {
				w.serveWith("127.1.0.1:443", w.ca.Issue("other.test"))
				return
			}
			w.wellKnown("b.test", "127.1.0.1", handler)
		},
	}
}

// delegatedTo is a row whose well-known names told, which is at the name cert.
func delegatedTo(name, told, cert, host string) discoveryRow {
	return discoveryRow{
		name: "well-known names a name " + name, server: "b.test", at: "127.1.0.2:99", cert: cert, host: host,
		setup: func(w *world) {
			w.dns.Host("b.test", "127.1.0.1")
			w.dns.Host(cert, "127.1.0.2")
			w.wellKnown("b.test", "127.1.0.1", delegation(told))
		},
	}
}

func body(text string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(text)) }
}

func redirect(to string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, to, http.StatusFound) }
}
