package wire_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

func request(s *server, method string) *wire.Request {
	return &wire.Request{Method: method, Target: "/x?y", Host: s.addr, Header: func(yield func(name, value string) bool) {
		_ = yield("X-One", "1") && yield("X-Two", "2")
	}}
}

// ask makes one whole request.
func ask(t *testing.T, tr *wire.Transport, req *wire.Request) (status int, body string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := tr.RoundTrip(ctx, req)
	if err != nil {
		return 0, "", err
	}
	read, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(read), errors.Join(err, resp.Body.Close())
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
				if req.RequestURI != "/x?y" || req.Host == "" || req.Header.Get("X-One")+req.Header.Get("X-Two") != "12" {
					t.Errorf("the server was asked for %q at %q with %v", req.RequestURI, req.Host, req.Header)
				}
				return text(conn, c.answer) && name != "broken in between"
			})
			tr := transport(t, s)
			for range 3 {
				status, body, err := ask(t, tr, request(s, c.method))
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
	req := request(s, http.MethodGet)
	req.Interim = func(status int, header http.Header) { hints = append(hints, fmt.Sprint(status, header.Get("Link"))) }
	resp, err := tr.RoundTrip(t.Context(), req)
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
			if status, body, err := ask(t, tr, request(s, http.MethodGet)); status != 200 || body != "ok" {
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
			if status, body, err := ask(t, tr, request(s, http.MethodGet)); status != 200 || body != "ok" {
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
		first, _, _ := ask(t, tr, request(s, http.MethodGet))
		<-said
		if status, body, err := ask(t, tr, request(s, http.MethodGet)); first != 200 || status != 200 || body != "ok" {
			t.Fatalf("got %d, then %d %q %v", first, status, body, err)
		}
	})
	t.Run("a new one that is closed is an error", func(t *testing.T) {
		s := serve(t, func(net.Conn, *http.Request, int64) bool { return false })
		if _, _, err := ask(t, transport(t, s), request(s, http.MethodGet)); err == nil || s.asked.Load() != 1 {
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
			resp, err := tr.RoundTrip(ctx, request(s, http.MethodGet))
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
			if status, body, err := ask(t, tr, request(s, http.MethodGet)); status != 200 || body != "ok" {
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
		resp, err := tr.RoundTrip(t.Context(), request(s, http.MethodGet))
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

// A poll waits without holding what an answer is read with, and a body goes with the request; both come through a
// connection that turns out to be closed.
func TestBodiesAndPollsThatWait(t *testing.T) {
	s := serve(t, func(conn net.Conn, req *http.Request, n int64) bool {
		body, err := io.ReadAll(req.Body)
		if err != nil || n == 2 {
			return false
		}
		return text(conn, fmt.Sprintf("HTTP/1.1 200 OK\nContent-Length: %d\n\n%s", len(body), body))
	})
	tr := transport(t, s)
	for _, body := range []string{"", "{}", strings.Repeat("x", 300_000)} {
		req := request(s, http.MethodPost)
		req.Body, req.Wait = []byte(body), &waits{}
		if status, got, err := ask(t, tr, req); status != 200 || got != body || err != nil {
			t.Errorf("a body of %d bytes came back as %d bytes: %d %v", len(body), len(got), status, err)
		}
	}
}

// waits abandons a request as soon as it waits, or before.
type waits struct {
	before, during bool
	mu             sync.Mutex
	abandoned      bool
}

func (w *waits) Begin(abandon func()) bool {
	if w.during {
		time.AfterFunc(10*time.Millisecond, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.abandoned = true
			abandon()
		})
	}
	return !w.before
}

func (w *waits) Over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.abandoned
}

// A poll that is abandoned ends at once, and its connection is nobody's any more; the next request gets its own answer.
func TestAbandon(t *testing.T) {
	for name, wait := range map[string]*waits{"before it is sent": {before: true}, "while it waits": {during: true}} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan struct{})
			s := serve(t, func(conn net.Conn, req *http.Request, _ int64) bool {
				if req.Method == http.MethodHead {
					return text(conn, "HTTP/1.1 204 No Content\n\n")
				}
				_, _ = conn.Read(make([]byte, 1)) // until the other end leaves
				close(gone)
				return false
			})
			tr := transport(t, s)
			if status, _, err := ask(t, tr, request(s, http.MethodHead)); status != 204 { // leaves a connection to use again
				t.Fatal(status, err)
			}
			req := request(s, http.MethodGet)
			req.Wait = wait
			if _, _, err := ask(t, tr, req); !errors.Is(err, wire.ErrAbandoned) {
				t.Errorf("it ended with %v", err)
			}
			if wait.during {
				select {
				case <-gone:
				case <-time.After(patience):
					t.Error("the server was not left")
				}
			}
			if status, _, err := ask(t, tr, request(s, http.MethodHead)); status != 204 || err != nil {
				t.Errorf("afterwards: %d %v", status, err)
			}
		})
	}
}

