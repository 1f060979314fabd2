package clientapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"freshen"
	"freshen/internal/clientapi"
	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"

	"maunium.net/go/mautrix/id"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// Clients know the endpoint by any of these names; one that is missing is a button that does nothing.
func TestRoutes(t *testing.T) {
	w := setup(t)
	for _, route := range []struct{ method, target string }{
		{http.MethodPost, bobRoute},
		{http.MethodPost, "/_matrix/client/r0/user/" + bob + suffix},
		{http.MethodPost, "/_matrix/client/unstable/org.matrix.msc2638/user/" + bob + suffix},
		{http.MethodGet, "/_matrix/unstable/org.matrix.msc2638/user/" + bob + "/devices"},
	} {
		got := w.do(route.method, route.target, "", asAlice)
		if got.status != http.StatusAccepted || got.body != "{}" || got.header.Get("Content-Length") != "2" {
			t.Errorf("%s %s: %d %q", route.method, route.target, got.status, got.body)
		}
	}
	want := call{freshen.Requester{UserID: "@alice:a.example", DeviceID: "PHONE"}, bob}
	if calls := w.calls(); len(calls) != 4 || calls[0] != want || calls[3] != want {
		t.Errorf("the engine was asked %+v", calls)
	}
	if n := w.homeserver.Calls(hstest.PathWhoAmI); n != 1 {
		t.Errorf("whoami was asked %d times within a minute", n)
	}
}

// A hopeless method costs the homeserver nothing, and a browser's preflight must pass without a token.
func TestMethods(t *testing.T) {
	w := setup(t)
	getRoute := "/_matrix/unstable/org.matrix.msc2638/user/" + bob + "/devices"
	for _, test := range []struct{ method, target, allow string }{
		{http.MethodGet, bobRoute, "POST, OPTIONS"},
		{http.MethodHead, bobRoute, "POST, OPTIONS"},
		{http.MethodPut, bobRoute, "POST, OPTIONS"},
		{http.MethodDelete, bobRoute, "POST, OPTIONS"},
		{"BREW", bobRoute, "POST, OPTIONS"},
		{http.MethodPost, getRoute, "GET, OPTIONS"},
	} {
		got := w.do(test.method, test.target, "", asAlice)
		if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != test.allow {
			t.Errorf("%s %s: %d, Allow %q", test.method, test.target, got.status, got.header.Get("Allow"))
		}
		if test.method != http.MethodHead && got.errcode() != "M_UNRECOGNIZED" {
			t.Errorf("%s %s: %s", test.method, test.target, got.body)
		}
	}
	for _, target := range []string{bobRoute, getRoute, v3 + "nobody" + suffix} {
		got := w.do(http.MethodOptions, target, "", map[string]string{
			"Origin":                         "https://app.example",
			"Access-Control-Request-Method":  "POST",
			"Access-Control-Request-Headers": "authorization,content-type",
		})
		if got.status != http.StatusNoContent || got.body != "" {
			t.Errorf("preflight of %s: %d %q", target, got.status, got.body)
		}
	}
	if len(w.calls()) > 0 || w.homeserver.Calls(hstest.PathWhoAmI) > 0 {
		t.Error("somebody was asked")
	}
}

