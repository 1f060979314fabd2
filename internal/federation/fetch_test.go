package federation_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
)

func listOf(user id.UserID, devices ...string) []byte {
	list := map[string]any{"user_id": user, "stream_id": 7, "devices": []any{}}
	for _, device := range devices {
		list["devices"] = append(list["devices"].([]any), map[string]any{
			"device_id": device, "keys": map[string]any{"user_id": user, "device_id": device},
		})
	}
	body, _ := json.Marshal(list)
	return body
}

// TestWhatIsSignedIsWhatIsSent: a user ID with odd characters must reach the server under a signature that it accepts,
// over HTTP/1.1 and HTTP/2; else such users can never be refreshed (401).
func TestWhatIsSignedIsWhatIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
	two := fedtest.NewHomeserver("127.1.0.1:2", ourName, w.key)
	cert := w.ca.Issue("127.1.0.1")
	fedtest.ServeTLS1(t, w.net.Listen("127.1.0.1:1"), cert, one)
	fedtest.ServeTLS(t, w.net.Listen("127.1.0.1:2"), cert, two)
	for server, proto := range map[*fedtest.Homeserver]string{one: "HTTP/1.1", two: "HTTP/2.0"} {
		for _, localpart := range []string{
			"bob", "Bob", "foo/bar", "a%2Fb", "100%", "a+b", "a=b", "a?c#d", "..", "a//b", `q"uo\te`, "~!$&'()*,;[]^`{|}<>@",
		} {
			user := id.UserID("@" + localpart + ":" + server.Name)
			server.SetList(user, listOf(user, "D"))
			list, failure := w.fetch(user, 10*time.Second)
			if failure != nil {
				t.Errorf("%s over %s: %v", user, proto, failure)
				continue
			}
			if list.UserID != user || len(list.Devices) != 1 {
				t.Errorf("%s over %s: got the list %+v", user, proto, list)
			}
		}
		for _, seen := range server.Requests() {
			if seen.Proto != proto || seen.Denied != "" {
				t.Errorf("the server saw %+v, want %s and no objection", seen, proto)
			}
		}
	}
}

// TestConnectionIsKept: a new TLS handshake for each refresh costs several times the request itself.
func TestConnectionIsKept(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(testing.TB, *world, http.Handler){
		"HTTP/1.1": func(tb testing.TB, w *world, h http.Handler) {
			fedtest.ServeTLS1(tb, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), h)
		},
		"HTTP/2": func(tb testing.TB, w *world, h http.Handler) {
			fedtest.ServeTLS(tb, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), h)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			server := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
			serve(t, w, server)
			for range 5 {
				w.good("@bob:127.1.0.1:1")
			}
			if dialed := w.net.Dialed(); len(dialed) != 1 {
				t.Errorf("5 requests made %d connections, want 1", len(dialed))
			}
		})
	}
}

// TestKeptConnectionThatDied: a server that was restarted is asked again on a new connection, not reported as broken.
func TestKeptConnectionThatDied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := string(listOf("@bob:127.1.0.1:1"))
	w.script("127.1.0.1", "127.1.0.1:1", fedtest.Answer(200, "Connection: keep-alive", body)) // and closes all the same
	for range 3 {
		w.good("@bob:127.1.0.1:1")
	}
}

