package wire_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"freshen/internal/overlay/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// server answers each request on each connection with what answer writes; false closes the connection.
type server struct {
	addr  string
	conns atomic.Int64
	asked atomic.Int64
}

func serve(t *testing.T, answer func(conn net.Conn, req *http.Request, n int64) bool) *server {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: listener.Addr().String()}
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			s.conns.Add(1)
			running.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					req, err := http.ReadRequest(in)
					if err != nil || !answer(conn, req, s.asked.Add(1)) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return s
}

func text(conn net.Conn, answer string) bool {
	_, err := io.WriteString(conn, strings.ReplaceAll(answer, "\n", "\r\n"))
	return err == nil
}

func transport(t *testing.T, s *server) *wire.Transport {
	t.Helper()
	tr := wire.New(s.addr)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func request(ctx context.Context, s *server, method string) *http.Request {
	req, _ := http.NewRequestWithContext(ctx, method, "http://"+s.addr+"/x?y", http.NoBody)
	return req
}

// ask makes one whole request.
func ask(t *testing.T, tr *wire.Transport, s *server, method string) (status int, body string, trailer http.Header, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req := request(ctx, s, method)
	if !tr.Takes(req) {
		t.Fatalf("a %s without a body is not taken", method)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", nil, err
	}
	read, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(read), resp.Trailer, errors.Join(err, resp.Body.Close())
}

// Answers of every shape come whole, and the connection is used again exactly where that is safe: one that is not would
// give the next client another's answer.
func TestAnswersAndReuse(t *testing.T) {
	for name, c := range map[string]struct {
		method, answer, body, err string
		status                    int
		again                     bool
	}{
		"length":            {"GET", "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", "abc", "", 200, true},
		"empty":             {"GET", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", "", "", 200, true},
		"chunked":           {"GET", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n", "abc", "", 200, true},
		"trailers":          {"GET", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X\n\n1\na\n0\nX: 1\n\n", "a", "", 200, true},
		"204":               {"GET", "HTTP/1.1 204 No Content\n\n", "", "", 204, true},
		"304":               {"GET", "HTTP/1.1 304 Not Modified\nEtag: \"x\"\n\n", "", "", 304, true},
		"HEAD":              {"HEAD", "HTTP/1.1 200 OK\nContent-Length: 300\n\n", "", "", 200, true},
		"after interim":     {"GET", "HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nContent-Length: 1\n\na", "a", "", 200, true},
		"said to close":     {"GET", "HTTP/1.1 200 OK\nConnection: close\nContent-Length: 1\n\na", "a", "", 200, false},
		"HTTP/1.0":          {"GET", "HTTP/1.0 200 OK\nContent-Length: 1\n\na", "a", "", 200, false},
		"more than said":    {"GET", "HTTP/1.1 200 OK\nContent-Length: 1\n\nabHTTP/1.1 200 OK\n\n", "a", "", 200, false},
		"no HTTP":           {"GET", "SSH-2.0\n\n", "", "malformed", 0, false},
		"switches":          {"GET", "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: x\n\n", "", "unasked", 0, false},
		"interim for ever":  {"GET", strings.Repeat("HTTP/1.1 102 Processing\n\n", 50), "", "interim", 0, false},
		"a head of 11 MB":   {"GET", "HTTP/1.1 200 OK\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\n", 11<<10), "", "over", 0, false},
		"broken in between": {"GET", "HTTP/1.1 200 OK\nContent-Le", "", "malformed", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(conn net.Conn, req *http.Request, _ int64) bool {
				if req.RequestURI != "/x?y" || req.Host == "" {
					t.Errorf("the server was asked for %q at %q", req.RequestURI, req.Host)
				}
				return text(conn, c.answer) && name != "broken in between"
			})
			tr := transport(t, s)
			for range 3 {
				status, body, _, err := ask(t, tr, s, c.method)
				if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Fatalf("the error is %v, want one that says %q", err, c.err)
				}
				if status != c.status || body != c.body {
					t.Fatalf("got %d %q, want %d %q", status, body, c.status, c.body)
				}
			}
			if conns := s.conns.Load(); (conns == 1) != c.again {
				t.Errorf("3 requests took %d connections; may be used again: %v", conns, c.again)
			}
		})
	}
}

func TestTrailersAndInterimAnswersAreTold(t *testing.T) {
	s := serve(t, func(conn net.Conn, _ *http.Request, _ int64) bool {
		return text(conn, "HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n1\na\n0\nX-Sum: 7\n\n")
	})
	tr := transport(t, s)
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, header.Get("Link")))
		return nil
	}})
	resp, err := tr.RoundTrip(request(ctx, s, http.MethodGet))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("the trailer is %v (%v)", resp.Trailer, err)
	}
	_ = resp.Body.Close()
	if len(hints) != 1 || hints[0] != "103</a>" {
		t.Errorf("told of the interim answers %v", hints)
	}
}

