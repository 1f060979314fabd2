//go:build goolm

package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A failure means that clients cannot find the endpoint, or find it only under one of its names.
func TestEveryRouteRefreshes(t *testing.T) {
	world, ctx, _, alice := setup(t)
	bob, _ := newUser(t, ctx, world.B, "bob")
	user := url.PathEscape(bob.String())
	for _, route := range []struct{ method, path string }{
		{http.MethodPost, "/_matrix/client/r0/user/" + user + "/devices/refresh"},
		{http.MethodPost, "/_matrix/client/v3/user/" + user + "/devices/refresh"},
		{http.MethodPost, "/_matrix/client/unstable/org.matrix.msc2638/user/" + user + "/devices/refresh"},
		{http.MethodGet, "/_matrix/unstable/org.matrix.msc2638/user/" + user + "/devices"},
	} {
		t.Run(route.path[:len(route.path)-len("/devices")], func(t *testing.T) {
			ctx := turn(t)
			requireAccepted(t, alice.do(t, ctx, route.method, route.path, nil))
			wrong := http.MethodDelete
			requireError(t, alice.do(t, ctx, wrong, route.path, nil), http.StatusMethodNotAllowed, "M_UNRECOGNIZED")
			preflight := alice.as("").do(t, ctx, http.MethodOptions, route.path, nil,
				"Origin", "https://app.example.org", "Access-Control-Request-Method", route.method)
			if preflight.status >= 300 || preflight.header.Get("Access-Control-Allow-Origin") != "*" ||
				!strings.Contains(preflight.header.Get("Access-Control-Allow-Headers"), "Authorization") {
				t.Errorf("a browser is not allowed to ask: %s, %v", preflight, preflight.header)
			}
		})
	}
	a := alice.as("").do(t, ctx, http.MethodPost, refreshPath(bob.String())+"?access_token="+url.QueryEscape(alice.token), nil)
	requireAccepted(t, a)
	if a.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a browser is not allowed to read the answer: %v", a.header)
	}
}

// A failure means that somebody whom the homeserver does not know gets federation traffic, or that a client is not told by
// the homeserver's own words that it is logged out.
func TestWhoMayNotAsk(t *testing.T) {
	world, ctx, _, alice := setup(t)
	bob, _ := newUser(t, ctx, world.B, "bob")
	for name, token := range map[string]string{"no token": "", "a wrong token": "syt_nobody_has_this"} {
		t.Run(name, func(t *testing.T) {
			ctx := turn(t)
			got := alice.as(token).refresh(t, ctx, bob.String())
			want := alice.as(token).at(world.A.URL).do(t, ctx, http.MethodGet, "/_matrix/client/v3/account/whoami", nil)
			requireError(t, got, want.status, want.matrixError(t).ErrCode)
			if token != "" && !bytes.Equal(bytes.TrimSpace(got.body), bytes.TrimSpace(want.body)) {
				t.Errorf("the answer is %s; the homeserver itself says %s", got, want)
			}
		})
	}
	t.Run("a guest", func(t *testing.T) {
		ctx := turn(t)
		a := alice.as("").do(t, ctx, http.MethodPost, "/_matrix/client/v3/register?kind=guest", []byte("{}"))
		var guest struct {
			Token string `json:"access_token"`
		}
		if err := json.Unmarshal(a.body, &guest); err != nil || guest.Token == "" {
			t.Fatalf("no guest: %s", a)
		}
		requireError(t, alice.as(guest.Token).refresh(t, ctx, bob.String()), http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN")
	})
	requireAccepted(t, alice.refresh(t, ctx, bob.String()))
}

// A failure means that users with old or unusual names cannot be refreshed: their ID is mangled on its way, or the
// signature over it does not hold at their homeserver.
func TestUnusualUserIDs(t *testing.T) {
	world, ctx, _, alice := setup(t)
	for _, localpart := range []string{"with/slash", "with=equals", "with.dot-dash_under", "with+plus"} {
		bob, _ := newUser(t, ctx, world.B, localpart)
		requireAccepted(t, alice.refresh(t, ctx, bob.String()))
	}
	// Historical IDs that nobody can register today; B answers about an unknown user with an empty list.
	for _, localpart := range []string{"Capitals", "with space~not", "a%2Fb", "<>&\"'", "ünïcode"} {
		user := "@" + localpart + ":" + world.B.ServerName
		a := alice.refresh(t, ctx, user)
		if strings.ContainsAny(localpart, " ü") {
			requireError(t, a, http.StatusBadRequest, "M_INVALID_PARAM")
			continue
		}
		requireAccepted(t, a)
	}
}

// A failure means that something that is no user ID reaches another server, or a client's device_lists.changed.
func TestWhatIsNoUserID(t *testing.T) {
	world, ctx, _, alice := setup(t)
	server := world.B.ServerName
	for name, escaped := range map[string]string{
		"no sigil": "bob:" + server, "no server": "@bob", "an empty server": "@bob:", "an empty localpart": "@:" + server,
		"a control character": "@b%00b:" + server, "no ASCII": "@b%C3%B6b:" + server, "too long": "@" + strings.Repeat("b", 300) + ":" + server,
		"a bad port": "@bob:127.0.0.3:99999", "a bad server name": "@bob:no_such..name%20here", "an alias": "%23bob:" + server,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := turn(t)
			a := alice.do(t, ctx, http.MethodPost, "/_matrix/client/v3/user/"+escaped+"/devices/refresh", nil)
			requireError(t, a, http.StatusBadRequest, "M_INVALID_PARAM")
		})
	}
	_, token := newUser(t, ctx, world.A, "carol")
	requireAccepted(t, alice.as(token).refresh(t, ctx, "@bob:"+server))
}