// Who may not refresh hears so from their own homeserver, in its words, or their client does the wrong thing.
func TestWhoMayNot(t *testing.T) {
	const soft = `{"errcode":"M_UNKNOWN_TOKEN","error":"Soft logged out","soft_logout":true}`
	refuse := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, test := range map[string]struct {
		whoAmI  http.HandlerFunc
		token   string
		status  int
		errcode string
		body    string // relayed byte for byte
	}{
		"no token":         {nil, "", 401, "M_MISSING_TOKEN", ""},
		"bad token":        {nil, "wrong", 401, "M_UNKNOWN_TOKEN", `{"errcode":"M_UNKNOWN_TOKEN","error":"Unknown access token"}`},
		"guest":            {nil, "guest", 403, "M_GUEST_ACCESS_FORBIDDEN", ""},
		"soft logout":      {refuse(401, soft), "x", 401, "M_UNKNOWN_TOKEN", soft},
		"locked":           {refuse(401, `{"errcode":"M_USER_LOCKED","error":"x","soft_logout":true}`), "x", 401, "M_USER_LOCKED", `{"errcode":"M_USER_LOCKED","error":"x","soft_logout":true}`},
		"forbidden":        {refuse(403, `{"errcode":"M_FORBIDDEN","error":"x"}`), "x", 403, "M_FORBIDDEN", `{"errcode":"M_FORBIDDEN","error":"x"}`},
		"unknown device":   {refuse(400, `{"errcode":"M_UNKNOWN_DEVICE","error":"x"}`), "x", 400, "M_UNKNOWN_DEVICE", `{"errcode":"M_UNKNOWN_DEVICE","error":"x"}`},
		"limited":          {refuse(429, `{"errcode":"M_LIMIT_EXCEEDED","error":"x"}`), "x", 429, "M_LIMIT_EXCEEDED", `{"errcode":"M_LIMIT_EXCEEDED","error":"x"}`},
		"no whoami":        {refuse(404, `{"errcode":"M_UNRECOGNIZED","error":"x"}`), "x", 502, "M_UNKNOWN", ""},
		"401 HTML":         {refuse(401, "<html>"), "x", 502, "M_UNKNOWN", ""},
		"HTML":             {refuse(200, "<html>welcome</html>"), "x", 502, "M_UNKNOWN", ""},
		"nobody":           {refuse(200, `{"user_id":"@:a.example"}`), "x", 502, "M_UNKNOWN", ""},
		"homeserver fails": {refuse(500, `{"errcode":"M_UNKNOWN_TOKEN","error":"x"}`), "x", 502, "M_UNKNOWN", ""},
	} {
		for place, target := range map[string]string{"header": bobRoute, "query": bobRoute + "?access_token=" + test.token, "bad ID too": v3 + "x" + suffix} {
			t.Run(name+"/"+place, func(t *testing.T) {
				w := setup(t)
				if test.whoAmI != nil {
					w.homeserver.HandleFunc(hstest.PathWhoAmI, test.whoAmI)
				}
				header := map[string]string{}
				if test.token != "" && place != "query" {
					header["Authorization"] = "Bearer " + test.token
				}
				got := w.do(http.MethodPost, target, "not json", header)
				if got.status != test.status || got.errcode() != test.errcode {
					t.Errorf("%d %s, want %d %s", got.status, got.body, test.status, test.errcode)
				}
				if test.body != "" && got.body != test.body {
					t.Errorf("relayed %s", got.body)
				}
				if test.whoAmI != nil && test.body != "" && got.header.Get("Retry-After") != "7" {
					t.Errorf("Retry-After is %q", got.header.Get("Retry-After"))
				}
				if len(w.calls()) > 0 {
					t.Error("the engine was asked all the same")
				}
				if test.token == "" && w.homeserver.Calls(hstest.PathWhoAmI) > 0 {
					t.Error("the homeserver was asked about no token")
				}
				if logged := w.log.String(); (test.status == 502) != (logged != "") || contains(logged, "token=x") {
					t.Errorf("logged %q", logged)
				}
			})
		}
	}
}

