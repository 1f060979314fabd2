//go:build goolm

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/testbed"
	"freshen/internal/testbed/scenario"
	"freshen/internal/testbed/testbedtest"
)

// patience bounds what one test asks for.
const patience = time.Minute

// answer is what came back, whatever the status.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) String() string {
	const most = 600
	return fmt.Sprintf("%d %.*s", a.status, most, a.body)
}

// matrixError is a Matrix error with what MSC2638 adds to it.
type matrixError struct {
	ErrCode string `json:"errcode"`
	Error   string `json:"error"`
	Failure *struct {
		Destination  string `json:"destination"`
		Reason       string `json:"reason"`
		Status       int    `json:"status"`
		ErrCode      string `json:"errcode"`
		Error        string `json:"error"`
		RetryAfterMS int64  `json:"retry_after_ms"`
	} `json:"org.matrix.msc2638.failure"`
	RetryAfterMS int64 `json:"retry_after_ms"`
}

func (a answer) matrixError(t *testing.T) matrixError {
	t.Helper()
	var e matrixError
	if err := json.Unmarshal(a.body, &e); err != nil || e.ErrCode == "" || e.Error == "" {
		t.Fatalf("the answer should be a Matrix error, and is %s", a)
	}
	return e
}

// caller sends requests as somebody, or nobody, with bytes as given: no cleaned paths, no followed redirects.
type caller struct {
	base, token string
	http        *http.Client
}

func newCaller(t *testing.T, base, token string) *caller {
	t.Helper()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &caller{base: base, token: token, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// as is the same caller with another token, "" for none.
func (c *caller) as(token string) *caller { return &caller{base: c.base, token: token, http: c.http} }

// at is the same caller at another server.
func (c *caller) at(base string) *caller { return &caller{base: base, token: c.token, http: c.http} }

func (c *caller) do(t *testing.T, ctx context.Context, method, target string, body []byte, header ...string) answer {
	t.Helper()
	a, err := c.try(ctx, method, target, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return a
}

func (c *caller) try(ctx context.Context, method, target string, body []byte, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	path, query, _ := strings.Cut(target, "?")
	req.URL.Opaque, req.URL.RawQuery = path, query
	if strings.HasPrefix(path, "//") {
		req.URL.Opaque = "//" + req.URL.Host + path // sent in the absolute form, which not every homeserver understands
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: data}, err
}

func refreshPath(user string) string {
	return "/_matrix/client/v3/user/" + url.PathEscape(user) + "/devices/refresh"
}

func (c *caller) refresh(t *testing.T, ctx context.Context, user string) answer {
	t.Helper()
	return c.do(t, ctx, http.MethodPost, refreshPath(user), nil)
}

var people atomic.Int64

// newUser registers somebody at a homeserver and returns them and their token. Each has limits of their own.
func newUser(t *testing.T, ctx context.Context, on *testbed.Homeserver, localpart string) (id.UserID, string) {
	t.Helper()
	c := newCaller(t, on.URL, "")
	body, err := json.Marshal(map[string]any{
		"username": fmt.Sprintf("%s%d", localpart, people.Add(1)), "password": scenario.Password,
		"auth": map[string]string{"type": "m.login.dummy"},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := c.do(t, ctx, http.MethodPost, "/_matrix/client/v3/register", body)
	var registered struct {
		UserID id.UserID `json:"user_id"`
		Token  string    `json:"access_token"`
	}
	if err := json.Unmarshal(a.body, &registered); err != nil || registered.Token == "" {
		t.Fatalf("%s cannot be registered at %s: %s", localpart, on.Name, a)
	}
	return registered.UserID, registered.Token
}

// setup returns the shared world and a new local user of A who calls freshen.
func setup(t *testing.T) (*testbed.World, context.Context, id.UserID, *caller) {
	t.Helper()
	t.Parallel()
	world, ctx := shared.World(t), testbedtest.Context(t, patience)
	user, token := newUser(t, ctx, world.A, "alice")
	return world, ctx, user, newCaller(t, world.Freshen.URL, token)
}

// turn has a part of a test wait until it is its turn beside others, and gives it time of its own from then on.
func turn(t *testing.T) context.Context {
	t.Helper()
	t.Parallel()
	return testbedtest.Context(t, patience)
}

func requireAccepted(t *testing.T, a answer) {
	t.Helper()
	if a.status != http.StatusAccepted || string(bytes.TrimSpace(a.body)) != "{}" {
		t.Errorf("the answer should be 202 {}, and is %s", a)
	}
}

func requireError(t *testing.T, a answer, status int, errcode string) {
	t.Helper()
	if e := a.matrixError(t); a.status != status || e.ErrCode != errcode {
		t.Errorf("the answer should be %d %s, and is %s", status, errcode, a)
	}
}
