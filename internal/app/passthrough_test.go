package app_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"freshen/internal/config"
)

// behind starts freshen in front of a homeserver that is the test's own handler.
func behind(t *testing.T, handler http.HandlerFunc, path ...string) (w *world, direct string) {
	t.Helper()
	hs := httptest.NewServer(handler)
	t.Cleanup(func() { hs.CloseClientConnections(); hs.Close() })
	base, err := url.Parse(hs.URL + strings.Join(path, ""))
	if err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, func(c *config.Config) { c.Homeserver.URL = base })
	w.start()
	return w, base.Host
}

// dial opens a connection that breaks with the test's patience.
func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// raw sends a request in its very bytes and reads the answer.
func raw(t *testing.T, address, request string) (*http.Response, string) {
	t.Helper()
	conn := dial(t, address)
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %.80q: %v", request, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("the answer to %.80q broke off: %v", request, err)
	}
	return response, string(body)
}

// echo answers with what it has been asked, so that two answers are equal only if the questions were.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	header := r.Header.Clone()
	// X-Forwarded-* has a test of its own. The absence of a body is told in either of two ways, and an empty User-Agent
	// cannot be told from none.
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Content-Length"} {
		header.Del(name)
	}
	if header.Get("User-Agent") == "" {
		header.Del("User-Agent")
	}
	w.Header().Add("Set-Cookie", "a=1; Path=/")
	w.Header().Add("Set-Cookie", "b=2")
	w.Header()["X-Odd"] = []string{"one, two", "three"}
	w.Header().Set("Content-Type", "application/json; odd")
	w.Header().Set("Date", "Thu, 01 Jan 1970 00:00:00 GMT")
	w.Header().Set("Server", "scripted")
	answer, _ := json.Marshal(map[string]any{
		"method": r.Method, "uri": r.RequestURI, "host": r.Host, "length": r.ContentLength, "encoding": r.TransferEncoding,
		"header": header, "trailer": r.Trailer, "body": string(body), "err": err != nil,
	})
	_, _ = w.Write(answer)
}

var acceptEncoding = regexp.MustCompile(`"Accept-Encoding":\[.*?\],?`)

