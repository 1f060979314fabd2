package fedtest

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"
)

// Homeserver answers GET /user/devices/{userId} like a well-behaved one: it checks the X-Matrix signature over what
// really came, with the verifier of mautrix.
type Homeserver struct {
	// Name is the server name that requests must be meant for.
	Name string
	auth *mxfed.ServerAuth

	mu       sync.Mutex
	lists    map[string][]byte
	requests []Request
}

// Request is what a [Homeserver] saw of one request.
type Request struct {
	Host, URI, SNI, Proto, UserAgent, RemoteAddr string
	Denied                                       string // why the signature was not accepted, "" if it was
}

// NewHomeserver makes the server called name, which trusts key as that of origin.
func NewHomeserver(name, origin string, key *mxfed.SigningKey) *Homeserver {
	h := &Homeserver{Name: name, lists: map[string][]byte{}}
	h.auth = mxfed.NewServerAuth(nil, publishedKeys{origin: origin, key: key}, func(mxfed.XMatrixAuth) string { return h.Name })
	return h
}

// SetList makes body the answer for user. A user without one has an empty list.
func (h *Homeserver) SetList(user id.UserID, body []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lists[string(user)] = body
}

// Requests lists what came, in order.
func (h *Homeserver) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Request(nil), h.requests...)
}

func (h *Homeserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	seen := Request{Host: r.Host, URI: r.RequestURI, Proto: r.Proto, UserAgent: r.UserAgent(), RemoteAddr: r.RemoteAddr}
	if r.TLS != nil {
		seen.SNI = r.TLS.ServerName
	}
	_, denied := h.auth.Authenticate(r)
	if denied != nil {
		seen.Denied = denied.Err
	}
	user, isList := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/user/devices/")
	h.mu.Lock()
	h.requests = append(h.requests, seen)
	body := h.lists[user]
	h.mu.Unlock()
	switch {
	case denied != nil:
		denied.Write(w)
		return
	case !isList:
		http.NotFound(w, r)
		return
	case body == nil:
		body, _ = json.Marshal(map[string]any{"user_id": user, "stream_id": 0, "devices": []any{}})
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

// ServeTLS serves handler on listener with HTTP/1.1 and HTTP/2 until the test ends.
func ServeTLS(tb testing.TB, listener net.Listener, cert tls.Certificate, handler http.Handler) {
	serveTLS(tb, listener, cert, handler, []string{"h2", "http/1.1"})
}

// ServeTLS1 is ServeTLS with HTTP/1.1 alone.
func ServeTLS1(tb testing.TB, listener net.Listener, cert tls.Certificate, handler http.Handler) {
	serveTLS(tb, listener, cert, handler, []string{"http/1.1"})
}

func serveTLS(tb testing.TB, listener net.Listener, cert tls.Certificate, handler http.Handler, protos []string) {
	tb.Helper()
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos, MinVersion: tls.VersionTLS12},
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			tb.Errorf("the test's server stopped: %v", err)
		}
	})
	tb.Cleanup(func() { _ = server.Close(); serving.Wait() })
}

// NewKey makes a signing key.
func NewKey() *mxfed.SigningKey {
	return mxfed.GenerateSigningKey()
}

// KeyFromSeed makes the signing key of a 32-byte seed.
func KeyFromSeed(version string, seed []byte) *mxfed.SigningKey {
	private := ed25519.NewKeyFromSeed(seed)
	return &mxfed.SigningKey{
		ID:   id.NewKeyID(id.KeyAlgorithmEd25519, version),
		Pub:  id.SigningKey(base64.RawStdEncoding.EncodeToString(private[ed25519.SeedSize:])),
		Priv: private,
	}
}

// publishedKeys is what origin would publish at /_matrix/key/v2/server.
type publishedKeys struct {
	origin string
	key    *mxfed.SigningKey
}

func (p publishedKeys) LoadKeys(_ context.Context, server string, _ time.Duration) (*mxfed.ServerKeyResponse, error) {
	if server != p.origin {
		return nil, errors.New("the origin is unknown")
	}
	raw, err := json.Marshal(p.key.GenerateKeyResponse(p.origin, nil))
	if err != nil {
		return nil, err
	}
	var published mxfed.ServerKeyResponse
	return &published, json.Unmarshal(raw, &published)
}

func (publishedKeys) StoreKeys(context.Context, *mxfed.ServerKeyResponse) error { return nil }

func (publishedKeys) StoreFetchError(context.Context, string, error) error { return nil }

func (publishedKeys) ShouldReQuery(context.Context, string) (bool, error) { return false, nil }
