//go:build unix

package soak

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"
)

// mood is how a remote server behaves just now.
type mood int

const (
	well         mood = iota
	refuses           // connections
	hangs             // reads the request and never answers
	fails             // 500
	busy              // 429 with a time to wait
	gone              // 404 of a web server that is no homeserver any more
	breaksOff         // in the middle of the answer
	talksRubbish      // 200 with the list of somebody else: the user is to blame, who waits for an hour
	moods
)

// lateEnd is how long a request that was given up may still look open here, since nobody has noticed yet.
const lateEnd = time.Second

// remote is another homeserver. It fails and recovers as it is told, and records every request in the ledger.
type remote struct {
	t      *testing.T
	name   string // host:port, which is its server name
	cert   tls.Certificate
	h2     bool
	ledger *ledger
	lives  *lives

	mu      sync.Mutex
	random  *rand.Rand
	mood    mood
	changed chan struct{} // closed when the mood changes
	lists   map[string]int
	server  *http.Server
	serving sync.WaitGroup
}

// set changes the mood. When it returns, no request that came in another one is running, unless it is being served.
func (r *remote) set(m mood) {
	r.mu.Lock()
	before := r.mood
	r.mood = m
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	switch {
	case m == refuses && before != refuses:
		r.down()
	case m != refuses && before == refuses:
		r.up()
	}
}

func (r *remote) up() {
	listener, err := net.Listen("tcp", r.name)
	// Where tests run beside each other, the port may be an outgoing connection's end for a moment.
	for late := time.Now().Add(5 * time.Second); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(late); {
		wait(r.t.Context(), pause)
		listener, err = net.Listen("tcp", r.name)
	}
	if err != nil {
		r.t.Errorf("the remote server cannot listen again: %v", err)
		return
	}
	protos := []string{"http/1.1"}
	if r.h2 {
		protos = []string{"h2", "http/1.1"}
	}
	r.server = &http.Server{
		Handler: r, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{r.cert}, NextProtos: protos, MinVersion: tls.VersionTLS12},
	}
	var lines sync.Map // net.Conn → *line
	r.server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		l := &line{closed: make(chan struct{})}
		lines.Store(conn, l)
		return context.WithValue(ctx, line{}, l)
	}
	r.server.ConnState = func(conn net.Conn, state http.ConnState) {
		if l, ok := lines.Load(conn); ok && state == http.StateClosed {
			lines.Delete(conn)
			l.(*line).end()
		}
	}
	r.serving.Go(func() { _ = r.server.ServeTLS(listener, "", "") })
}

// down refuses connections from now on. Answers that are on their way arrive.
func (r *remote) down() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		_ = r.server.Close()
	}
	r.serving.Wait()
}

// temper is what a request is answered by.
func (r *remote) temper() (m mood, changed <-chan struct{}, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mood, r.changed, time.Duration(r.random.IntN(40)) * time.Millisecond
}

func (r *remote) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	escaped, isList := strings.CutPrefix(req.URL.EscapedPath(), "/_matrix/federation/v1/user/devices/")
	target, err := url.PathUnescape(escaped)
	if !isList || err != nil {
		http.NotFound(w, req)
		return
	}
	auth := mxfed.ParseXMatrixAuth(req.Header.Get("Authorization"))
	life := strings.TrimPrefix(string(auth.KeyID), "ed25519:")
	if auth.Origin != ours || auth.Destination != r.name || !r.lives.known(life) {
		r.ledger.complain("%s was asked for %s by somebody who is not freshen: %+v", r.name, target, auth)
	}
	var over *line
	if req.ProtoMajor == 2 {
		over = req.Context().Value(line{}).(*line)
	}
	f, others := r.ledger.arrives(id.UserID(target), life, over)
	answered, ok, list := false, false, 0
	defer func() { r.ledger.ends(f, answered, ok, list) }()
	r.together(f, others)

	m, changed, delay := r.temper()
	switch m {
	case hangs:
		select {
		case <-changed:
		case <-req.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case well:
		select {
		case <-time.After(delay):
		case <-req.Context().Done():
			panic(http.ErrAbortHandler)
		}
		var body []byte
		body, list = r.list(target)
		w.Header().Set("Content-Type", "application/json")
		_, err := w.Write(body)
		ok = err == nil && req.Context().Err() == nil
		answered = ok
	case breaksOff:
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"user_id":`)
		panic(http.ErrAbortHandler)
	default:
		r.fail(w, m)
		answered = true
	}
}

func (r *remote) fail(w http.ResponseWriter, m mood) {
	status, contentType, body := http.StatusInternalServerError, "application/json", `{"errcode":"M_UNKNOWN","error":"Internal server error"}`
	switch m {
	case busy:
		status, body = http.StatusTooManyRequests, `{"errcode":"M_LIMIT_EXCEEDED","error":"Too many requests","retry_after_ms":150}`
	case gone:
		status, contentType, body = http.StatusNotFound, "text/html", "<h1>Parked</h1>"
	case talksRubbish:
		status, body = http.StatusOK, `{"user_id":"@somebody:else.example","stream_id":1,"devices":[]}`
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// together complains where freshen asks for a target while it is being asked for it already. A request that only looks
// open, because nobody has noticed yet that it was given up, is given time for that.
func (r *remote) together(f *fetch, others []*fetch) {
	for _, other := range others {
		if r.lives.excuse(other, f.arrived) {
			continue
		}
		served := true
		select {
		case <-other.done:
			served = r.ledger.served(other)
		case <-time.After(lateEnd):
		}
		if served && !r.lives.excuse(other, f.arrived) && !other.sentAgain(f, time.After(lateEnd)) {
			r.ledger.complain("%s was asked for %s by %s at %s, while the request of %s from %s was still open",
				r.name, f.target, f.by, clock(f.arrived), other.by, clock(other.arrived))
		}
	}
}

// list is the device list of target; it says something else now and then.
func (r *remote) list(target string) (body []byte, number int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.random.IntN(3) == 0 {
		r.lists[target]++
	}
	number = r.lists[target]
	keys := fmt.Sprintf(`{"user_id":%q,"device_id":"D%d","algorithms":["m.megolm.v1.aes-sha2"],"keys":{"ed25519:D%[2]d":"key"},"signatures":{}}`, target, number)
	return fmt.Appendf(nil, `{"user_id":%q,"stream_id":%d,"devices":[{"device_id":"D%[2]d","keys":%s}]}`, target, number, keys), number
}