// The homeserver must get every request as the client wrote it, and the client every answer as the homeserver did: what
// freshen does not know it must not touch.
func TestRequestsAndAnswersPassByteForByte(t *testing.T) {
	for name, prefix := range map[string]string{"at the root": "", "below a path": "/some%2Fwhere"} {
		t.Run(name, func(t *testing.T) {
			w, direct := behind(t, echo, prefix)
			heads := []string{
				"GET /_matrix/client/v3/profile/@a:b", "DELETE /_matrix/x", "PUT /_matrix/x", "PATCH /_matrix/x", "OPTIONS /_matrix/x",
				"PROPFIND /_matrix/x", "M-SEARCH /_matrix/x",
				"GET /", "GET //", "GET //x", "GET //_matrix//client", "GET //_matrix/a%2Fb%7c+", "GET /_matrix//x//", "GET /_matrix/./x/../y/.", "GET /_matrix/a%2Fb%2fc",
				`GET /_matrix/a|b"c<d>e^f` + "`{}\\", "GET /_matrix/%E2%82%AC/€", "GET /_matrix/a+b%2Bc%20d", "GET /_matrix/%41%7E~!$&'()*,;=:@",
				"GET /_matrix/client/v3/sync/", "GET /_matrix/client//v3/sync", "GET /_matrix/client/v3/%73ync", "GET /_matrix/client/v3/user/%zz",
				"GET /_matrix/x?", "GET /_matrix/x?a=1;b=2&c=%zz&d=+&e=%2B&&=&f", "GET /_matrix/x?q=|\"<>^`{}\\€", "GET /_matrix/x??a=/?b", "GET /_matrix/x#f?g",
				"GET /_matrix/client/v3/sync?since=%zz;a&access_token=&b=+", "GET /_matrix/client/v3/sync?timeout=30000&access_token=x",
				"GET /_matrix/client/v3/sync", "POST /_matrix/client/v3/sync", "GET /_matrix/client/v3/keys/query",
				"POST /_matrix/client/v3/keys/query", "POST /_matrix/client/v3/keys/query?a;b=%zz", "HEAD /_matrix/client/versions", "POST /_matrix/client/versions",
			}
			for _, head := range heads {
				for what, rest := range map[string]string{
					"plain":    "Host: matrix.example.org:1\r\n\r\n",
					"headers":  "Host: h\r\nX-A: 1\r\nX-A:  2\r\nAccept-Encoding: gzip, br;q=0.1\r\nUser-Agent: \r\nCookie: a=b; c=d\r\nForwarded: for=1.2.3.4\r\nAuthorization: Bearer t\r\nIf-None-Match: \"x\"\r\nRange: bytes=0-1\r\nTE: trailers\r\n\r\n",
					"body":     "Host: h\r\nContent-Type: application/json\r\nContent-Length: 17\r\nAuthorization: Bearer t\r\n\r\n{\"device_keys\":{}",
					"chunked":  "Host: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;ext=1\r\nd\r\n0\r\n\r\n",
					"trailers": "Host: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n",
					"empty":    "Host: h\r\nContent-Length: 0\r\n\r\n",
				} {
					method, path, _ := strings.Cut(head, " ")
					wanted, wantedBody := raw(t, direct, fmt.Sprintf("%s %s%s HTTP/1.1\r\n%s", method, prefix, path, rest))
					got, gotBody := raw(t, w.app.Addr().String(), fmt.Sprintf("%s %s HTTP/1.1\r\n%s", method, path, rest))
					if edited := strings.HasSuffix(path, "/sync") || strings.Contains(path, "/sync?") || strings.Contains(path, "/versions"); edited {
						// Where an answer may be edited, no encoding is asked for.
						wantedBody, gotBody = acceptEncoding.ReplaceAllString(wantedBody, ""), acceptEncoding.ReplaceAllString(gotBody, "")
						got.Header.Del("Content-Length")
						wanted.Header.Del("Content-Length")
					}
					if t.Failed() {
						return
					}
					if gotBody != wantedBody || got.Status != wanted.Status {
						t.Errorf("%s (%s):\ngot  %s %s\nwant %s %s", head, what, got.Status, gotBody, wanted.Status, wantedBody)
					}
					if fmt.Sprint(got.Header) != fmt.Sprint(wanted.Header) || got.ContentLength != wanted.ContentLength && got.Header.Get("Content-Length") != "" {
						t.Errorf("%s (%s):\ngot  %v\nwant %v", head, what, got.Header, wanted.Header)
					}
				}
			}
		})
	}
}

