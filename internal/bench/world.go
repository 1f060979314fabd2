package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/federation/fedtest"
	"freshen/internal/homeserver/hstest"
)

// world is freshen in this process, between a homeserver whose syncs wait and a remote server that speaks TLS and checks
// the signature.
type world struct {
	testing.TB
	ctx    context.Context
	ca     *fedtest.CA
	key    *mxfed.SigningKey
	remote *fedtest.Homeserver
	bob    id.UserID
	dir    string
	url    string   // of the first instance
	urls   []string // of all
	http   *http.Client
	users  []string

	direct  string        // the homeserver's own URL
	waiting chan struct{} // gets one for each poll that has come to wait at the homeserver

	mu       sync.Mutex
	release  chan struct{} // closed: the polls that wait there of themselves are answered
	answered time.Time     // when the remote's last byte was written
	lists    int
}

// newWorld starts freshen for so many users, who share a room with bob: on a file, or an instance on each of these Postgres
// databases, which may be the same. The users poll at them in turn.
func newWorld(ctx context.Context, tb testing.TB, users int, databases ...*url.URL) *world {
	tb.Helper()
	w := &world{TB: tb, ctx: ctx, ca: fedtest.NewCA(tb), dir: tb.TempDir(), waiting: make(chan struct{}, users), release: make(chan struct{})}
	hs := hstest.New(tb)
	w.direct = hs.URL().String()
	hs.HandleFunc("/_matrix/client/v3/sync", w.sync)
	for i := range users {
		name := "user" + strconv.Itoa(i)
		w.users = append(w.users, name)
		hs.AddUser(token(name), userID(name), "DEVICE")
	}
	cfg, err := configure(hs.URL(), filepath.Join(w.dir, "freshen.db"))
	if err != nil {
		tb.Fatal(err)
	}
	written, err := os.ReadFile(cfg.Homeserver.SigningKey)
	if err != nil {
		tb.Fatal(err)
	}
	if w.key, err = mxfed.ParseSynapseKey(strings.TrimSpace(string(written))); err != nil {
		tb.Fatal(err)
	}
	listener := fedtest.NewNetwork(tb).Listen("127.1.0.1:443")
	name := listener.Addr().String()
	w.bob = id.UserID("@bob:" + name)
	w.remote = fedtest.NewHomeserver(name, serverName, w.key)
	fedtest.ServeTLS(tb, listener, w.ca.Issue("127.0.0.1"), http.HandlerFunc(w.federation))
	members := []id.UserID{w.bob}
	for _, user := range w.users {
		members = append(members, userID(user))
	}
	hs.SetRoom(sharedRoom, members...)
	cfg.Federation.CAFile = w.ca.File()
	cfg.Federation.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	transport := &http.Transport{MaxIdleConnsPerHost: users + 8}
	w.http = &http.Client{Transport: transport}
	if len(databases) == 0 {
		databases = append(databases, nil)
	}
	for _, database := range databases {
		if database != nil {
			cfg.Database = config.Database{URL: database}
		}
		a, err := app.Open(ctx, cfg, quiet())
		if err != nil {
			tb.Fatal(err)
		}
		w.urls = append(w.urls, "http://"+a.Addr().String())
		w.serve(a, transport)
	}
	w.url = w.urls[0]
	return w
}

// serve runs freshen until the end of the test.
func (w *world) serve(a *app.App, transport *http.Transport) {
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w.Cleanup(func() {
		cancel()
		transport.CloseIdleConnections()
		if err := errors.Join(<-done, a.Close()); err != nil {
			w.Errorf("freshen did not end well: %v", err)
		}
	})
}

// sync waits for news that never come, or answers at once if it is not to wait.
func (w *world) sync(rw http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if query.Get("timeout") != "0" {
		w.mu.Lock()
		release := w.release
		w.mu.Unlock()
		w.waiting <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
			return
		}
	}
	since, _ := strconv.Atoi(query.Get("since"))
	hstest.WriteJSON(rw, http.StatusOK, map[string]any{
		"next_batch": strconv.Itoa(since + 1), "device_one_time_keys_count": map[string]int{"signed_curve25519": 50},
	})
}

// federation answers as the remote does, and takes the time once all of the answer's bytes are written.
func (w *world) federation(rw http.ResponseWriter, r *http.Request) {
	recorded := httptest.NewRecorder()
	w.remote.ServeHTTP(recorded, r)
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", strconv.Itoa(recorded.Body.Len()))
	rw.WriteHeader(recorded.Code)
	_, _ = rw.Write(recorded.Body.Bytes())
	_ = http.NewResponseController(rw).Flush()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answered = time.Now()
}

func (w *world) lastByte() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered
}

// change gives bob a list that he has not had.
func (w *world) change() {
	w.lists++
	w.remote.SetList(w.bob, deviceList(w.bob, 5, w.lists))
}

// woken is how one poll ended.
type woken struct {
	user string
	at   time.Time
	next int
	err  error
}

