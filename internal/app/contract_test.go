package app_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/config"
	"freshen/internal/federation/fedtest"
	"freshen/internal/homeserver/hstest"
)

const failureMember = "org.matrix.msc2638.failure"

// Every way in which another server can fail has its row of the contract, and after each of them the next request is
// served. A hostile server's errcode must never be ours: M_UNKNOWN_TOKEN would log the user out.
func TestARemoteThatFails(t *testing.T) {
	w := running(t, func(c *config.Config) { c.Federation.Timeout = patience })
	good := w.remote()
	carefree := good.has("fine", "DEV")
	matrixError := func(status int, header, errcode string) fedtest.Script {
		return fedtest.Answer(status, header, fmt.Sprintf(`{"errcode":%q,"error":"says\u0000 the \u202eremote"}`, errcode))
	}
	list := func(user string) string { return string(deviceList(id.UserID(user), "D")) }
	refusing := w.listen()
	refusingName := refusing.Addr().String()
	_ = refusing.Close()
	plain := w.listen()
	fedtest.ServeRaw(t, plain, func(_ context.Context, conn net.Conn) { _, _ = conn.Write([]byte("HTTP/1.1 400 Bad\r\n\r\n")) })
	selfSigned := w.listen()
	fedtest.ServeScript(t, selfSigned, fedtest.NewCA(t).Issue("127.0.0.1"), fedtest.HangUp)

	for name, c := range map[string]struct {
		script  fedtest.Script
		name    string // in place of script
		status  int
		errcode string
		reason  string
		remote  float64 // the status in the failure
	}{
		"refuses":               {name: refusingName, status: 502, errcode: "M_UNKNOWN", reason: "connect"},
		"speaks no TLS":         {name: plain.Addr().String(), status: 502, errcode: "M_UNKNOWN", reason: "tls"},
		"unknown authority":     {name: selfSigned.Addr().String(), status: 502, errcode: "M_UNKNOWN", reason: "tls"},
		"hangs up":              {script: fedtest.HangUp, status: 502, errcode: "M_UNKNOWN", reason: "connect"},
		"sends HTML":            {script: fedtest.Answer(200, "", "<html>"), status: 502, errcode: "M_UNKNOWN", reason: "bad_response", remote: 200},
		"sends null":            {script: fedtest.Answer(200, "", "null"), status: 502, errcode: "M_UNKNOWN", reason: "bad_response", remote: 200},
		"another user's list":   {script: fedtest.Answer(200, "", list("@eve:e.example")), status: 502, errcode: "M_UNKNOWN", reason: "bad_response", remote: 200},
		"half an answer":        {script: fedtest.Half(list("@bob:x")), status: 502, errcode: "M_UNKNOWN", reason: "connect"},
		"64 MiB":                {script: fedtest.Huge(64 << 20), status: 502, errcode: "M_UNKNOWN", reason: "bad_response", remote: 200},
		"knows no such user":    {script: matrixError(404, "", "M_NOT_FOUND"), status: 404, errcode: "M_NOT_FOUND", reason: "http", remote: 404},
		"404 in HTML":           {script: fedtest.Answer(404, "", "<h1>gone"), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 404},
		"forbids":               {script: matrixError(403, "", "M_FORBIDDEN"), status: 502, errcode: "M_FORBIDDEN", reason: "http", remote: 403},
		"does not know us":      {script: fedtest.Answer(401, "", `{"message":"no"}`), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 401},
		"limits us":             {script: matrixError(429, "Retry-After: 3600", "M_LIMIT_EXCEEDED"), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 429},
		"would log us out":      {script: matrixError(500, "", "M_UNKNOWN_TOKEN"), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 500},
		"401 would log us out":  {script: matrixError(401, "", "M_UNKNOWN_TOKEN"), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 401},
		"would deactivate us":   {script: matrixError(403, "", "M_USER_DEACTIVATED"), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 403},
		"redirects":             {script: fedtest.Answer(302, "Location: https://127.0.0.1:1/", ""), status: 502, errcode: "M_UNKNOWN", reason: "http", remote: 302},
		"does not have the API": {script: matrixError(404, "", "M_UNRECOGNIZED"), status: 502, errcode: "M_UNRECOGNIZED", reason: "http", remote: 404},
	} {
		destination := c.name
		if destination == "" {
			destination = w.scripted(c.script)
		}
		r := w.refresh(aliceToken, id.UserID("@bob:"+destination))
		told := r.json(t)
		failure, _ := told[failureMember].(map[string]any)
		if r.status != c.status || told["errcode"] != c.errcode || failure["reason"] != c.reason || failure["destination"] != destination {
			t.Errorf("%s: %d %s, want %d %s %s", name, r.status, r.body, c.status, c.errcode, c.reason)
			continue
		}
		if sentence, _ := told["error"].(string); !strings.Contains(sentence, "127.0.0.1") || !strings.Contains(sentence, "freshen tries again by itself in ") {
			t.Errorf("%s: the sentence %q does not say who failed and when it is tried again", name, sentence)
		}
		if after, _ := failure["retry_after_ms"].(float64); after <= 0 || name == "limits us" && after < 3_590_000 {
			t.Errorf("%s: retry_after_ms is %v", name, after)
		}
		if status, _ := failure["status"].(float64); status != c.remote {
			t.Errorf("%s: the failure's status is %v, want %v", name, status, c.remote)
		}
		if strings.ContainsAny(r.body, "\x00\u202e") || strings.Contains(r.body, `\u0000`) || strings.Contains(r.body, `\u202e`) {
			t.Errorf("%s: control characters of the remote's pass: %q", name, r.body)
		}
		if r.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: a browser cannot read it", name)
		}
		w.refreshed(aliceToken, carefree)
	}
}

