package federation_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// TestSentences: an administrator reads from the failure alone which name, record or certificate to look at. Each row is
// another way to a server and another thing that is wrong there.
func TestSentences(t *testing.T) {
	t.Parallel()
	yesterday := time.Now().Add(-24 * time.Hour)
	expired := func(w *world, name string) { // at 127.1.0.2:99
		w.serveWith("127.1.0.2:99", w.ca.IssueFor(yesterday.Add(-24*time.Hour), yesterday, name))
	}
	on := yesterday.UTC().Format("2 January 2006")
	for _, row := range []struct {
		name, server string
		setup        func(w *world)
		reason       freshen.Reason
		says         string
	}{
		{"name with port", "b.test:1", func(w *world) { w.dns.Host("b.test", "127.1.0.1", "fd00:1::1") }, freshen.ReasonConnect, "b.test:1 refused the connection."},
		{
			"well-known with port", "b.test", func(w *world) {
				w.wellKnownAt("m.test:99")
				expired(w, "m.test")
			}, freshen.ReasonTLS, "The well-known of b.test names m.test:99, whose certificate expired on " + on + ".",
		},
		{"well-known without port", "b.test", func(w *world) { w.wellKnownAt("m.test") }, freshen.ReasonConnect, "The well-known of b.test leads to m.test:8448, which refused the connection."},
		{"well-known with IP literal", "b.test", func(w *world) { w.wellKnownAt("[fd00:1::2]:99") }, freshen.ReasonConnect, "The well-known of b.test names [fd00:1::2]:99, which refused the connection."},
		{
			"well-known with SRV", "b.test", func(w *world) {
				w.wellKnownAt("m.test")
				w.dns.SRV("matrix-fed", "m.test", net.SRV{Target: "node.test", Port: 1})
			}, freshen.ReasonDNS, "The well-known of b.test names m.test, whose SRV record _matrix-fed._tcp.m.test names node.test:1, a name that has no address.",
		},
		{
			"well-known with SRV that says there is nothing", "b.test", func(w *world) {
				w.wellKnownAt("m.test")
				w.dns.SRV("matrix", "m.test", net.SRV{Target: "."})
			}, freshen.ReasonDNS, "b.test is not asked: the SRV record _matrix._tcp.m.test says that m.test offers no federation.",
		},
		{
			"well-known into the site's own network", "b.test", func(w *world) {
				w.wellKnownAt("m.test:99")
				w.dns.Host("m.test", "10.0.0.1", "fd12::1")
			}, freshen.ReasonDenied, "The well-known of b.test names m.test:99, whose addresses all lie in private or reserved networks, which freshen does not dial; federation.allow_networks opens some.",
		},
		{
			"SRV with a certificate for its own name", "b.test", func(w *world) {
				w.wellKnownIs(http.NotFound)
				w.dns.Host("node.test", "127.1.0.2")
				w.dns.SRV("matrix", "b.test", net.SRV{Target: "node.test", Port: 99})
				w.serveWith("127.1.0.2:99", w.ca.Issue("node.test"))
			}, freshen.ReasonTLS, "The SRV record _matrix._tcp.b.test names node.test:99, whose certificate is not for b.test. The well-known of b.test is no help: it answers 404.",
		},
		{
			"two SRV targets", "b.test", func(w *world) {
				w.wellKnownIs(body("<html>"))
				w.dns.Host("one.test", "127.1.0.2")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "one.test", Port: 1, Priority: 1}, net.SRV{Target: "two.test", Port: 1, Priority: 2})
			}, freshen.ReasonConnect, "The SRV record _matrix-fed._tcp.b.test names one.test:1, which refused the connection. The other server that it names could not be used either. " +
				"The well-known of b.test is no help: it is no JSON object with a string m.server.",
		},
		{
			"three SRV targets, the first of them private", "b.test", func(w *world) {
				w.wellKnownIs(redirect("http://b.test/"))
				w.dns.Host("one.test", "192.168.0.1")
				w.dns.Host("two.test", "127.1.0.2")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "one.test", Port: 1, Priority: 1}, net.SRV{Target: "two.test", Port: 1, Priority: 2}, net.SRV{Target: "two.test", Port: 2, Priority: 3})
			}, freshen.ReasonConnect, "The SRV record _matrix-fed._tcp.b.test names two.test:1, which refused the connection. None of the other 2 that it names could be used either. " +
				"The well-known of b.test is no help: it redirects to something other than https.",
		},
		{
			"IPv6 is another site's", "b.test:1", func(w *world) {
				w.dns.Host("b.test", "fd00:1::1", "127.1.0.1")
				w.serveWith("[fd00:1::1]:1", w.ca.Issue("other.test"))
			}, freshen.ReasonTLS, "The certificate of b.test:1 (at fd00:1::1) is not for b.test.",
		},
		{
			"nothing works", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.serveWith("127.1.0.1:443", w.ca.IssueFor(yesterday.Add(-24*time.Hour), yesterday, "b.test"))
			}, freshen.ReasonConnect, "b.test:8448 refused the connection. The well-known of b.test is no help: the certificate of b.test:443 expired on " + on + ".",
		},
		{
			"both refuse", "b.test", func(w *world) { w.dns.Host("b.test", "127.1.0.1") },
			freshen.ReasonConnect, "b.test:8448 refused the connection. The well-known of b.test is no help: b.test:443 refused the connection.",
		},
		{
			"well-known breaks off", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.script("b.test", "127.1.0.1:443", fedtest.HangUp)
			}, freshen.ReasonConnect, "b.test:8448 refused the connection. The well-known of b.test is no help: its web server broke the connection.",
		},
		{
			"well-known is no HTTP", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.script("b.test", "127.1.0.1:443", fedtest.Bytes("SSH-2.0\n\n"))
			}, freshen.ReasonConnect, "b.test:8448 refused the connection. The well-known of b.test is no help: its web server gave an answer that is no usable HTTP.",
		},
		{
			"name server fails", "b.test", func(w *world) { w.dns.Break("b.test") },
			freshen.ReasonDNS, "The name b.test could not be looked up: its name server does not answer as it should.",
		},
		{"no such name", "b.test", func(*world) {}, freshen.ReasonDNS, "The name b.test has no address."},
		{"private literal", "10.0.0.1", func(*world) {}, freshen.ReasonDenied, "10.0.0.1:8448 lies in private or reserved networks, which freshen does not dial; federation.allow_networks opens some."},
		{
			"no TLS", "b.test:1", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.raw("127.1.0.1:1", func(_ context.Context, conn net.Conn) { _, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) })
			}, freshen.ReasonTLS, "b.test:1 does not speak TLS.",
		},
		{
			"401 where the well-known leads", "b.test", func(w *world) {
				w.wellKnownAt("m.test:99")
				w.script("m.test", "127.1.0.2:99", fedtest.Answer(401, "", "{}"))
			}, freshen.ReasonHTTP, "m.test:99, the server of b.test, answered 401: it does not accept our signature; is our signing key published?",
		},
		{
			"502 at the third SRV target", "b.test", func(w *world) {
				w.dns.Host("one.test", "127.1.0.2")
				w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "one.test", Port: 1, Priority: 1}, net.SRV{Target: "two.test", Port: 1, Priority: 2}, net.SRV{Target: "one.test", Port: 3, Priority: 3})
				w.script("b.test", "127.1.0.2:3", fedtest.Answer(502, "", ""))
			}, freshen.ReasonHTTP, "one.test:3, the server of b.test, answered 502: it, or a proxy in front of it, is in trouble.",
		},
		{
			"404 in HTML, without a well-known", "b.test", func(w *world) {
				w.wellKnownIs(http.NotFound)
				w.script("b.test", "127.1.0.1:8448", fedtest.Answer(404, "", "<html>"))
			}, freshen.ReasonHTTP, "b.test:8448 answered 404 with no Matrix error; perhaps no homeserver runs there any more. The well-known of b.test is no help: it answers 404.",
		},
		{
			"hangs up, without a well-known", "b.test", func(w *world) {
				w.wellKnownIs(http.NotFound)
				w.script("b.test", "127.1.0.1:8448", fedtest.HangUp)
			}, freshen.ReasonConnect, "b.test:8448 broke the connection before it answered. The well-known of b.test is no help: it answers 404.",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			row.setup(w)
			_, failure := w.fetch(id.UserID("@bob:"+row.server), 30*time.Second)
			if failure == nil || failure.Reason != row.reason || failure.Sentence != row.says {
				t.Errorf("got  %v\nwant %q: %s", failure, row.reason, row.says)
			}
		})
	}
}

// wellKnownAt makes b.test delegate to server; m.test is at 127.1.0.2.
func (w *world) wellKnownAt(server string) {
	w.wellKnownIs(delegation(server))
	w.dns.Host("m.test", "127.1.0.2")
}

// wellKnownIs makes b.test, at 127.1.0.1, answer with handler.
func (w *world) wellKnownIs(handler http.HandlerFunc) {
	w.dns.Host("b.test", "127.1.0.1")
	w.wellKnown("b.test", "127.1.0.1", handler)
}