// poll syncs and wants bob to be announced.
func (w *world) poll(user string, since int) woken {
	at := w.urls[len(w.urls)-1]
	if n, err := strconv.Atoi(strings.TrimPrefix(user, "user")); err == nil {
		at = w.urls[n%len(w.urls)]
	}
	body, err := w.ask(http.MethodGet, fmt.Sprintf("%s/_matrix/client/v3/sync?timeout=30000&since=%d", at, since), user, http.StatusOK)
	end := woken{user: user, at: time.Now(), err: err}
	if err != nil {
		return end
	}
	var answer struct {
		NextBatch   string `json:"next_batch"`
		DeviceLists struct {
			Changed []id.UserID `json:"changed"`
		} `json:"device_lists"`
	}
	if end.err = json.Unmarshal(body, &answer); end.err != nil {
		return end
	}
	if len(answer.DeviceLists.Changed) != 1 || answer.DeviceLists.Changed[0] != w.bob {
		end.err = fmt.Errorf("the sync of %s announces %q in place of %s", user, answer.DeviceLists.Changed, w.bob)
		return end
	}
	end.next, end.err = strconv.Atoi(answer.NextBatch)
	return end
}

// refresh asks for bob's list.
func (w *world) refresh(user string) error {
	_, err := w.ask(http.MethodPost, w.url+"/_matrix/client/v3/user/"+string(w.bob)+"/devices/refresh", user, http.StatusAccepted)
	return err
}

func (w *world) ask(method, url, user string, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(w.ctx, method, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token(user))
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: status %d: %.200s", method, url, resp.StatusCode, body)
	}
	return body, err
}

// wake has everybody's poll wait, refreshes as the first user, and returns how long after the remote's last byte each
// sync's last byte was there.
func (w *world) wake(since []int) ([]time.Duration, error) {
	each, err := w.wakeEach(since)
	return slices.Collect(maps.Values(each)), err
}

// wakeEach is wake, by the user's number.
func (w *world) wakeEach(since []int) (each map[int]time.Duration, err error) {
	each = map[int]time.Duration{}
	w.change()
	ends := make(chan woken, len(w.users))
	for i, user := range w.users {
		go func() { ends <- w.poll(user, since[i]) }()
	}
	if err := w.allWait(); err != nil {
		return nil, err
	}
	if err := w.refresh(w.users[0]); err != nil {
		return nil, err
	}
	for range w.users {
		end := <-ends
		if end.err != nil {
			return nil, end.err
		}
		index, err := strconv.Atoi(strings.TrimPrefix(end.user, "user"))
		if err != nil {
			return nil, err
		}
		each[index] = end.at.Sub(w.lastByte())
		since[index] = end.next
	}
	return each, nil
}

func (w *world) allWait() error {
	for range w.users {
		select {
		case <-w.waiting:
		case <-time.After(20 * time.Second):
			return errors.New("a poll has not come to wait at the homeserver")
		}
	}
	return nil
}

// write has everybody's poll wait at the homeserver itself, which answers them all at once, and returns how long after
// that the last one's answer was there.
func (w *world) write() (time.Duration, error) {
	ends := make(chan woken, len(w.users))
	for _, user := range w.users {
		go func() {
			_, err := w.ask(http.MethodGet, w.direct+"/_matrix/client/v3/sync?timeout=30000&since=1", user, http.StatusOK)
			ends <- woken{at: time.Now(), err: err}
		}()
	}
	if err := w.allWait(); err != nil {
		return 0, err
	}
	began := time.Now()
	w.mu.Lock()
	close(w.release)
	w.release = make(chan struct{})
	w.mu.Unlock()
	var last time.Time
	for range w.users {
		end := <-ends
		if end.err != nil {
			return 0, end.err
		}
		if end.at.After(last) {
			last = end.at
		}
	}
	return last.Sub(began), nil
}

// deviceList is the body of /user/devices for so many devices; version is in each device's keys.
func deviceList(user id.UserID, devices, version int) []byte {
	var list bytes.Buffer
	fmt.Fprintf(&list, `{"user_id":%q,"stream_id":%d,"devices":[`, user, version)
	for i := range devices {
		if i > 0 {
			list.WriteByte(',')
		}
		device := "DEVICE" + strconv.Itoa(i)
		fmt.Fprintf(&list, `{"device_id":%[1]q,"device_display_name":"A phone","keys":{"user_id":%[2]q,"device_id":%[1]q,`+
			`"algorithms":["m.olm.v1.curve25519-aes-sha2","m.megolm.v1.aes-sha2"],"keys":{"curve25519:%[3]s":"%043[4]d","ed25519:%[3]s":"%043[4]d"},`+
			`"signatures":{%[2]q:{"ed25519:%[3]s":"%086[4]d"}}}}`, device, user, device, version)
	}
	list.WriteString(`]}`)
	return list.Bytes()
}