// A server that takes the request and says nothing costs the user no more than the configured time.
func TestARemoteThatHangs(t *testing.T) {
	w := running(t, func(c *config.Config) { c.Federation.Timeout = time.Second })
	name := w.scripted(fedtest.Hang)
	r := w.refresh(aliceToken, id.UserID("@bob:"+name))
	told := r.json(t)
	failure, _ := told[failureMember].(map[string]any)
	if r.status != http.StatusGatewayTimeout || told["errcode"] != "M_UNKNOWN" || failure["reason"] != "timeout" || failure["destination"] != name {
		t.Errorf("%d %s, want 504 M_UNKNOWN timeout", r.status, r.body)
	}
	if sentence, _ := told["error"].(string); !strings.Contains(sentence, name) || !strings.Contains(sentence, "freshen tries again by itself in ") {
		t.Errorf("the sentence %q does not say who failed and when it is tried again", sentence)
	}
}

// Whoever may not ask, or asks for what is nobody, costs no other server a request.
func TestRequestsThatAreRefused(t *testing.T) {
	w := running(t, func(c *config.Config) { c.Federation.DenyServers = []string{"*.denied.example", "127.0.0.9"} })
	r := w.remote()
	bob := r.has("bob", "DEV")
	path := func(user string) string { return "/_matrix/client/v3/user/" + user + "/devices/refresh" }
	for name, c := range map[string]struct {
		method, path, token, body string
		status                    int
		errcode                   string
	}{
		"no token":        {"POST", path(string(bob)), "", "", 401, "M_MISSING_TOKEN"},
		"wrong token":     {"POST", path(string(bob)), "nonsense", "", 401, "M_UNKNOWN_TOKEN"},
		"guest":           {"POST", path(string(bob)), guestToken, "", 403, "M_GUEST_ACCESS_FORBIDDEN"},
		"empty ID":        {"POST", path(""), aliceToken, "", 400, "M_INVALID_PARAM"},
		"no server":       {"POST", path("@bob"), aliceToken, "", 400, "M_INVALID_PARAM"},
		"empty localpart": {"POST", path("@:x.org"), aliceToken, "", 400, "M_INVALID_PARAM"},
		"too long":        {"POST", path("@" + strings.Repeat("b", 255) + ":x.org"), aliceToken, "", 400, "M_INVALID_PARAM"},
		"control":         {"POST", path("@b%00b:x.org"), aliceToken, "", 400, "M_INVALID_PARAM"},
		"not ASCII":       {"POST", path("@b%C3%B6b:x.org"), aliceToken, "", 400, "M_INVALID_PARAM"},
		"body is a list":  {"POST", path(string(bob)), aliceToken, "[]", 400, "M_BAD_JSON"},
		"body is no JSON": {"POST", path(string(bob)), aliceToken, "{", 400, "M_NOT_JSON"},
		"other method":    {"GET", path(string(bob)), aliceToken, "", 405, "M_UNRECOGNIZED"},
		"denied by glob":  {"POST", path("@b:a.denied.example"), aliceToken, "", 403, "M_FORBIDDEN"},
		"denied address":  {"POST", path("@b:127.0.0.9:443"), aliceToken, "", 403, "M_FORBIDDEN"},
	} {
		got := w.do(t.Context(), c.method, c.path, c.token, strings.NewReader(c.body))
		if got.status != c.status || got.json(t)["errcode"] != c.errcode {
			t.Errorf("%s: %d %s, want %d %s", name, got.status, got.body, c.status, c.errcode)
		}
		if strings.HasPrefix(name, "denied") && got.json(t)[failureMember].(map[string]any)["reason"] != "denied" {
			t.Errorf("%s: %s does not say that it is denied", name, got.body)
		}
	}
	if n := r.asked.Load(); n != 0 {
		t.Errorf("%d requests went out for what was refused", n)
	}
	preflight := w.do(t.Context(), http.MethodOptions, path(string(bob)), "", nil)
	if preflight.status >= 300 || preflight.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("preflight: %d %v", preflight.status, preflight.header)
	}
	// The other three routes, an escaped ID, the token in the query.
	odd := r.has("Fo/o+b=r", "DEV")
	escaped := strings.NewReplacer("/", "%2F", ":", "%3a", "@", "%40").Replace(string(odd))
	for _, route := range []string{
		"POST /_matrix/client/r0/user/%s/devices/refresh", "POST /_matrix/client/unstable/org.matrix.msc2638/user/%s/devices/refresh",
		"GET /_matrix/unstable/org.matrix.msc2638/user/%s/devices", "POST /_matrix/client/v3/user/%s/devices/refresh?access_token=" + aliceToken,
	} {
		method, route, _ := strings.Cut(route, " ")
		token := aliceToken
		if strings.Contains(route, "access_token") {
			token = ""
		}
		if got := w.do(t.Context(), method, strings.Replace(route, "%s", escaped, 1), token, nil); got.status != 202 || got.body != "{}" {
			t.Errorf("%s: %d %s", route, got.status, got.body)
		}
	}
	// An empty list and a local user are successes like any other.
	w.refreshed(aliceToken, r.user("nobody"))
	before := r.asked.Load()
	w.refreshed(aliceToken, carol)
	if r.asked.Load() != before {
		t.Error("a local user cost a federation request")
	}
}

