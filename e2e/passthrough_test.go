//go:build goolm

package e2e

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// A failure means that freshen changes answers that are none of its business.
func TestEverythingElsePasses(t *testing.T) { //nolint:tparallel // some requests change what others see
	world, ctx, user, alice := setup(t)
	escaped := url.PathEscape(user.String())
	for _, request := range []struct{ method, target, body string }{
		{http.MethodGet, "/_matrix/client/v3/account/whoami", ""},
		{http.MethodGet, "/_matrix/client/v3/no/such/route", ""},
		{http.MethodPost, "/_matrix/client/v3/no/such/route?a=1&a=2", "{}"},
		{http.MethodGet, "/_matrix/nonsense", ""},
		{http.MethodGet, "/_matrix/client/v3/profile/" + escaped, ""},
		{http.MethodGet, "/_matrix/client/v3/profile/" + strings.ReplaceAll(url.QueryEscape(user.String()), "+", "%20"), ""},
		{http.MethodGet, "/_matrix/client/v3/directory/room/%23a%2Fb%25c:" + world.A.ServerName, ""},
		{http.MethodGet, "/_matrix/client/v3//account/whoami", ""},
		{http.MethodGet, "/_matrix/client/v3/./account/../account/whoami", ""},
		{http.MethodGet, "/_matrix/client/v3/account/whoami/", ""},
		{http.MethodGet, "/_matrix/client/v3/account/whoami?broken=%zz&semi;colon&plus=a+b", ""},
		{http.MethodHead, "/_matrix/client/v3/account/whoami", ""},
		{http.MethodOptions, "/_matrix/client/v3/account/whoami", ""},
		{http.MethodDelete, "/_matrix/client/v3/account/whoami", ""},
		{http.MethodPut, "/_matrix/client/v3/profile/" + escaped + "/displayname", `{"displayname": "Alïce \u0041"}`},
		{http.MethodPost, "/_matrix/client/v3/keys/query", `{"device_keys": {"` + user.String() + `": []}}`},
		{http.MethodPost, "/_matrix/client/v3/keys/query", `no JSON`},
		{http.MethodGet, "/_matrix/client/v3/sync?since=nonsense", ""},
		{http.MethodGet, "/_matrix/client/v3/user/" + escaped + "/devices/refreshed", ""},
		{http.MethodGet, "/_matrix/federation/v1/version", ""},
	} {
		t.Run(request.method+" "+request.target, func(t *testing.T) {
			got := alice.do(t, ctx, request.method, request.target, []byte(request.body))
			want := alice.at(world.A.URL).do(t, ctx, request.method, request.target, []byte(request.body))
			if got.status != want.status || !bytes.Equal(got.body, want.body) {
				t.Errorf("through freshen: %s\ndirect:          %s", got, want)
			}
			for _, name := range []string{"Content-Type", "Content-Length", "Location", "Access-Control-Allow-Origin"} {
				// A redirect may name the host that was asked.
				if a, b := got.header.Get(name), strings.ReplaceAll(want.header.Get(name), world.A.URL, world.Freshen.URL); a != b {
					t.Errorf("%s is %q through freshen and %q direct", name, a, b)
				}
			}
		})
	}
}