// Answers of every kind reach the client as if freshen were not there.
func TestAnswersPassByteForByte(t *testing.T) {
	answers := map[string]func(net.Conn){}
	add := func(name, text string) {
		answers[name] = func(c net.Conn) { _, _ = io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n")) }
	}
	add("204", "HTTP/1.1 204 No Content\nDate: d\nX: y\n\n")
	add("304", "HTTP/1.1 304 Not Modified\nDate: d\nEtag: \"x\"\n\n")
	add("no content type", "HTTP/1.1 200 OK\nDate: d\nContent-Length: 13\n\n<html>x</html")
	add("another status", "HTTP/1.1 207 Multi-Status\nDate: d\nContent-Length: 2\n\nab")
	add("encoded", "HTTP/1.1 200 OK\nDate: d\nContent-Type: a/b\nContent-Encoding: gzip\nContent-Length: 2\nVary: a\nVary: b\n\nab")
	add("chunked", "HTTP/1.1 200 OK\nDate: d\nContent-Type: a/b\nTransfer-Encoding: chunked\n\n3\nabc\n1\nd\n0\n\n")
	add("trailers", "HTTP/1.1 200 OK\nDate: d\nContent-Type: a/b\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n3\nabc\n0\nX-Sum: 6\n\n")
	add("unannounced trailers", "HTTP/1.1 200 OK\nDate: d\nContent-Type: a/b\nTransfer-Encoding: chunked\n\n3\nabc\n0\nX-Sum: 6\n\n")
	add("early hints", "HTTP/1.1 103 Early Hints\nLink: </a>\n\nHTTP/1.1 200 OK\nDate: d\nContent-Type: a/b\nContent-Length: 2\n\nab")
	add("redirect", "HTTP/1.1 302 Found\nDate: d\nLocation: http://elsewhere/x?y\nContent-Length: 0\n\n")
	add("empty", "HTTP/1.1 200 OK\nDate: d\nContent-Type: a/b\nContent-Length: 0\n\n")
	hs := func(rw http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if answer := answers[r.URL.Query().Get("a")]; answer != nil { // not for whoami
			answer(conn)
		}
	}
	w, direct := behind(t, hs)
	for name := range answers {
		for _, path := range []string{"/_matrix/x", "/_matrix/client/v3/sync"} {
			request := "GET " + path + "?access_token=t&timeout=1&a=" + url.QueryEscape(name) + " HTTP/1.1\r\nHost: h\r\n\r\n"
			read := func(address string) string {
				conn := dial(t, address)
				_, _ = io.WriteString(conn, request)
				reader := bufio.NewReader(conn)
				var all strings.Builder
				for {
					response, err := http.ReadResponse(reader, nil)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					body, err := io.ReadAll(response.Body)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					response.Body.Close()
					response.Header.Del("Connection")
					fmt.Fprintf(&all, "%s %d %v %q %v\n", response.Status, response.ContentLength, response.Header, body, response.Trailer)
					if response.StatusCode >= 200 {
						return all.String()
					}
				}
			}
			if got, want := read(w.app.Addr().String()), read(direct); got != want {
				t.Errorf("%s %s:\ngot  %swant %s", path, name, got, want)
			}
		}
	}
}

// 20 MB each way, as an upload of a video or a first sync; a slow reader costs nobody else anything.
func TestLargeBodiesPass(t *testing.T) {
	big := make([]byte, 20<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(big)
	w, _ := behind(t, func(rw http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		rw.Header().Set("X-Sum", fmt.Sprintf("%d %x %v %d", n, sum.Sum(nil), err, r.ContentLength))
		_, _ = rw.Write(big)
	})
	want := fmt.Sprintf("%d %x <nil>", len(big), sha256.Sum256(big))
	for _, path := range []string{"/_matrix/media/v3/upload", "/_matrix/client/v3/keys/query"} {
		for _, body := range []io.Reader{bytes.NewReader(big), io.MultiReader(bytes.NewReader(big))} {
			r := w.do(t.Context(), http.MethodPost, path, aliceToken, body)
			if r.err != nil || !strings.HasPrefix(r.header.Get("X-Sum"), want) || r.body != string(big) {
				t.Errorf("%s: %v, up %s, down %d bytes", path, r.err, r.header.Get("X-Sum"), len(r.body))
			}
		}
	}
	slow := dial(t, w.app.Addr().String())
	_, _ = io.WriteString(slow, "GET /_matrix/x HTTP/1.1\r\nHost: h\r\n\r\n")
	if r := w.do(t.Context(), http.MethodGet, "/_matrix/x", "", nil); r.body != string(big) {
		t.Error("beside a client that reads nothing another gets no whole answer")
	}
	response, err := http.ReadResponse(bufio.NewReader(slow), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if late, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(late, big) {
		t.Errorf("the slow reader got %d bytes: %v", len(late), err)
	}
}

// What the homeserver has said the client hears at once: each piece arrives before the next is written.
func TestAnswersStream(t *testing.T) {
	for _, path := range []string{"/_matrix/x", "/_matrix/client/v3/sync?timeout=30000"} {
		t.Run(path, func(t *testing.T) { streams(t, path) })
	}
}

func streams(t *testing.T, path string) {
	t.Helper()
	heard := make(chan struct{})
	w, _ := behind(t, func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "whoami") {
			return
		}
		for _, piece := range []byte(`{"next_batch":"x"}`) {
			_, _ = rw.Write([]byte{piece})
			_ = http.NewResponseController(rw).Flush()
			select {
			case <-heard:
			case <-r.Context().Done():
				return
			}
		}
	})
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+path, nil)
	request.Header.Set("Authorization", "Bearer "+aliceToken)
	response, err := w.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	reader := bufio.NewReader(response.Body)
	for _, want := range []byte(`{"next_batch":"x"}`) {
		got := make(chan byte, 1)
		go func() { b, _ := reader.ReadByte(); got <- b }()
		if b := await(t, got, "a flushed byte"); b != want {
			t.Fatalf("%s: got %q, want %q", path, b, want)
		}
		heard <- struct{}{}
	}
}

