package app_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/federation/fedtest"
	"freshen/internal/homeserver/hstest"
)

const (
	ours = "example.org"

	alice      id.UserID = "@alice:example.org"
	carol      id.UserID = "@carol:example.org"
	aliceToken           = "alice-secret-token"
	carolToken           = "carol-secret-token"
	guestToken           = "guest-secret-token"

	// patience is how long a test waits for what should happen at once.
	patience = time.Minute
)

// world is freshen as it is wired for the command, between a scripted homeserver and scripted remote servers.
type world struct {
	t   *testing.T
	hs  *hstest.Server
	ca  *fedtest.CA
	key *mxfed.SigningKey
	cfg *config.Config
	log *logBuffer
	// syncs are the requests for /sync as the homeserver gets them.
	syncs syncScript

	app    *app.App
	url    string
	cancel context.CancelFunc
	ended  chan error
	client *http.Client
}

// newWorld makes everything but freshen itself, which start starts.
func newWorld(t *testing.T, edits ...func(*config.Config)) *world {
	t.Helper()
	seed := bytes.Repeat([]byte{7}, 32)
	w := &world{
		t: t, hs: hstest.New(t), ca: fedtest.NewCA(t), key: fedtest.KeyFromSeed("1", seed), log: new(logBuffer),
		syncs: syncScript{calls: make(chan *syncCall, 1000)},
		client: &http.Client{
			Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "signing.key")
	w.write(keyFile, "ed25519 1 "+base64.RawStdEncoding.EncodeToString(seed)+"\n")
	w.hs.AddUser(aliceToken, alice, "ALICE")
	w.hs.AddUser(carolToken, carol, "CAROL")
	w.hs.AddGuest(guestToken, "@1:example.org", "GUEST")
	w.hs.Handle("/_matrix/client/v3/sync", &w.syncs)
	w.hs.Handle("/_matrix/client/r0/sync", &w.syncs)

	cfg := config.Default()
	cfg.Listen, cfg.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Homeserver.Name, cfg.Homeserver.URL, cfg.Homeserver.SigningKey = ours, w.hs.URL(), keyFile
	cfg.Database.Path = filepath.Join(dir, "freshen.db")
	cfg.Federation.CAFile = w.ca.File()
	cfg.Federation.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	cfg.Limits.PerUser.Burst, cfg.Limits.PerDestination.Burst = 1000, 1000
	cfg.Cache.Success, cfg.Cache.Failure = time.Millisecond, time.Millisecond
	for _, edit := range edits {
		edit(cfg)
	}
	w.cfg = cfg
	t.Cleanup(func() {
		w.stop()
		w.client.CloseIdleConnections()
		w.hs.CutConnections()
		for _, secret := range []string{aliceToken, carolToken, guestToken, base64.RawStdEncoding.EncodeToString(seed)} {
			if strings.Contains(w.log.String(), secret) {
				t.Errorf("the log holds a secret (%s): whoever reads the log could act as that user", secret)
			}
		}
		if t.Failed() {
			t.Logf("freshen's log:\n%s", w.log)
		}
	})
	return w
}

// running is newWorld with freshen started.
func running(t *testing.T, edits ...func(*config.Config)) *world {
	t.Helper()
	w := newWorld(t, edits...)
	w.start()
	return w
}

func (w *world) write(path, text string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (w *world) start() {
	w.t.Helper()
	w.openWith(func(ctx context.Context) (*app.App, error) { return app.Open(ctx, w.cfg, w.logger()) })
}

func (w *world) openWith(open func(context.Context) (*app.App, error)) {
	w.t.Helper()
	opened, err := open(w.t.Context())
	if err != nil {
		w.t.Fatalf("opening freshen: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.app, w.cancel, w.ended = opened, cancel, make(chan error, 1)
	w.url = "http://" + opened.Addr().String()
	if socket := opened.Addr(); socket.Network() == "unix" {
		w.url = "http://unix.test"
		w.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket.String())
		}
	}
	go func() { w.ended <- opened.Run(ctx) }()
}

// stop ends freshen in order, as SIGTERM does. It may be called when it does not run.
func (w *world) stop() {
	w.t.Helper()
	if w.app == nil {
		return
	}
	w.cancel()
	if err := <-w.ended; err != nil {
		w.t.Errorf("freshen ended with an error: %v", err)
	}
	if err := w.app.Close(); err != nil {
		w.t.Errorf("closing freshen: %v", err)
	}
	w.app = nil
}

// reply is an answer that was read to its end.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // what broke the answer off
}

func (r reply) json(t *testing.T) (members map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), &members); err != nil {
		t.Fatalf("the answer %d %q is no JSON object: %v", r.status, r.body, err)
	}
	return members
}