// A failure means that clients do not learn that the endpoint exists, or lose what the homeserver says about itself.
func TestVersionsAnnounceTheEndpoint(t *testing.T) {
	world, ctx, _, alice := setup(t)
	read := func(base string) map[string]any {
		var versions map[string]any
		a := alice.as("").at(base).do(t, ctx, http.MethodGet, "/_matrix/client/versions", nil)
		if err := json.Unmarshal(a.body, &versions); err != nil {
			t.Fatalf("%v: %s", err, a)
		}
		return versions
	}
	got, want := read(world.Freshen.URL), read(world.A.URL)
	features, _ := got["unstable_features"].(map[string]any)
	if features["org.matrix.msc2638"] != true {
		t.Errorf("/versions does not announce the endpoint: %v", got)
	}
	delete(features, "org.matrix.msc2638")
	if a, b := toJSON(t, got), toJSON(t, want); a != b {
		t.Errorf("/versions is, apart from that, %s instead of %s", a, b)
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A failure means that files are damaged on their way through freshen.
func TestMediaPasses(t *testing.T) {
	world, ctx, _, alice := setup(t)
	file := make([]byte, 3<<20)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(file); err != nil {
		t.Fatal(err)
	}
	up := alice.do(t, ctx, http.MethodPost, "/_matrix/media/v3/upload?filename=a%20b.bin", file, "Content-Type", "application/octet-stream")
	var uploaded struct {
		URI string `json:"content_uri"`
	}
	if err := json.Unmarshal(up.body, &uploaded); err != nil || !strings.HasPrefix(uploaded.URI, "mxc://") {
		t.Fatalf("the upload is answered %s", up)
	}
	path := "/_matrix/client/v1/media/download/" + strings.TrimPrefix(uploaded.URI, "mxc://")
	got := alice.do(t, ctx, http.MethodGet, path, nil)
	want := alice.at(world.A.URL).do(t, ctx, http.MethodGet, path, nil)
	if got.status != http.StatusOK || !bytes.Equal(got.body, file) {
		t.Errorf("the download is answered %d with %d bytes, the same as uploaded: %v", got.status, len(got.body), bytes.Equal(got.body, file))
	}
	for _, name := range []string{"Content-Type", "Content-Length", "Content-Disposition", "Content-Security-Policy"} {
		if got.header.Get(name) != want.header.Get(name) {
			t.Errorf("%s is %q through freshen and %q direct", name, got.header.Get(name), want.header.Get(name))
		}
	}
	part := alice.do(t, ctx, http.MethodGet, path, nil, "Range", "bytes=0-99")
	direct := alice.at(world.A.URL).do(t, ctx, http.MethodGet, path, nil, "Range", "bytes=0-99")
	if part.status != direct.status || !bytes.Equal(part.body, direct.body) {
		t.Errorf("a part is %d with %d bytes through freshen, %d with %d direct", part.status, len(part.body), direct.status, len(direct.body))
	}
}

// A failure means that clients poll in a busy loop, or wait for nothing when something came.
func TestLongPollPasses(t *testing.T) {
	world, ctx, _, alice := setup(t)
	var first struct {
		NextBatch string `json:"next_batch"`
	}
	if a := alice.do(t, ctx, http.MethodGet, "/_matrix/client/v3/sync", nil); json.Unmarshal(a.body, &first) != nil || first.NextBatch == "" {
		t.Fatalf("the first /sync is %s", a)
	}
	started := time.Now()
	idle := alice.do(t, ctx, http.MethodGet, "/_matrix/client/v3/sync?timeout=700&since="+first.NextBatch, nil)
	if took := time.Since(started); idle.status != http.StatusOK || took < 700*time.Millisecond || took > 10*time.Second {
		t.Errorf("a /sync with nothing to tell came back after %s: %s", took, idle)
	}
	// Other tests of this homeserver may move the token on.
	if !bytes.HasPrefix(idle.body, []byte(`{"next_batch":"`)) || bytes.Count(idle.body, []byte(`":`)) != 1 {
		t.Errorf("a /sync with nothing to tell is %s", idle)
	}
	done := make(chan answer, 1)
	go func() {
		a, err := alice.try(ctx, http.MethodGet, "/_matrix/client/v3/sync?timeout=30000&since="+first.NextBatch, nil)
		if err != nil {
			a.body = []byte(err.Error())
		}
		done <- a
	}()
	made := alice.at(world.A.URL).do(t, ctx, http.MethodPost, "/_matrix/client/v3/createRoom", []byte(`{"name":"wake up"}`))
	if made.status != http.StatusOK {
		t.Fatalf("no room: %s", made)
	}
	if a := <-done; a.status != http.StatusOK || !bytes.Contains(a.body, []byte("m.room.create")) {
		t.Errorf("the waiting /sync came back with %s", a)
	}
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("the waiting /sync came back only after %s", took)
	}
}