// An upgraded connection (a push server's WebSocket, say) carries bytes both ways.
func TestUpgrade(t *testing.T) {
	w, _ := behind(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "odd" {
			t.Errorf("no upgrade was asked for: %v", r.Header)
		}
		conn, buffered, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: odd\r\n\r\n")
		for {
			line, err := buffered.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, strings.ToUpper(line))
		}
	})
	conn := dial(t, w.app.Addr().String())
	_, _ = io.WriteString(conn, "GET /_matrix/x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: odd\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", response, err)
	}
	for range 3 {
		_, _ = io.WriteString(conn, "ping\n")
		if line, err := reader.ReadString('\n'); line != "PING\n" {
			t.Fatalf("got %q %v", line, err)
		}
	}
	w.stop() // does not wait for it, and does not leave it behind
	if _, err := reader.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the upgraded connection goes on after freshen has stopped")
	}
}

// The homeserver limits and logs by address: it must see the client's, and the host that the client asked for.
func TestForwardedHeaders(t *testing.T) {
	seen := make(chan http.Header, 1)
	host := make(chan string, 1)
	w, _ := behind(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header; host <- r.Host })
	for _, c := range []struct{ sent, wantFor, wantHost, wantProto string }{
		{"", "127.0.0.1", "matrix.example.org", "http"},
		{"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: real.example.org\r\nX-Forwarded-Proto: https\r\n", "192.0.2.1, 127.0.0.1", "real.example.org", "https"},
		{"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\n", "192.0.2.1, 192.0.2.2, 127.0.0.1", "matrix.example.org", "http"},
	} {
		raw(t, w.app.Addr().String(), "GET /_matrix/x HTTP/1.1\r\nHost: matrix.example.org\r\n"+c.sent+"\r\n")
		h := <-seen
		if got := <-host; got != "matrix.example.org" {
			t.Errorf("the homeserver sees the host %q", got)
		}
		if h.Get("X-Forwarded-For") != c.wantFor || h.Get("X-Forwarded-Host") != c.wantHost || h.Get("X-Forwarded-Proto") != c.wantProto {
			t.Errorf("%q: the homeserver sees %v", c.sent, h)
		}
	}
}

// A client that has gone must not keep the homeserver busy.
func TestAClientThatHangsUpCancels(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	w, _ := behind(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan reply, 1)
	go func() { done <- w.do(ctx, http.MethodGet, "/_matrix/x", aliceToken, nil) }()
	await(t, began, "the request at the homeserver")
	cancel()
	await(t, gone, "its cancellation")
	<-done
}

// A client that only closes its sending side still listens: it must not get a made-up empty success.
func TestAClientThatHalfClosesGetsNoMadeUpAnswer(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	w, _ := behind(t, func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(gone)
	})
	conn := dial(t, w.app.Addr().String())
	_, _ = io.WriteString(conn, "GET /_matrix/x HTTP/1.1\r\nHost: h\r\n\r\n")
	await(t, began, "the request at the homeserver")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	await(t, gone, "the cancellation")
	if answer, _ := io.ReadAll(conn); bytes.Contains(answer, []byte(" 200 ")) {
		t.Errorf("the client was told %q, which the homeserver never said", answer)
	}
}

