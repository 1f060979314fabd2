package federation_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// hostileWellKnown are web servers that misbehave when they are asked for /.well-known/matrix/server of the name that
// they stand at, $host. Behind the name there is a good homeserver on port 8448, whose list has the device FALLBACK, and
// one on port 99, whose list has the device DELEGATED.
var hostileWellKnown = []struct {
	name   string
	server fedtest.Server
	device id.DeviceID // "" if want is a failure
	want   outcome
}{
	{"as it should be", says(`{"m.server": "$host:99"}`), "DELEGATED", outcome{}},
	{"silent", fedtest.Silent, "FALLBACK", outcome{waits: true}},
	{"resets", fedtest.Reset, "FALLBACK", outcome{}},
	{"no TLS", fedtest.SaysAndCloses("HTTP/1.1 200 OK\r\n\r\n"), "FALLBACK", outcome{}},
	{"certificate for another name", fedtest.Certified(fedtest.Altered(nil, "other.test")), "FALLBACK", outcome{}},
	{"self-signed", fedtest.Certified(fedtest.SelfSigned), "FALLBACK", outcome{}},
	{"hangs", fedtest.HTTP1(fedtest.Hang), "FALLBACK", outcome{waits: true}},
	{"hangs up", fedtest.HTTP1(fedtest.HangUp), "FALLBACK", outcome{}},
	{"drips its header", fedtest.HTTP1(fedtest.DripAfter("HTTP/1.1 200 OK\nX-Drip: ", 20*time.Millisecond)), "FALLBACK", outcome{waits: true}},
	{"drips its body", fedtest.HTTP1(fedtest.DripAfter("HTTP/1.1 200 OK\nContent-Length: 60000\n\n", 20*time.Millisecond)), "FALLBACK", outcome{waits: true}},
	{"its end does not come", fedtest.HTTP1(fedtest.Then(fedtest.Bytes("HTTP/1.1 200 OK\n\n{\"m.server\": \"$host:99\"}"), fedtest.Hang)), "FALLBACK", outcome{waits: true}},
	{"no HTTP", fedtest.HTTP1(fedtest.Bytes("220 ready\n\n")), "FALLBACK", outcome{}},
	{"speaks HTTP/2 unasked", then2((*fedtest.H2).Good), "FALLBACK", outcome{waits: true}},
	{"header lines for ever", fedtest.HTTP1(fedtest.Then(fedtest.Exactly("HTTP/1.1 200 OK\r\n"), fedtest.Flood("X-Flood: x\r\n", 1<<20))), "FALLBACK", outcome{}},
	{"100 for ever", fedtest.HTTP1(fedtest.Flood("HTTP/1.1 100 Continue\r\n\r\n", 1<<20)), "FALLBACK", outcome{}},
	{"20 MiB", fedtest.HTTP1(fedtest.Huge(20 << 20)), "FALLBACK", outcome{}},
	{"64 KiB and a byte", says(`{"m.server": "$host:99"}` + strings.Repeat(" ", 64<<10)), "FALLBACK", outcome{}},
	{"half a body", fedtest.HTTP1(fedtest.Half(`{"m.server": "$host:99"}`)), "FALLBACK", outcome{}},
	{"gzip", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip", fedtest.Gzip(`{"m.server": "evil.test"}`))), "FALLBACK", outcome{}},
	{"gzip bomb", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip", bomb)), "FALLBACK", outcome{}},
	{"404", fedtest.HTTP1(fedtest.Answer(404, "", `{"m.server": "$host:99"}`)), "FALLBACK", outcome{}},
	{"204", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 204 No Content\n\n")), "FALLBACK", outcome{}},
	{"206", fedtest.HTTP1(fedtest.Answer(206, "", `{"m.server": "$host:99"}`)), "FALLBACK", outcome{}},
	{"304", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 304 Not Modified\n\n")), "FALLBACK", outcome{}},
	{"500 with 20 MiB", fedtest.HTTP1(fedtest.HugeError(500, 20<<20)), "FALLBACK", outcome{}},
	{"switches protocols", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: x\n\n")), "FALLBACK", outcome{}},

	{"redirects to itself for ever", moves("https://$host/.well-known/matrix/server"), "FALLBACK", outcome{}},
	{"redirects to http", moves("http://$host/.well-known/matrix/server"), "FALLBACK", outcome{}},
	{"redirects to loopback", moves("https://127.0.0.1/"), "FALLBACK", outcome{}},
	{"redirects to a name for loopback", moves("https://inner.test/"), "FALLBACK", outcome{}},
	{"redirects to the cloud's metadata", moves("http://169.254.169.254/latest/meta-data/"), "FALLBACK", outcome{}},
	{"redirects to the cloud's metadata with TLS", moves("https://169.254.169.254/"), "FALLBACK", outcome{}},
	{"redirects to loopback inside IPv6", moves("https://[::ffff:127.0.0.1]/"), "FALLBACK", outcome{}},
	{"redirects to a file", moves("file:///etc/passwd"), "FALLBACK", outcome{}},
	{"redirects to a script", moves("javascript:alert(1)"), "FALLBACK", outcome{}},
	{"redirects to no place", moves("https://"), "FALLBACK", outcome{}},
	{"redirects to a place that is none", moves("https://[::1/%zz"), "FALLBACK", outcome{}},
	{"redirects to a port that is none", moves("https://$host:99999/"), "FALLBACK", outcome{}},
	{"redirects without a place", fedtest.HTTP1(fedtest.Answer(302, "", "")), "FALLBACK", outcome{}},
	{"redirects with a place of 60 KiB", moves("https://$host/" + strings.Repeat("x", 60_000)), "FALLBACK", outcome{}},
	{"redirects with a body of 20 MiB", fedtest.HTTP1(fedtest.Then(
		fedtest.Bytes("HTTP/1.1 302 Found\nLocation: https://$host/\nContent-Length: 20971520\n\n"), fedtest.Flood("x", 20<<20))), "FALLBACK", outcome{}},

	{"an array", says(`["$host:99"]`), "FALLBACK", outcome{}},
	{"null", says(`null`), "FALLBACK", outcome{}},
	{"HTML", says(`<html>`), "FALLBACK", outcome{}},
	{"two documents", says(`{"m.server": "evil.test"}{"m.server": "evil.test"}`), "FALLBACK", outcome{}},
	{"byte order mark", says("\xef\xbb\xbf" + `{"m.server": "evil.test"}`), "FALLBACK", outcome{}},
	{"nested without end", says(strings.Repeat(`{"m.server":`, 5000)), "FALLBACK", outcome{}},
	{"m.server null", says(`{"m.server": null}`), "FALLBACK", outcome{}},
	{"m.server a number", says(`{"m.server": 8448}`), "FALLBACK", outcome{}},
	{"m.server empty", says(`{"m.server": ""}`), "FALLBACK", outcome{}},
	{"m.server with a line end", says(`{"m.server": "evil.test\r\nX-Evil: y"}`), "FALLBACK", outcome{}},
	{"m.server with NUL", says(`{"m.server": "evil.test\u0000.b.test"}`), "FALLBACK", outcome{}},
	{"m.server with a path", says(`{"m.server": "evil.test/x"}`), "FALLBACK", outcome{}},
	{"m.server with a user", says(`{"m.server": "a@evil.test"}`), "FALLBACK", outcome{}},
	{"m.server a URL", says(`{"m.server": "https://evil.test"}`), "FALLBACK", outcome{}},
	{"m.server with a zone", says(`{"m.server": "[fe80::1%25lo]"}`), "FALLBACK", outcome{}},
	{"m.server not in ASCII", says(`{"m.server": "b\u3002test"}`), "FALLBACK", outcome{}},
	{"m.server with port 0", says(`{"m.server": "$host:0"}`), "FALLBACK", outcome{}},
	{"m.server with port 65536", says(`{"m.server": "$host:65536"}`), "FALLBACK", outcome{}},
	{"m.server of 60 KiB", says(`{"m.server": "` + strings.Repeat("a.", 30_000) + `b"}`), "FALLBACK", outcome{}},
	{"m.server the name itself", says(`{"m.server": "$host"}`), "FALLBACK", outcome{}},
	{"m.server on loopback", says(`{"m.server": "127.0.0.1:8448"}`), "", refused},
	{"m.server the cloud's metadata", says(`{"m.server": "169.254.169.254:80"}`), "", refused},
	{"m.server loopback inside IPv6", says(`{"m.server": "[::ffff:7f00:1]:1"}`), "", refused},
	{"m.server a name for loopback", says(`{"m.server": "inner.test:1"}`), "", refused},
	{"m.server where nobody is", says(`{"m.server": "$host:98"}`), "", connects("refused the connection")},
}

var refused = outcome{reason: freshen.ReasonDenied, blame: freshen.BlameNobody, says: "private or reserved networks"}

func says(body string) fedtest.Server { return fedtest.HTTP1(fedtest.Answer(200, "", body)) }

func moves(to string) fedtest.Server {
	return fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 302 Found\nLocation: " + to + "\nContent-Length: 0\n\n"))
}

// TestHostileWellKnown: whatever a web server says in place of a delegation, users of that name are still refreshed at
// its port 8448, nothing inside is ever connected to, and once it behaves, it is heard.
func TestHostileWellKnown(t *testing.T) {
	c := newCorpus(t)
	c.dns.Host("inner.test", "127.0.0.1", "10.0.0.1", "::1")
	all := make([]*asked, len(hostileWellKnown))
	var asking sync.WaitGroup
	for i, r := range hostileWellKnown {
		all[i] = c.placeWellKnown(row{r.name, r.server, r.want}, i)
		if r.want.waits {
			asking.Go(func() { all[i].fetchWithin(c, 20*time.Second) })
		}
	}
	for i, r := range hostileWellKnown {
		if !r.want.waits {
			t.Run(r.name, func(t *testing.T) {
				allocated := allocating()
				all[i].fetchWithin(c, 20*time.Second)
				// What waits beside it allocates as well, but little.
				if got := allocated(); got > 8*mostMiB<<20 {
					t.Errorf("%d KiB were allocated", got>>10)
				}
			})
		}
	}
	asking.Wait()
	c.clock.Advance(49 * time.Hour) // beyond every cache
	for i, r := range hostileWellKnown {
		t.Run(r.name+", outcome", func(t *testing.T) {
			a, w := all[i], c.on(t)
			switch {
			case r.device == "":
				a.checkOutcome(w)
			case a.err != nil:
				t.Errorf("no list came: %v", a.err)
			case len(a.list.Devices) != 1 || a.list.Devices[0].ID != r.device:
				t.Errorf("the list is %+v, want that of %s", a.list, r.device)
			}
			w.wellKnown(a.host, strings.TrimSuffix(a.addr, ":443"), delegation(a.host+":99"))
			list := w.good(id.UserID("@bob:" + a.host))
			if len(list.Devices) != 1 || list.Devices[0].ID != "DELEGATED" {
				t.Errorf("now that the well-known behaves, the list is %+v", list)
			}
			c.stillGood(w)
		})
	}
	for _, dialed := range c.net.Dialed() {
		if !slices.ContainsFunc(open, func(p netip.Prefix) bool { return p.Contains(dialed.Addr()) }) {
			t.Errorf("%s was dialled, which is refused", dialed)
		}
	}
}

// placeWellKnown makes a name with two good homeservers and a web server that misbehaves.
func (c *corpus) placeWellKnown(r row, n int) *asked {
	addr := fmt.Sprintf("127.1.9.%d", n+1)
	a := &asked{row: r, host: fmt.Sprintf("row%d.test", n), addr: addr + ":443"}
	c.dns.Host(a.host, addr)
	fedtest.Misbehave(c, c.net.Listen(a.addr), fedtest.Place{Host: a.host, CA: c.ca, Cert: c.ca.Issue(a.host)}, r.server)
	user := a.user()
	for port, device := range map[string]string{":8448": "FALLBACK", ":99": "DELEGATED"} {
		// The name that a signature is meant for does not change with the delegation.
		server := fedtest.NewHomeserver(a.host, ourName, c.key)
		server.SetList(user, listOf(user, device))
		fedtest.ServeTLS(c, c.net.Listen(addr+port), c.ca.Issue(a.host), http.Handler(server))
	}
	return a
}