// do asks freshen and reads the whole answer. pathAndQuery goes out as it stands.
func (w *world) do(ctx context.Context, method, pathAndQuery, token string, body io.Reader) reply {
	request, err := http.NewRequestWithContext(ctx, method, w.url, body)
	if err != nil {
		return reply{err: err}
	}
	path, query, hasQuery := strings.Cut(pathAndQuery, "?")
	request.URL.Opaque, request.URL.RawQuery, request.URL.ForceQuery = path, query, hasQuery
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := w.client.Do(request)
	if err != nil {
		return reply{err: err}
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(read), err}
}

func (w *world) refresh(token string, target id.UserID) reply {
	w.t.Helper()
	r := w.do(w.t.Context(), http.MethodPost, "/_matrix/client/v3/user/"+url.PathEscape(string(target))+"/devices/refresh", token, nil)
	if r.err != nil {
		w.t.Fatalf("the request to refresh %s broke: %v", target, r.err)
	}
	return r
}

// refreshed asks for a refresh that must succeed.
func (w *world) refreshed(token string, target id.UserID) {
	w.t.Helper()
	if r := w.refresh(token, target); r.status != http.StatusAccepted || r.body != "{}" {
		w.t.Fatalf("refresh of %s: %d %s, want 202 {}", target, r.status, r.body)
	}
}

// sync begins a /sync in the background.
func (w *world) sync(ctx context.Context, token, query string) <-chan reply {
	replies := make(chan reply, 1)
	go func() { replies <- w.do(ctx, http.MethodGet, "/_matrix/client/v3/sync?"+query, token, nil) }()
	return replies
}

// await takes what should come at once.
func await[T any](t *testing.T, from <-chan T, what string) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(patience):
		t.Fatalf("%s did not come within %v", what, patience)
	}
	return got
}

// syncScript is the homeserver's /sync: each request waits for the test to answer it.
type syncScript struct{ calls chan *syncCall }

type syncCall struct {
	query  string
	header http.Header
	// gone is done when the request was abandoned.
	gone    <-chan struct{}
	answers chan<- func(http.ResponseWriter)
}

func (s *syncScript) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answers := make(chan func(http.ResponseWriter), 1)
	s.calls <- &syncCall{r.URL.RawQuery, r.Header.Clone(), r.Context().Done(), answers}
	select {
	case answer := <-answers:
		answer(w)
	case <-r.Context().Done():
	}
}