// A client behind ?access_token= or an application service must be able to refresh, too.
func TestWhoMay(t *testing.T) {
	w := setup(t)
	w.homeserver.AddAppservice("bridge", "@bot:a.example", "@_x:a.example")
	for target, want := range map[string]freshen.Requester{
		bobRoute + "?access_token=alice":                                             {UserID: "@alice:a.example", DeviceID: "PHONE"},
		bobRoute + "?access_token=bridge":                                            {UserID: "@bot:a.example"},
		bobRoute + "?access_token=bridge&user_id=%40_x%3Aa.example&device_id=DEVICE": {UserID: "@_x:a.example", DeviceID: "DEVICE"},
	} {
		if got := w.do(http.MethodPost, target, "", nil); got.status != http.StatusAccepted {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
		calls := w.calls()
		if got := calls[len(calls)-1].who; got != want {
			t.Errorf("%s is %+v", target, got)
		}
	}
}

// Historical IDs are real people; an ID that hurts clients must never come further than here.
func TestUserIDs(t *testing.T) {
	w := setup(t)
	long := "@" + strings.Repeat("x", 255-len("@:b.example")) + ":b.example"
	for segment, want := range map[string]id.UserID{
		"@bob:b.example":                     bob,
		"%40bob%3Ab.example":                 bob,
		"%40bob%3ab.example":                 bob,
		"@foo/bar:b.example":                 "@foo/bar:b.example",
		"@foo%2Fbar:b.example":               "@foo/bar:b.example",
		"%40foo/bar%3Ab.example":             "@foo/bar:b.example",
		"@/devices/refresh:b.example":        "@/devices/refresh:b.example",
		"@..:b.example":                      "@..:b.example",
		"@a//b/../c:b.example":               "@a//b/../c:b.example",
		"@a+b=c:b.example":                   "@a+b=c:b.example",
		"@a%2Bb%3Dc:b.example":               "@a+b=c:b.example",
		"@BoB:B.example":                     "@BoB:B.example",
		"@bob:b.example:8448":                "@bob:b.example:8448",
		"@bob:127.0.0.1:8448":                "@bob:127.0.0.1:8448",
		"@bob:[::1]:8448":                    "@bob:[::1]:8448",
		"@%2541:b.example":                   "@%41:b.example",
		"@a%3Fb%23c:b.example":               "@a?b#c:b.example",
		strings.Replace(long, "@", "%40", 1): id.UserID(long),
	} {
		if got := w.post(v3 + segment + suffix); got.status != http.StatusAccepted {
			t.Errorf("%s: %d %s", segment, got.status, got.body)
			continue
		}
		calls := w.calls()
		if got := calls[len(calls)-1].target; got != want {
			t.Errorf("%s became %q", segment, got)
		}
	}
	before := len(w.calls())
	for _, segment := range []string{
		"", "@", "bob", "@bob", "@bob:", "@:b.example", "!room:b.example", long + "x", "%00", "@%00:b.example", "@a%0Ab:b.example",
		"@a%20b:b.example", "@a%7F:b.example", "@%C3%BC:b.example", "@%FF:b.example", "@bob:b_example", "@bob:b.example:0",
		"@bob:b.example:99999", "@bob:b.example:x", "@bob:", "..", "/", "//", "@bob%3Ab.example%2Fx",
	} {
		if got := w.post(v3 + segment + suffix); got.status != http.StatusBadRequest || got.errcode() != "M_INVALID_PARAM" {
			t.Errorf("%q: %d %s", segment, got.status, got.body)
		}
	}
	if len(w.calls()) != before {
		t.Error("the engine was asked for no user")
	}
}

// Routes that only look like freshen's belong to the homeserver: taking one would break account data or tags.
func TestMatch(t *testing.T) {
	handler := clientapi.New(nil, nil, nil)
	for target, want := range map[string]bool{
		bobRoute:                                           true,
		v3 + suffix:                                        true, // an empty ID, refused
		v3 + "x" + suffix + "?a=b":                         true,
		v3 + bob + "/devices":                              false,
		v3 + bob + suffix + "/":                            false,
		v3 + "devices/refresh":                             false,
		v3 + bob + "/devices/refreshed":                    false,
		v3 + bob + "/account_data" + suffix:                false,
		v3 + "%40bob%3ab.example/rooms/!r:x/tags" + suffix: false,
		"/_matrix/client/v1/user/" + bob + suffix:          false,
		"/_matrix/client/api/v1/user/" + bob + suffix:      false,
		"//_matrix/client/v3/user/" + bob + suffix:         false,
		"/x/.." + bobRoute:                                 false,
		"/_matrix/client/unstable/org.matrix.msc2638/user/" + bob + "/devices": false,
		"/_matrix/unstable/org.matrix.msc2638/user/" + bob + "/devices":        true,
		"/_matrix/client/v3/sync": false,
	} {
		if got := handler.Match(httptest.NewRequest(http.MethodPost, target, nil)); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
	w := setup(t)
	if got := w.post("/_matrix/client/v3/sync"); got.status != http.StatusNotFound || got.errcode() != "M_UNRECOGNIZED" {
		t.Errorf("another's route: %d %s", got.status, got.body)
	}
}

// Clients differ in what they send along; nothing of it may reach further, nor fill our memory.
func TestBodies(t *testing.T) {
	w := setup(t)
	for name, test := range map[string]struct {
		body    string
		status  int
		errcode string
	}{
		"empty":     {"", 202, ""},
		"object":    {`{}`, 202, ""},
		"spaces":    {"\r\n {\"a\": [1]} \n", 202, ""},
		"only room": {" \n", 202, ""},
		"largest":   {`{"a":"` + strings.Repeat("x", 64<<10-8) + `"}`, 202, ""},
		"too large": {`{"a":"` + strings.Repeat("x", 64<<10-7) + `"}`, 413, "M_TOO_LARGE"},
		"huge":      {strings.Repeat("{", 128<<10), 413, "M_TOO_LARGE"},
		"form":      {"a=b", 400, "M_NOT_JSON"},
		"half":      {`{"a":`, 400, "M_NOT_JSON"},
		"two":       {`{}{}`, 400, "M_NOT_JSON"},
		"deep":      {strings.Repeat(`{"a":`, 12000) + "1", 400, "M_NOT_JSON"},
		"binary":    {"\x00\xff", 400, "M_NOT_JSON"},
		"array":     {`[]`, 400, "M_BAD_JSON"},
		"null":      {`null`, 400, "M_BAD_JSON"},
		"string":    {`"x"`, 400, "M_BAD_JSON"},
		"number":    {`7`, 400, "M_BAD_JSON"},
	} {
		before := len(w.calls())
		got := w.do(http.MethodPost, bobRoute, test.body, asAlice)
		if got.status != test.status || got.errcode() != test.errcode {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if asked := len(w.calls()) > before; asked != (test.status == 202) {
			t.Errorf("%s: engine asked: %v", name, asked)
		}
	}
}

type failingBody struct{ err error }

func (b failingBody) Read([]byte) (int, error) { return 0, b.err }

// A client on a bad network must not hold a goroutine for ever, and gets an answer if it can still hear one.
func TestBodiesThatDoNotArrive(t *testing.T) {
	server := hstest.New(t)
	server.AddUser("alice", "@alice:a.example", "PHONE")
	client := homeserver.New(server.URL(), nil)
	defer client.CloseIdleConnections()
	handler := clientapi.New(client, nil, slog.New(slog.DiscardHandler))
	for want, err := range map[int]error{
		http.StatusRequestTimeout: fmt.Errorf("read: %w", os.ErrDeadlineExceeded),
		http.StatusBadRequest:     io.ErrUnexpectedEOF,
	} {
		r := httptest.NewRequest(http.MethodPost, bobRoute, failingBody{err})
		r.Header.Set("Authorization", "Bearer alice")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
}

// While the homeserver is away a client must hear so, and not that its user is logged out.
func TestHomeserverAway(t *testing.T) {
	check := func(t *testing.T, w *world) {
		t.Helper()
		got := w.post(bobRoute + "?access_token=sekrit")
		if got.status != http.StatusBadGateway || got.errcode() != "M_UNKNOWN" {
			t.Errorf("%d %s", got.status, got.body)
		}
		if logged := w.log.String(); logged == "" || contains(logged, "sekrit") || contains(logged, "alice") {
			t.Errorf("logged %q", logged)
		}
	}
	t.Run("down", func(t *testing.T) {
		w := setup(t)
		w.homeserver.Close()
		check(t, w)
	})
	t.Run("hangs up", func(t *testing.T) {
		w := setup(t)
		w.homeserver.HandleFunc(hstest.PathWhoAmI, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		check(t, w)
	})
	t.Run("hangs", func(t *testing.T) {
		transport := &http.Transport{ResponseHeaderTimeout: 20 * time.Millisecond}
		w := setupWith(t, transport)
		w.homeserver.HandleFunc(hstest.PathWhoAmI, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		check(t, w)
	})
	t.Run("comes back", func(t *testing.T) {
		w := setup(t)
		w.homeserver.HandleFunc(hstest.PathWhoAmI, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		check(t, w)
		w.homeserver.Handle(hstest.PathWhoAmI, nil)
		if got := w.post(bobRoute); got.status != http.StatusAccepted {
			t.Errorf("afterwards: %d %s", got.status, got.body)
		}
	})
}

// A user with five clients open asks five times at once: the homeserver is asked once.
func TestConcurrentCallersShareWhoAmI(t *testing.T) {
	w := setup(t)
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	w.homeserver.HandleFunc(hstest.PathWhoAmI, func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"user_id": "@alice:a.example"})
	})
	var callers sync.WaitGroup
	for range 5 {
		callers.Go(func() {
			if got := w.post(bobRoute); got.status != http.StatusAccepted {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
	<-arrived
	close(release)
	callers.Wait()
	if n := w.homeserver.Calls(hstest.PathWhoAmI); n != 1 {
		t.Errorf("whoami was asked %d times", n)
	}
	if n := len(w.calls()); n != 5 {
		t.Errorf("the engine was asked %d times", n)
	}
}

// A mistake in one request is answered and told to the log; the next request is served.
func TestPanics(t *testing.T) {
	w := setup(t)
	w.does(func(context.Context) error { panic("oops") })
	got := w.post(bobRoute)
	if got.status != http.StatusInternalServerError || got.errcode() != "M_UNKNOWN" || contains(got.body, "oops") {
		t.Errorf("%d %s", got.status, got.body)
	}
	if !contains(w.log.String(), "oops") {
		t.Errorf("logged %q", w.log)
	}
	w.does(nil)
	if got := w.post(bobRoute); got.status != http.StatusAccepted {
		t.Errorf("afterwards: %d %s", got.status, got.body)
	}
}

// net/http breaks an answer off by this panic; swallowing it would end the answer as if it were whole.
func TestAbortIsPassedOn(t *testing.T) {
	defer func() {
		thrown := recover()
		if err, ok := thrown.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			t.Errorf("recovered %v", thrown)
		}
	}()
	server := hstest.New(t)
	server.AddUser("alice", "@alice:a.example", "PHONE")
	client := homeserver.New(server.URL(), nil)
	defer client.CloseIdleConnections()
	engine := &world{t: t, outcome: func(context.Context) error { panic(http.ErrAbortHandler) }}
	r := httptest.NewRequest(http.MethodPost, bobRoute, nil)
	r.Header.Set("Authorization", "Bearer alice")
	clientapi.New(client, engine, slog.New(slog.DiscardHandler)).ServeHTTP(httptest.NewRecorder(), r)
}

// On shutdown a client must not read success, nor the log a line for each of them.
func TestGivenUp(t *testing.T) {
	w := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.does(func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return context.Cause(ctx)
	})
	client := homeserver.New(w.homeserver.URL(), nil)
	defer client.CloseIdleConnections()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, bobRoute, nil)
	r.Header.Set("Authorization", "Bearer alice")
	got := httptest.NewRecorder()
	clientapi.New(client, w, slog.New(slog.NewTextHandler(w.log, nil))).ServeHTTP(got, r)
	if got.Code != http.StatusServiceUnavailable || w.log.String() != "" {
		t.Errorf("%d %s, logged %q", got.Code, got.Body, w.log)
	}
}

// Whatever a path holds, what reaches the engine is a user ID that no client chokes on, and nothing panics.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		bob, "@foo/bar:b.example", "%40a%3Ab", "@a%2Fb:b.example", "%", "%zz", "@\x00:b", "@ü:b.example", "", "..", "@a:b/devices/refresh",
	} {
		f.Add(seed)
	}
	server := hstest.New(f)
	server.AddUser("alice", "@alice:a.example", "PHONE")
	client := homeserver.New(server.URL(), nil)
	f.Cleanup(client.CloseIdleConnections)
	f.Fuzz(func(t *testing.T, s string) {
		for _, raw := range []string{s, url.PathEscape(s)} {
			engine := &world{t: t}
			handler := clientapi.New(client, engine, slog.New(slog.DiscardHandler))
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header.Set("Authorization", "Bearer alice")
			r.URL.RawPath = v3 + raw + suffix
			path, err := url.PathUnescape(r.URL.RawPath)
			if err != nil {
				path = r.URL.RawPath
			}
			r.URL.Path = path
			matched := handler.Match(r)
			if raw == url.PathEscape(s) && !matched {
				t.Errorf("%q escaped is not matched", s)
			}
			got := httptest.NewRecorder()
			handler.ServeHTTP(got, r)
			_, _, invalid := freshen.ParseUserID(s)
			switch calls := engine.calls(); {
			case len(calls) == 0 && raw == url.PathEscape(s) && invalid == nil:
				t.Errorf("%q was refused with %d %s", s, got.Code, got.Body)
			case len(calls) == 0 && (got.Code < 400 || got.Code >= 500):
				t.Errorf("%q: %d %s", raw, got.Code, got.Body)
			case len(calls) > 0:
				if _, _, err := freshen.ParseUserID(string(calls[0].target)); err != nil {
					t.Errorf("%q reached the engine as %q", raw, calls[0].target)
				}
			}
		}
	})
}