// While the homeserver is down clients get a Matrix error that a browser may read, and all is well again afterwards.
func TestTheHomeserverIsDown(t *testing.T) {
	w := running(t)
	w.hs.Close()
	for _, path := range []string{"/_matrix/x?access_token=" + aliceToken, "/_matrix/client/v3/sync?timeout=30000&since=s", "/_matrix/client/versions"} {
		r := w.do(t.Context(), http.MethodGet, path, aliceToken, nil)
		if r.status != http.StatusBadGateway || r.json(t)["errcode"] != "M_UNKNOWN" || r.json(t)["error"] == "" {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
		if r.header.Get("Access-Control-Allow-Origin") != "*" || !strings.HasPrefix(r.header.Get("Content-Type"), "application/json") {
			t.Errorf("%s: a browser cannot read it: %v", path, r.header)
		}
	}
	if r := w.refresh(aliceToken, "@bob:127.0.0.1:1"); r.status != http.StatusBadGateway || r.json(t)["errcode"] != "M_UNKNOWN" {
		t.Errorf("refresh: %d %s", r.status, r.body)
	}
}

// A body that the homeserver breaks off must not look whole to the client.
func TestAnAnswerThatBreaksOff(t *testing.T) {
	w, _ := behind(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("length") {
			rw.Header().Set("Content-Length", "100")
		}
		_, _ = io.WriteString(rw, `{"device_keys":{},`)
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	})
	for _, path := range []string{"/_matrix/x", "/_matrix/client/v3/sync", "/_matrix/client/versions"} {
		for _, query := range []string{"", "?length", "?timeout=30000"} {
			if r := w.do(t.Context(), http.MethodGet, path+query, aliceToken, nil); r.err == nil {
				t.Errorf("%s%s: the client takes %d %q for a whole answer", path, query, r.status, r.body)
			}
		}
	}
}

// Clients look for the flag; everything else in /versions is the homeserver's.
func TestVersionsAdvertisesTheFlag(t *testing.T) {
	body := `{"versions":["v1.11"], "unstable_features":{"a":false}, "x":[1 , 2]}`
	w, _ := behind(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Access-Control-Allow-Origin", "*")
		rw.Header().Set("Etag", `"1"`)
		if r.URL.Query().Has("broken") {
			rw.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(rw, body)
	})
	r := w.do(t.Context(), http.MethodGet, "/_matrix/client/versions", "", nil)
	if want := `{"versions":["v1.11"], "unstable_features":{"a":false,"org.matrix.msc2638":true}, "x":[1 , 2]}`; r.body != want {
		t.Errorf("got  %s\nwant %s", r.body, want)
	}
	if r.header.Get("Content-Length") != strconv.Itoa(len(r.body)) || r.header.Get("Etag") != "" || !slices.Equal(r.header["Access-Control-Allow-Origin"], []string{"*"}) {
		t.Errorf("headers: %v", r.header)
	}
	if r := w.do(t.Context(), http.MethodGet, "/_matrix/client/versions?broken", "", nil); r.body != body || r.status != http.StatusInternalServerError {
		t.Errorf("an error was edited: %d %s", r.status, r.body)
	}
}

// A homeserver may begin its answer while the client still sends, and still gets the whole body.
func TestAnAnswerMayBeginDuringTheUpload(t *testing.T) {
	w, _ := behind(t, func(rw http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(rw)
		if err := control.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		first := make([]byte, 5)
		if _, err := io.ReadFull(r.Body, first); err != nil {
			t.Error(err)
		}
		_, _ = fmt.Fprintf(rw, "%s,", first)
		_ = control.Flush()
		rest, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(rw, "%s,%v", rest, err)
	})
	conn := dial(t, w.app.Addr().String())
	_, _ = io.WriteString(conn, "POST /_matrix/x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nfirst")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	begun := make([]byte, 6)
	if _, err := io.ReadFull(response.Body, begun); err != nil {
		t.Fatalf("the answer's beginning: %q %v", begun, err)
	}
	_, _ = io.WriteString(conn, "other")
	if rest, err := io.ReadAll(response.Body); string(begun)+string(rest) != "first,other,<nil>" {
		t.Errorf("got %q%q %v", begun, rest, err)
	}
}
