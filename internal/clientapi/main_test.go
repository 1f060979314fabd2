package clientapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"freshen"
	"freshen/internal/clientapi"
	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	v3       = "/_matrix/client/v3/user/"
	suffix   = "/devices/refresh"
	bob      = "@bob:b.example"
	bobRoute = v3 + bob + suffix
)

// world is freshen's routes over real HTTP before a scripted homeserver.
type world struct {
	t          *testing.T
	homeserver *hstest.Server
	front      *httptest.Server
	log        *lockedBuffer

	mu      sync.Mutex
	outcome func(context.Context) error
	asked   []call

	standings map[id.UserID]freshen.Standing
	unknown   error // what Standing fails with
}

type call struct {
	who    freshen.Requester
	target id.UserID
}

func setup(t *testing.T) *world {
	t.Helper()
	return setupWith(t, nil)
}

func setupWith(t *testing.T, transport http.RoundTripper) *world {
	t.Helper()
	w := &world{t: t, homeserver: hstest.New(t), log: &lockedBuffer{}}
	w.homeserver.AddUser("alice", "@alice:a.example", "PHONE")
	w.homeserver.AddGuest("guest", "@1:a.example", "G")
	client := homeserver.New(w.homeserver.URL(), transport)
	t.Cleanup(client.CloseIdleConnections)
	handler := clientapi.New(client, w, slog.New(slog.NewTextHandler(w.log, nil)))
	w.front = httptest.NewServer(handler)
	t.Cleanup(w.front.Close)
	return w
}

// Refresh is the engine that the tests script.
func (w *world) Refresh(ctx context.Context, who freshen.Requester, target id.UserID, cred homeserver.Credentials) error {
	w.mu.Lock()
	w.asked = append(w.asked, call{who, target})
	outcome := w.outcome
	w.mu.Unlock()
	if cred.IsZero() {
		w.t.Error("the engine got no credentials")
	}
	if outcome == nil {
		return nil
	}
	return outcome(ctx)
}

// Standing answers as the tests script it.
func (w *world) Standing(_ context.Context, who freshen.Requester, users []id.UserID, _ homeserver.Credentials) (map[id.UserID]freshen.Standing, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, user := range users {
		w.asked = append(w.asked, call{who, user})
	}
	return w.standings, w.unknown
}

// does scripts the engine; nil is a refresh that succeeds.
func (w *world) does(outcome func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcome = outcome
}

func (w *world) fails(err error) { w.does(func(context.Context) error { return err }) }

func (w *world) calls() []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asked)
}

type reply struct {
	status int
	header http.Header
	body   string
}

// errcode is "" where the body is no Matrix error.
func (r reply) errcode() string {
	var wire struct {
		ErrCode string `json:"errcode"`
		Error   string `json:"error"`
	}
	if json.Unmarshal([]byte(r.body), &wire) != nil || wire.Error == "" {
		return ""
	}
	return wire.ErrCode
}

// do sends the target as it stands, however odd.
func (w *world) do(method, target, body string, header map[string]string) reply {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), method, w.front.URL, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	request.URL.Opaque, request.URL.RawQuery, _ = strings.Cut(target, "?")
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := w.front.Client().Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	r := reply{response.StatusCode, response.Header, string(got)}
	w.checkHeaders(method, r)
	return r
}

// checkHeaders holds for every answer: a browser hides one without CORS from its client, errors included, and a cache
// on the way must keep none.
func (w *world) checkHeaders(method string, r reply) {
	w.t.Helper()
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin":   "*",
		"Access-Control-Allow-Methods":  "GET, POST, PUT, DELETE, OPTIONS",
		"Access-Control-Allow-Headers":  "X-Requested-With, Content-Type, Authorization",
		"Access-Control-Expose-Headers": "Retry-After",
		"Cache-Control":                 "no-store",
		"X-Content-Type-Options":        "nosniff",
	} {
		if got := r.header.Get(name); got != want {
			w.t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if method != http.MethodOptions && method != http.MethodHead && r.header.Get("Content-Type") != "application/json" {
		w.t.Errorf("Content-Type is %q", r.header.Get("Content-Type"))
	}
}

func (w *world) post(target string) reply {
	w.t.Helper()
	return w.do(http.MethodPost, target, "", asAlice)
}

var asAlice = map[string]string{"Authorization": "Bearer alice"}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