// A poll that is to be asked again is, on another connection, as the request then stands; and who hangs up while that waits
// ends it as well.
func TestAskedAgain(t *testing.T) {
	for name, leaves := range map[string]bool{"the client stays": false, "the client hangs up": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("the client hung up")
			gone := make(chan struct{})
			s := serve(t, func(conn net.Conn, req *http.Request, n int64) bool {
				switch {
				case n == 1: // the poll, which is left alone for a second
					_, _ = conn.Read(make([]byte, 1))
					return false
				case req.URL.RawQuery != "again":
					t.Errorf("asked again for %q", req.URL.RawQuery)
				case leaves:
					cancel(cause)
					_, _ = conn.Read(make([]byte, 1)) // until the other end leaves
					close(gone)
					return false
				}
				return text(conn, "HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
			})
			tr := transport(t, s)
			req := request(s, http.MethodGet)
			req.Wait = &waits{during: true}
			req.Again = func() { req.Target = "/x?again" }
			resp, err := tr.RoundTrip(ctx, req)
			if leaves {
				if !errors.Is(err, cause) {
					t.Errorf("it ended with %v, not with why it was cancelled", err)
				}
				select {
				case <-gone:
				case <-time.After(patience):
					t.Error("the server was not left")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); string(body) != "ok" || err != nil {
				t.Errorf("got %q %v", body, err)
			}
			_ = resp.Body.Close()
			if status, _, err := ask(t, tr, &wire.Request{Method: http.MethodGet, Target: "/x?again", Host: s.addr, Header: request(s, http.MethodGet).Header}); status != 200 || err != nil || s.conns.Load() != 2 {
				t.Errorf("afterwards: %d %v over %d connections, want the second again", status, err, s.conns.Load())
			}
		})
	}
}

// Ready is what keeps a part of an answer from waiting for the next: it may not be true of what is yet to come.
func TestReady(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   bool
	}{
		"whole":                  {"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", true},
		"nothing of it yet":      {"HTTP/1.1 200 OK\nContent-Length: 3\n\n", false},
		"the last chunk":         {"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n0\n\n", true},
		"a chunk is yet to come": {"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", false},
		"half of a chunk's head": {"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5", false},
	} {
		s := serve(t, func(conn net.Conn, _ *http.Request, _ int64) bool { return text(conn, c.answer) })
		resp, err := transport(t, s).RoundTrip(t.Context(), request(s, http.MethodGet))
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Body.(*wire.Body).Ready(); got != c.want {
			t.Errorf("%s: ready %v, want %v", name, got, c.want)
		}
		_ = resp.Body.Close()
	}
}

func TestAServerThatIsNotThere(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tr := wire.New("127.0.0.1:1")
	if _, err := tr.RoundTrip(ctx, &wire.Request{Method: http.MethodGet, Target: "/", Host: "h", Header: func(func(name, value string) bool) {}}); err == nil {
		t.Error("a server that is not there answered")
	}
}