// A failure means that a client that sends an empty object, or nothing, is turned away, or that nonsense is not.
func TestBodies(t *testing.T) {
	world, ctx, _, alice := setup(t)
	path := refreshPath("@bob:" + world.B.ServerName)
	for _, good := range []string{"", "{}", ` {"reason": "unable to decrypt"} `} {
		requireAccepted(t, alice.do(t, ctx, http.MethodPost, path, []byte(good), "Content-Type", "application/json"))
	}
	for _, bad := range []string{"[]", "null", "12", `"x"`, "{", "not JSON"} {
		a := alice.do(t, ctx, http.MethodPost, path, []byte(bad), "Content-Type", "application/json")
		if e := a.matrixError(t); a.status != http.StatusBadRequest || (e.ErrCode != "M_NOT_JSON" && e.ErrCode != "M_BAD_JSON") {
			t.Errorf("the body %s is answered %s", bad, a)
		}
	}
}

// A failure means that local users, who need no federation, get an error.
func TestLocalUser(t *testing.T) {
	world, ctx, user, alice := setup(t)
	requireAccepted(t, alice.refresh(t, ctx, user.String()))
	other, _ := newUser(t, ctx, world.A, "carol")
	requireAccepted(t, alice.refresh(t, ctx, other.String()))
}

// A failure means that one user can make the homeserver send as many federation requests as they like.
func TestTooManyRequests(t *testing.T) {
	world, ctx, _, alice := setup(t)
	var limited answer
	for i := range 15 {
		bob := "@bob" + string(rune('a'+i)) + ":" + world.B.ServerName
		if limited = alice.refresh(t, ctx, bob); limited.status != http.StatusAccepted {
			break
		}
	}
	requireError(t, limited, http.StatusTooManyRequests, "M_LIMIT_EXCEEDED")
	if e := limited.matrixError(t); e.RetryAfterMS <= 0 || limited.header.Get("Retry-After") == "" {
		t.Errorf("the client is not told when to come back: %s, Retry-After %q", limited, limited.header.Get("Retry-After"))
	}
}
