//go:build goolm

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// counter stands between a client and freshen, passes everything on and remembers what it was.
type counter struct {
	URL string

	mu       sync.Mutex
	requests []*request
	more     chan struct{} // closed and replaced when something has changed
}

// request is one that a client has sent.
type request struct {
	at time.Time
	// route is the method and the path without version and IDs, "POST keys/query".
	route string
	// users are those whom a /keys/query asks for.
	users []id.UserID
	// oneTimeKeys says that a /keys/upload brings some.
	oneTimeKeys bool
	// since is a /sync's, and hurried that it does not wait.
	since   string
	hurried bool
	// status is that of the answer, 0 until it has come.
	status int
	// changed is device_lists.changed in the answer to a /sync.
	changed []id.UserID
}

func (r *request) String() string {
	return fmt.Sprint(r.at.Format("05.000 "), r.route, " ", r.users, " ", r.status, " ", r.changed)
}

// newCounter starts one before the server at target. It stops with the test.
func newCounter(t *testing.T, target string) *counter {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	backend := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8}
	c := &counter{more: make(chan struct{})}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Accept-Encoding") // answers are read
		},
		Transport: backend, ErrorLog: quiet, ModifyResponse: c.answered,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		query := r.URL.Query()
		asked := &request{at: time.Now(), route: routeOf(r), since: query.Get("since"), hurried: query.Get("timeout") == "0"}
		asked.read(body)
		c.change(func() { c.requests = append(c.requests, asked) })
		proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), askedKey{}, asked)))
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		backend.CloseIdleConnections()
	})
	c.URL = server.URL
	return c
}

type askedKey struct{}

func routeOf(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, "/_matrix/client/")
	if version, rest, found := strings.Cut(path, "/"); found && version != "unstable" {
		path = rest
	}
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if strings.ContainsAny(part, "@!#:") {
			parts[i] = "…"
		}
	}
	return r.Method + " " + strings.Join(parts, "/")
}

// read takes from a request's body what the tests want to know.
func (r *request) read(body []byte) {
	var known struct {
		DeviceKeys  map[id.UserID]json.RawMessage `json:"device_keys"`
		OneTimeKeys map[string]json.RawMessage    `json:"one_time_keys"`
	}
	if json.Unmarshal(body, &known) != nil {
		return
	}
	r.oneTimeKeys = len(known.OneTimeKeys) > 0
	if r.route == "POST keys/query" {
		for user := range known.DeviceKeys {
			r.users = append(r.users, user)
		}
	}
}

func (c *counter) answered(resp *http.Response) error {
	asked, ok := resp.Request.Context().Value(askedKey{}).(*request)
	if !ok {
		return nil
	}
	var sync struct {
		DeviceLists struct {
			Changed []id.UserID `json:"changed"`
		} `json:"device_lists"`
	}
	if asked.route == "GET sync" {
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		_ = json.Unmarshal(body, &sync) // an error has no device_lists
	}
	c.change(func() { asked.status, asked.changed = resp.StatusCode, sync.DeviceLists.Changed })
	return nil
}

func (c *counter) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.more)
	c.more = make(chan struct{})
}

// mark is the number of the next request, for the others' from.
func (c *counter) mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.requests)
}

// matching returns the requests that f holds for, from number from on.
func (c *counter) matching(from int, f func(*request) bool) []request {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []request
	for _, r := range c.requests[from:] {
		if f(r) {
			found = append(found, *r)
		}
	}
	return found
}

// await returns when n requests from number from on match f, which is asked again whenever something has changed.
func (c *counter) await(ctx context.Context, from, n int, f func(*request) bool) error {
	for {
		c.mu.Lock()
		more := c.more
		c.mu.Unlock()
		if len(c.matching(from, f)) >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the client has sent:\n%s", ctx.Err(), c.story(from))
		case <-more:
		}
	}
}

// story is what the client has sent from number from on, a line each.
func (c *counter) story(from int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines strings.Builder
	for _, r := range c.requests[from:] {
		fmt.Fprintln(&lines, r)
	}
	return lines.String()
}

// heard are the answers to /sync, from number from on, that name user and were waited for: freshen abandons a poll that it
// asks again without waiting, and what is answered to it all the same nobody reads.
func (c *counter) heard(from int, user id.UserID) int {
	all := c.matching(from, func(r *request) bool { return r.route == "GET sync" })
	n := 0
	for i, r := range all {
		abandoned := !r.hurried && slices.ContainsFunc(all[i+1:], func(later request) bool { return later.hurried && later.since == r.since })
		if !abandoned && slices.Contains(r.changed, user) {
			n++
		}
	}
	return n
}

// asksFor holds for an answered /keys/query that names user.
func asksFor(user id.UserID) func(*request) bool {
	return func(r *request) bool { return r.status != 0 && slices.Contains(r.users, user) }
}

// tellsOf holds for a /sync that has named user in device_lists.changed.
func tellsOf(user id.UserID) func(*request) bool {
	return func(r *request) bool { return slices.Contains(r.changed, user) }
}