// TestNotConnected: what goes wrong before an answer is told as what it is, with the names an administrator can act on.
func TestNotConnected(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, row := range []struct {
		name, server string
		setup        func(w *world)
		reason       freshen.Reason
		says         string
	}{
		{"refused", "127.1.0.1:1", nil, freshen.ReasonConnect, "127.1.0.1:1 refused the connection."},
		{
			"refused where the well-known leads", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.dns.Host("m.test", "127.1.0.2")
				w.wellKnown("b.test", "127.1.0.1", delegation("m.test:99"))
			}, freshen.ReasonConnect, "The well-known of b.test names m.test:99, which refused the connection.",
		},
		{"silent", "127.1.0.1:1", func(w *world) { w.net.Silence("127.1.0.1:1") }, freshen.ReasonTimeout, "127.1.0.1:1 could not be connected to within "},
		{"no such name", "b.test", nil, freshen.ReasonDNS, "The name b.test has no address."},
		{
			"no such name where the well-known leads", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.wellKnown("b.test", "127.1.0.1", delegation("gone.test:1"))
			}, freshen.ReasonDNS, "The well-known of b.test names gone.test:1, a name that has no address.",
		},
		{"name server fails", "b.test:1", func(w *world) { w.dns.Break("b.test") }, freshen.ReasonDNS, "its name server does not answer as it should"},
		{"SRV says no service", "b.test", func(w *world) { w.dns.SRV("matrix-fed", "b.test", net.SRV{Target: "."}) }, freshen.ReasonDNS, "offers no federation"},
		{"loopback", "127.0.0.1:1", nil, freshen.ReasonDenied, "private or reserved networks"},
		{"cloud metadata", "169.254.169.254:80", nil, freshen.ReasonDenied, "private or reserved networks"},
		{"IPv4-mapped IPv6", "[::ffff:127.1.0.1]:1", nil, freshen.ReasonDenied, "private or reserved networks"},
		{"a name for private addresses", "b.test:1", func(w *world) { w.dns.Host("b.test", "10.0.0.1", "::1") }, freshen.ReasonDenied, "All addresses of b.test:1 lie in private"},
		{
			"the well-known leads inside", "b.test", func(w *world) {
				w.dns.Host("b.test", "127.1.0.1")
				w.wellKnown("b.test", "127.1.0.1", delegation("127.0.0.1:1"))
			}, freshen.ReasonDenied, "The well-known of b.test names 127.0.0.1:1, an address in private or reserved networks, which freshen does not dial",
		},
		{
			"expired", "127.1.0.1:1", func(w *world) {
				w.serveWith("127.1.0.1:1", w.ca.IssueFor(now.Add(-48*time.Hour), now.Add(-24*time.Hour), "127.1.0.1"))
			}, freshen.ReasonTLS, "The certificate of 127.1.0.1:1 expired on " + now.Add(-24*time.Hour).UTC().Format("2 January 2006") + ".",
		},
		{
			"not valid yet", "127.1.0.1:1", func(w *world) {
				w.serveWith("127.1.0.1:1", w.ca.IssueFor(now.Add(24*time.Hour), now.Add(48*time.Hour), "127.1.0.1"))
			}, freshen.ReasonTLS, "is not valid before",
		},
		{"wrong name", "127.1.0.1:1", func(w *world) { w.serveWith("127.1.0.1:1", w.ca.Issue("other.test")) }, freshen.ReasonTLS, "is not for 127.1.0.1."},
		{
			"unknown authority", "127.1.0.1:1", func(w *world) { w.serveWith("127.1.0.1:1", fedtest.NewCA(w).Issue("127.1.0.1")) },
			freshen.ReasonTLS, "federation.ca_file",
		},
		{
			"no TLS", "127.1.0.1:1", func(w *world) {
				w.raw("127.1.0.1:1", func(_ context.Context, conn net.Conn) {
					_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				})
			}, freshen.ReasonTLS, "does not speak TLS",
		},
		{
			"hangs in the handshake", "127.1.0.1:1", func(w *world) {
				w.raw("127.1.0.1:1", func(ending context.Context, _ net.Conn) { <-ending.Done() })
			}, freshen.ReasonTimeout, "127.1.0.1:1 did not finish the TLS handshake within ",
		},
		{
			"hangs up in the handshake", "127.1.0.1:1", func(w *world) {
				w.raw("127.1.0.1:1", func(_ context.Context, conn net.Conn) { _, _ = io.ReadFull(conn, make([]byte, 100)) })
			}, freshen.ReasonTLS, "broke the connection during the TLS handshake",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if row.setup != nil {
				row.setup(w)
			}
			limit := 10 * time.Second
			if row.reason == freshen.ReasonTimeout {
				limit = 1500 * time.Millisecond // enough to connect on a busy machine
			}
			_, failure := w.fetch(id.UserID("@bob:"+row.server), limit)
			if failure == nil {
				t.Fatal("there is a list")
			}
			if failure.Reason != row.reason || !strings.Contains(failure.Sentence, row.says) || failure.Destination != row.server {
				t.Errorf("got %q of %s: %q, want %q that says %q (cause: %v)", failure.Reason, failure.Destination, failure.Sentence, row.reason, row.says, failure.Err)
			}
		})
	}
}

// TestRemoteErrorText: what a stranger writes reaches a user's screen and the log only bounded and without tricks.
func TestRemoteErrorText(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, body, code, text string }{
		{"plain", `{"errcode": "M_FORBIDDEN", "error": "Not allowed"}`, "M_FORBIDDEN", "Not allowed"},
		{"control characters", `{"errcode": "M_X", "error": "a\u001b[31m\r\nb\u202e"}`, "M_X", "a [31m  b"},
		{"code with spaces", `{"errcode": "M_X\nSet-Cookie: a"}`, "", ""},
		{"long code", `{"errcode": "` + strings.Repeat("M", 65) + `"}`, "", ""},
		{"long text", `{"errcode": "M_X", "error": "` + strings.Repeat("é", 200) + `"}`, "M_X", strings.Repeat("é", 128)},
		{"other types", `{"errcode": 5, "error": []}`, "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.script("127.1.0.1", "127.1.0.1:1", fedtest.Answer(403, "", row.body))
			_, failure := w.fetch("@bob:127.1.0.1:1", 10*time.Second)
			if failure == nil || failure.ErrCode != row.code || failure.RemoteError != row.text {
				t.Errorf("got %+v, want %q and %q", failure, row.code, row.text)
			}
			if failure != nil && row.text != "" && strings.Contains(failure.Sentence, row.text) {
				t.Errorf("the remote's text stands in our own sentence: %q", failure.Sentence)
			}
		})
	}
}

