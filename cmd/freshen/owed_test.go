package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"freshen/internal/owed"
)

// withAdmin is configure with an admin address that commands can find.
func withAdmin(t *testing.T, homeserver string) (dir, admin string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin = listener.Addr().String()
	listener.Close()
	dir = configure(t, homeserver, "freshen.db")
	edit(t, filepath.Join(dir, "freshen.yaml"), `admin: {listen: "127.0.0.1:0"}`, `admin: {listen: "`+admin+`"}`)
	return dir, admin
}

func owedList(t *testing.T, dir string) owed.List {
	t.Helper()
	stdout, stderr, status := finish(t, command(t, dir, "owed", "--json"))
	var list owed.List
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || status != 0 || stderr != "" {
		t.Fatalf("owed --json ends with %d (%v) and says:\n%s%s", status, err, stdout, stderr)
	}
	return list
}

// An administrator must see what is owed and be able to end or hasten it, whether freshen runs or not.
func TestOwed(t *testing.T) {
	t.Parallel()
	dir, admin := withAdmin(t, homeserverOf(t))
	_, stderr, status := finish(t, command(t, dir, "owed"))
	if status != 1 || !strings.Contains(stderr, "freshen does not run (nothing listens on "+admin+")") {
		t.Errorf("without a database, owed ends with %d and says %q", status, stderr)
	}
	freshen := start(t, command(t, dir, "serve"))
	for _, user := range []string{"bob", "carl", "dave"} {
		freshen.refresh(t, user, http.StatusBadGateway, "freshen tries again by itself")
	}

	list := owedList(t, dir)
	if list.Debts != 3 || len(list.Destinations) != 1 || list.Truncated {
		t.Fatalf("%+v", list)
	}
	server := list.Destinations[0]
	if server.Name != "127.0.0.1:1" || server.Failures != 1 || server.Reason != "connect" || !strings.Contains(server.Error, "refused the connection") ||
		time.Until(*server.RetryAt) < 30*time.Minute || len(server.Debts) != 3 {
		t.Errorf("%+v", server)
	}
	debt := server.Debts[0]
	if debt.Target != "@bob:127.0.0.1:1" || !debt.NextTry.Equal(*server.RetryAt) || debt.Running ||
		debt.GivenUpAt.Sub(debt.AskedAt) != 7*24*time.Hour || debt.Error == "" {
		t.Errorf("%+v", debt)
	}
	stdout, stderr, status := finish(t, command(t, dir, "owed"))
	for _, part := range []string{"3 device lists are owed.\n", "\n127.0.0.1:1: ", "refused the connection", "failed once since ", "  @carl:127.0.0.1:1  next try in ", "  until "} {
		if !strings.Contains(stdout, part) || status != 0 || stderr != "" {
			t.Errorf("owed ends with %d and lacks %q:\n%s%s", status, part, stdout, stderr)
		}
	}

	does(t, dir, "@bob:127.0.0.1:1: 1 device list dropped\n", "owed", "drop", "@bob:127.0.0.1:1")
	does(t, dir, "127.0.0.1:1: 2 device lists due now\n", "owed", "retry", "127.0.0.1:1")
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if list := owedList(t, dir); list.Debts == 2 && list.Destinations[0].Failures == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the retry that was asked for was not made")
		}
	}

	freshen.signal(t, syscall.SIGTERM)
	freshen.wait(t)
	if list := owedList(t, dir); list.Debts != 2 || list.Destinations[0].Debts[1].Target != "@dave:127.0.0.1:1" {
		t.Errorf("while freshen does not run: %+v", list)
	}
	does(t, dir, "@carl:127.0.0.1:1: 1 device list due now\n", "owed", "retry", "@carl:127.0.0.1:1")
	does(t, dir, "127.0.0.1:1: 2 device lists dropped\n", "owed", "drop", "127.0.0.1:1")
	does(t, dir, "Nothing is owed.\n", "owed")
	if list := owedList(t, dir); list.Debts != 0 || list.Destinations == nil {
		t.Errorf("of nothing: %+v", list)
	}
	for _, args := range [][]string{{"owed", "drop", "127.0.0.1:1"}, {"owed", "retry", "@bob"}, {"owed", "drop", "a b"}} {
		if _, stderr, status := finish(t, command(t, dir, args...)); status != 1 || stderr == "" {
			t.Errorf("%v ends with %d and says %q", args, status, stderr)
		}
	}
}

// does runs a command that must succeed and say just that.
func does(t *testing.T, dir, want string, args ...string) {
	t.Helper()
	if stdout, stderr, status := finish(t, command(t, dir, args...)); status != 0 || stdout != want || stderr != "" {
		t.Errorf("%v ends with %d and says:\n%s%s\nwant:\n%s", args, status, stdout, stderr, want)
	}
}

// What is owed is the operators' business: not the public's, nor that of a page which an administrator has open.
func TestOwedIsNotPublic(t *testing.T) {
	t.Parallel()
	freshen := start(t, command(t, configure(t, homeserverOf(t), "freshen.db"), "serve"))
	freshen.refresh(t, "bob", http.StatusBadGateway, "freshen tries again by itself")
	for _, path := range []string{"/owed", "/owed/drop"} {
		if status, body := freshen.do(t, http.MethodGet, freshen.url+path); status != http.StatusOK || body != "{}" {
			t.Errorf("%s on the public listener is not the homeserver's: %d %s", path, status, body)
		}
	}
	for name, edit := range map[string]func(*http.Request){
		"another site":   func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"another origin": func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"a form":         func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") },
		"nobody":         func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{}`)) },
		"two": func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(`{"target":"@bob:b.org","server":"b.org"}`))
		},
		"no user ID":      func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"target":"b.org"}`)) },
		"GET is no order": func(r *http.Request) { r.Method = http.MethodGet },
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, freshen.admin+"/owed/drop", strings.NewReader(`{"server":"127.0.0.1:1"}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		edit(request)
		request.ContentLength = -1
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode < 400 || response.StatusCode > 499 {
			t.Errorf("%s: %s", name, response.Status)
		}
	}
	if status, body := freshen.do(t, http.MethodGet, freshen.admin+"/owed"); status != http.StatusOK || !strings.Contains(body, `"debts":1,`) {
		t.Errorf("what is owed afterwards: %d %s", status, body)
	}
}

// Another program at admin.listen must not be taken for a freshen that owes nothing.
func TestOwedOfAnotherProgram(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	dir, admin := withAdmin(t, other.URL)
	edit(t, filepath.Join(dir, "freshen.yaml"), admin, strings.TrimPrefix(other.URL, "http://"))
	_, stderr, status := finish(t, command(t, dir, "owed"))
	if status != 1 || !strings.Contains(stderr, "answered 404: is it a freshen, and as new as this one?") {
		t.Errorf("owed ends with %d and says %q", status, stderr)
	}
}