// A server in a network that may not be dialled is refused, and nothing is owed to it for ever.
func TestDeniedNetwork(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Federation.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.9.0.0/16")}
	})
	r := w.remote()
	w.start()
	for range 2 {
		got := w.refresh(aliceToken, r.user("bob"))
		if got.status != 403 || got.json(t)["errcode"] != "M_FORBIDDEN" || got.json(t)[failureMember].(map[string]any)["reason"] != "denied" {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if r.asked.Load() != 0 || owed(t, w) != 0 {
		t.Errorf("%d requests went out, %d debts are owed", r.asked.Load(), owed(t, w))
	}
}

// One user, or one server's users together, must not make freshen flood others; each is told when to come back.
func TestLimits(t *testing.T) {
	for name, limit := range map[string]func(*config.Config){
		"per user":        func(c *config.Config) { c.Limits.PerUser = config.Rate{Every: time.Hour, Burst: 2} },
		"per destination": func(c *config.Config) { c.Limits.PerDestination = config.Rate{Every: time.Hour, Burst: 2} },
	} {
		t.Run(name, func(t *testing.T) {
			w := running(t, limit)
			r := w.remote()
			w.refreshed(aliceToken, r.has("a", "D"))
			w.refreshed(aliceToken, r.has("b", "D"))
			got := w.refresh(aliceToken, r.has("c", "D"))
			after, _ := got.json(t)["retry_after_ms"].(float64)
			if got.status != 429 || got.json(t)["errcode"] != "M_LIMIT_EXCEEDED" || after < 3_500_000 || got.header.Get("Retry-After") != "3600" {
				t.Errorf("%d %s %v", got.status, got.body, got.header)
			}
			if r.asked.Load() != 2 {
				t.Errorf("the refused request went out: %d requests", r.asked.Load())
			}
			other := w.remote()
			if name == "per user" {
				w.refreshed(carolToken, other.has("d", "D"))
			} else {
				w.refreshed(aliceToken, other.has("d", "D"))
			}
		})
	}
}

// A site may keep its users from asking for strangers.
func TestSharedRoomsOnly(t *testing.T) {
	for _, mutual := range []hstest.Mutual{hstest.MutualNone, hstest.MutualStable} {
		w := newWorld(t, func(c *config.Config) { c.Limits.SharedRoomsOnly = true })
		w.hs.SetMutual(mutual, 10)
		r := w.remote()
		bob, eve := r.has("bob", "D"), r.has("eve", "D")
		w.hs.SetRoom("!r:x", alice, bob)
		w.start()
		w.refreshed(aliceToken, bob)
		if got := w.refresh(aliceToken, eve); got.status != 403 || got.json(t)["errcode"] != "M_FORBIDDEN" {
			t.Errorf("%d %s", got.status, got.body)
		}
		if r.asked.Load() != 1 {
			t.Errorf("%d requests went out, want the one for Bob", r.asked.Load())
		}
	}
}

// Fifty impatient clients are one request to the other server, and who hangs up takes nothing from the rest.
func TestConcurrentRequestsShareOneFetch(t *testing.T) {
	w := running(t, func(c *config.Config) { c.Cache.Success = time.Minute })
	r := w.remote()
	bob := r.has("bob", "D")
	asked, release := make(chan struct{}, 100), make(chan struct{})
	r.serve(http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
		asked <- struct{}{}
		<-release
		r.hs.ServeHTTP(rw, rq)
	}))
	ctx, hangUp := context.WithCancel(t.Context())
	left := make(chan reply, 1)
	go func() {
		left <- w.do(ctx, http.MethodPost, "/_matrix/client/v3/user/"+string(bob)+"/devices/refresh", carolToken, nil)
	}()
	await(t, asked, "the fetch")
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { w.refreshed(aliceToken, bob) })
	}
	hangUp()
	<-left
	close(release)
	all.Wait()
	if n := r.asked.Load(); n != 1 {
		t.Errorf("%d requests went out, want 1", n)
	}
	if !strings.Contains(w.log.String(), "caller left") {
		t.Error("the log does not say that a caller left")
	}
}

// A database that has gone away costs the refresh, and nothing else.
func TestTheDatabaseIsAway(t *testing.T) {
	w := running(t)
	r := w.remote()
	spoilDatabase(t, w, `DROP TABLE kept_lists`)
	if got := w.refresh(aliceToken, r.has("bob", "D")); got.status != 503 || got.json(t)["errcode"] != "M_UNKNOWN" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := w.exchange(aliceToken, "since=s&timeout=0", idle); got != idle {
		t.Errorf("/sync: %s", got)
	}
}