// TestRetryAfter: a server that asks to be left alone is, and one that asks for a year is not.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, row := range []struct {
		name, header, body string
		least, most        time.Duration
	}{
		{"seconds", "Retry-After: 120", "", 120 * time.Second, 120 * time.Second},
		{"date", "Retry-After: " + now.Add(time.Hour).UTC().Format(http.TimeFormat), "", 58 * time.Minute, time.Hour},
		{"date gone by", "Retry-After: " + now.Add(-time.Hour).UTC().Format(http.TimeFormat), "", 0, 0},
		{"milliseconds", "", `{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1500}`, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"a year", "Retry-After: 31536000", "", 24 * time.Hour, 24 * time.Hour},
		{"beyond all numbers", "", `{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1e300}`, 24 * time.Hour, 24 * time.Hour},
		{"negative", "Retry-After: -5", `{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": -5}`, 0, 0},
		{"nonsense", "Retry-After: soon", `{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": "soon"}`, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.script("127.1.0.1", "127.1.0.1:1", fedtest.Answer(429, row.header, row.body))
			_, failure := w.fetch("@bob:127.1.0.1:1", 10*time.Second)
			if failure == nil || failure.RetryAfter < row.least || failure.RetryAfter > row.most {
				t.Errorf("got %+v, want a wait from %s to %s", failure, row.least, row.most)
			}
		})
	}
}

// TestWrongKeyIsTold: a site with the wrong signing key sees what is wrong.
func TestWrongKeyIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := fedtest.NewHomeserver("127.1.0.1:1", ourName, fedtest.NewKey())
	fedtest.ServeTLS(t, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), server)
	_, failure := w.fetch("@bob:127.1.0.1:1", 10*time.Second)
	if failure == nil || failure.Status != 401 || failure.ErrCode != "M_UNAUTHORIZED" || !strings.Contains(failure.Sentence, "signature") {
		t.Errorf("got %+v, want a 401 that speaks of our signature", failure)
	}
}

// TestCancelledAndClosed: a caller who hangs up, and Close, end a request at once and leave nothing behind (goleak).
func TestCancelledAndClosed(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world, cancel context.CancelFunc){
		"cancelled": func(_ *world, cancel context.CancelFunc) { cancel() },
		"closed":    func(w *world, _ context.CancelFunc) { w.client.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			begun := make(chan struct{})
			var once sync.Once
			w.script("127.1.0.1", "127.1.0.1:1", func(gone context.Context, _ net.Conn, _ *http.Request) {
				once.Do(func() { close(begun) })
				<-gone.Done()
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var ending sync.WaitGroup
			ending.Go(func() { <-begun; end(w, cancel) })
			_, failure := w.fetchCtx(ctx, "@bob:127.1.0.1:1")
			ending.Wait()
			if failure == nil || failure.Reason != freshen.ReasonTimeout || !errors.Is(failure, context.Canceled) {
				t.Errorf("got %v, want a timeout that wraps context.Canceled", failure)
			}
		})
	}
}

// TestAfterClose: a late request fails with a sentence instead of starting something nobody will end.
func TestAfterClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.client.Close()
	_, failure := w.fetch("@bob:127.1.0.1:1", time.Second)
	if failure == nil || !strings.Contains(failure.Sentence, "stopping") || len(w.net.Dialed()) != 0 {
		t.Errorf("got %v and %d connections, want none and a sentence", failure, len(w.net.Dialed()))
	}
}

// TestTargetIsNoUserID: nothing but a checked user ID ever chooses whom we connect to.
func TestTargetIsNoUserID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, target := range []id.UserID{"", "bob", "@:127.1.0.1:1", "@bob:", "@bob:b.test/x", "@b\x00b:127.1.0.1:1", "@bob:b.test:0", "@bob:[:::::]"} {
		if _, failure := w.fetch(target, time.Second); failure == nil || failure.Blames() != freshen.BlameNobody {
			t.Errorf("%q: got %v, want a failure that is nobody's", target, failure)
		}
	}
	if len(w.net.Dialed()) != 0 {
		t.Errorf("%v were dialled", w.net.Dialed())
	}
}

// TestManyAtOnce: a burst to one server stays within the connections that one server may have.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
	var now, most, asked atomic.Int32
	fedtest.ServeTLS1(t, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		asked.Add(1)
		server.ServeHTTP(rw, r)
	}))
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if _, err := w.client.FetchDeviceList(t.Context(), id.UserID(fmt.Sprintf("@u%d:127.1.0.1:1", i))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if asked.Load() != 50 || most.Load() > 8 {
		t.Errorf("the server saw %d requests, %d at once; want 50, at most 8 at once", asked.Load(), most.Load())
	}
}

// TestNewRefuses: a client that could not sign is told at the start, not at the first refresh.
func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]federation.Config{
		"no key":         {ServerName: "us.test"},
		"no server name": {Key: federation.NewSigningKey(fedtest.NewKey())},
		"bad name":       {ServerName: "us test", Key: federation.NewSigningKey(fedtest.NewKey())},
	} {
		if client, err := federation.New(cfg); err == nil {
			client.Close()
			t.Errorf("%s: there is a client", name)
		}
	}
}