// A homeserver that restarts, or closes what was idle, costs nobody an error; and what it says unasked, as some do before
// they close, is nobody's answer.
func TestAKeptConnectionThatWasClosed(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"
	t.Run("closed", func(t *testing.T) {
		s := serve(t, func(conn net.Conn, _ *http.Request, _ int64) bool { text(conn, ok); return false })
		tr := transport(t, s)
		for range 5 {
			if status, body, _, err := ask(t, tr, s, http.MethodGet); status != 200 || body != "ok" {
				t.Fatalf("got %d %q %v", status, body, err)
			}
		}
	})
	t.Run("closed in the moment of asking", func(t *testing.T) {
		s := serve(t, func(conn net.Conn, _ *http.Request, n int64) bool {
			return n != 2 && text(conn, ok) // the second request is read and the connection closed
		})
		tr := transport(t, s)
		for range 3 {
			if status, body, _, err := ask(t, tr, s, http.MethodGet); status != 200 || body != "ok" {
				t.Fatalf("got %d %q %v", status, body, err)
			}
		}
		if s.asked.Load() != 4 {
			t.Errorf("3 requests were sent %d times, want 4", s.asked.Load())
		}
	})
	t.Run("spoke unasked", func(t *testing.T) {
		said := make(chan struct{}, 1)
		s := serve(t, func(conn net.Conn, _ *http.Request, n int64) bool {
			if n > 1 {
				return text(conn, ok)
			}
			text(conn, ok)
			text(conn, "HTTP/1.1 408 Request Timeout\nContent-Length: 4\n\nlate")
			said <- struct{}{}
			return true
		})
		tr := transport(t, s)
		first, _, _, _ := ask(t, tr, s, http.MethodGet)
		<-said
		if status, body, _, err := ask(t, tr, s, http.MethodGet); first != 200 || status != 200 || body != "ok" {
			t.Fatalf("got %d, then %d %q %v", first, status, body, err)
		}
	})
	t.Run("a new one that is closed is an error", func(t *testing.T) {
		s := serve(t, func(net.Conn, *http.Request, int64) bool { return false })
		if _, _, _, err := ask(t, transport(t, s), s, http.MethodGet); err == nil || s.asked.Load() != 1 {
			t.Errorf("%v after %d requests", err, s.asked.Load())
		}
	})
}

// A client that hangs up ends the homeserver's work at once, before the answer and in the middle of it, and the
// connection is not used again.
func TestCancel(t *testing.T) {
	for name, head := range map[string]string{"before the answer": "", "in the middle": "HTTP/1.1 200 OK\nContent-Length: 100\n\nabc"} {
		t.Run(name, func(t *testing.T) {
			began, gone := make(chan struct{}), make(chan struct{})
			s := serve(t, func(conn net.Conn, _ *http.Request, n int64) bool {
				if n > 1 {
					return text(conn, "HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
				}
				text(conn, head)
				close(began)
				_, _ = conn.Read(make([]byte, 1)) // until the other end leaves
				close(gone)
				return false
			})
			tr := transport(t, s)
			cause := errors.New("the client hung up")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			go func() { <-began; cancel(cause) }()
			resp, err := tr.RoundTrip(request(ctx, s, http.MethodGet))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			if !errors.Is(err, cause) {
				t.Errorf("it ended with %v, not with why it was cancelled", err)
			}
			select {
			case <-gone:
			case <-time.After(patience):
				t.Fatal("the server was not left")
			}
			if status, body, _, err := ask(t, tr, s, http.MethodGet); status != 200 || body != "ok" {
				t.Errorf("afterwards: %d %q %v", status, body, err)
			}
		})
	}
}

// What is not read to its end must not be what the next request reads.
func TestABodyThatIsGivenUp(t *testing.T) {
	s := serve(t, func(conn net.Conn, _ *http.Request, n int64) bool {
		return text(conn, fmt.Sprintf("HTTP/1.1 200 OK\nContent-Length: 100000\n\n%s", strings.Repeat(strconv.FormatInt(n, 10), 100_000)))
	})
	tr := transport(t, s)
	for want := range 3 {
		resp, err := tr.RoundTrip(request(t.Context(), s, http.MethodGet))
		if err != nil {
			t.Fatal(err)
		}
		var first [1]byte
		if _, err := io.ReadFull(resp.Body, first[:]); err != nil || string(first[:]) != strconv.Itoa(want+1) {
			t.Errorf("answer %d begins with %q (%v)", want+1, first, err)
		}
		_ = resp.Body.Close()
		if _, err := resp.Body.Read(first[:]); err == nil {
			t.Error("a closed body can be read")
		}
	}
}

// What leaves HTTP, carries a body or must not be sent twice is for net/http's transport.
func TestTakes(t *testing.T) {
	tr := wire.New("127.0.0.1:1")
	for name, c := range map[string]struct {
		edit func(*http.Request)
		want bool
	}{
		"GET":     {func(*http.Request) {}, true},
		"HEAD":    {func(r *http.Request) { r.Method = http.MethodHead }, true},
		"PUT":     {func(r *http.Request) { r.Method = http.MethodPut }, false},
		"body":    {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")) }, false},
		"upgrade": {func(r *http.Request) { r.Header.Set("Upgrade", "websocket") }, false},
		"expect":  {func(r *http.Request) { r.Header.Set("Expect", "100-continue") }, false},
		"TLS":     {func(r *http.Request) { r.URL.Scheme = "https" }, false},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:1/", http.NoBody)
		c.edit(req)
		if got := tr.Takes(req); got != c.want {
			t.Errorf("%s: taken %v, want %v", name, got, c.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:1/", http.NoBody)
	if _, err := tr.RoundTrip(req); err == nil {
		t.Error("a server that is not there answered")
	}
}