func (c *syncCall) answer(status int, header http.Header, body string) {
	c.answers <- func(w http.ResponseWriter) {
		maps.Copy(w.Header(), header)
		if w.Header().Get("Content-Type") == "" {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func (c *syncCall) ok(body string) { c.answer(http.StatusOK, nil, body) }

// next is the next /sync that the homeserver gets.
func (w *world) next() *syncCall {
	w.t.Helper()
	return await(w.t, w.syncs.calls, "a /sync at the homeserver")
}

// exchange is one whole /sync that the homeserver answers with body.
func (w *world) exchange(token, query, body string) string {
	w.t.Helper()
	replies := w.sync(w.t.Context(), token, query)
	w.next().ok(body)
	r := await(w.t, replies, "the answer of /sync")
	if r.err != nil || r.status != http.StatusOK {
		w.t.Fatalf("/sync?%s: %d %s %v", query, r.status, r.body, r.err)
	}
	return r.body
}

// waits checks that a long poll is not hurried: the homeserver's own answer comes through, and it saw one request.
func (w *world) waits(token, query, body string) string {
	w.t.Helper()
	replies := w.sync(w.t.Context(), token, query)
	call := w.next()
	if call.query != query {
		w.t.Fatalf("the homeserver got /sync?%s, want ?%s: the poll was hurried although nothing is new", call.query, query)
	}
	w.settle()
	select {
	case <-call.gone:
		w.t.Fatalf("/sync?%s was abandoned although nothing is new: the client would loop", query)
	default:
	}
	call.ok(body)
	return await(w.t, replies, "the answer of /sync").body
}

// settle lets what a request may have set off in the background run: a second user's request passes through everything
// that it would pass through.
func (w *world) settle() {
	w.t.Helper()
	for range 3 {
		if r := w.do(w.t.Context(), http.MethodGet, "/_matrix/client/v3/account/whoami", carolToken, nil); r.status != http.StatusOK {
			w.t.Fatalf("whoami through freshen: %d %s %v", r.status, r.body, r.err)
		}
	}
}

// introduce makes a user's device known to freshen and leaves nothing owed to it: it is woken once, for its own user, and
// acknowledges that.
func (w *world) introduce(token string, user id.UserID) {
	w.t.Helper()
	call, replies := w.waiting(token, "i0")
	w.refreshed(token, user)
	await(w.t, call.gone, "waking the device")
	w.next().ok(`{"next_batch":"i1"}`)
	await(w.t, replies, "the woken answer")
	if got := w.exchange(token, "since=i1&timeout=0", `{"next_batch":"i1"}`); got != `{"next_batch":"i1"}` {
		w.t.Fatalf("what the device has heard of is still owed: %s", got)
	}
}

// waiting begins a long poll and returns once it waits at the homeserver.
func (w *world) waiting(token, since string) (*syncCall, <-chan reply) {
	w.t.Helper()
	replies := w.sync(w.t.Context(), token, "since="+since+"&timeout=30000")
	return w.next(), replies
}

// remote is another homeserver, which can be replaced by anything while it runs.
type remote struct {
	name    string
	hs      *fedtest.Homeserver
	handler atomic.Pointer[http.Handler]
	asked   atomic.Int64
}

// remote starts a well-behaved one under an IP-literal name.
func (w *world) remote() *remote {
	w.t.Helper()
	listener := w.listen()
	r := &remote{name: listener.Addr().String()}
	r.hs = fedtest.NewHomeserver(r.name, ours, w.key)
	r.up()
	fedtest.ServeTLS1(w.t, listener, w.ca.Issue("127.0.0.1"), http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
		r.asked.Add(1)
		(*r.handler.Load()).ServeHTTP(rw, rq)
	}))
	return r
}

func (w *world) listen() net.Listener {
	w.t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return listener
}

// scripted starts a server that answers every request by script, and returns its name.
func (w *world) scripted(script fedtest.Script) string {
	w.t.Helper()
	listener := w.listen()
	fedtest.ServeScript(w.t, listener, w.ca.Issue("127.0.0.1"), script)
	return listener.Addr().String()
}

func (r *remote) user(localpart string) id.UserID { return id.UserID("@" + localpart + ":" + r.name) }

func (r *remote) serve(h http.Handler) { r.handler.Store(&h) }

// up makes it answer.
func (r *remote) up() { r.serve(r.hs) }

// down makes it break every connection.
func (r *remote) down() {
	r.serve(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
}

// has gives a user devices.
func (r *remote) has(localpart string, devices ...string) id.UserID {
	user := r.user(localpart)
	r.hs.SetList(user, deviceList(user, devices...))
	return user
}

func deviceList(user id.UserID, devices ...string) []byte {
	var all []string
	for _, d := range devices {
		all = append(all, fmt.Sprintf(`{"device_id":%q,"device_display_name":"phone","keys":%s}`, d, deviceKeys(user, d)))
	}
	return fmt.Appendf(nil, `{"user_id":%q,"stream_id":5,"devices":[%s],"master_key":{"user_id":%[1]q,"usage":["master"],"keys":{"ed25519:M":"M"}}}`,
		user, strings.Join(all, ","))
}

func deviceKeys(user id.UserID, device string) string {
	return fmt.Sprintf(`{"user_id":%q,"device_id":%q,"algorithms":["m.megolm.v1.aes-sha2"],"keys":{"ed25519:%[2]s":"key of %[2]s"},"signatures":{}}`, user, device)
}

// logs waits until freshen's log says so.
func (w *world) logs(part string) {
	w.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(w.log.String(), part); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("the log does not say %q after %v", part, patience)
		}
	}
}

// logBuffer takes the log of a freshen that runs.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
