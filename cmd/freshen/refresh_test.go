package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
)

const (
	bob     = id.UserID("@bob/x:b.org")
	bobPath = "/_matrix/client/v3/user/@bob%2Fx:b.org/devices/refresh"
)

// site answers the refresh of Bob with status and answer, and knows his devices. It takes one token.
func site(t *testing.T, status int, answer string) *httptest.Server {
	t.Helper()
	p := fedtest.NewPerson(bob)
	keys := fedtest.Object{}
	for i, device := range []id.DeviceID{"LAPTOP", "ODD", "PHONE"} {
		keys[string(device)] = p.DeviceKeys(device, i+1)
	}
	laptop, odd := keys["LAPTOP"].(fedtest.Object), keys["ODD"].(fedtest.Object)
	laptop["unsigned"] = fedtest.Object{"device_display_name": "evil\x1b[2Jname"}
	delete(laptop["signatures"].(fedtest.Object)[string(bob)].(fedtest.Object), "ed25519:"+p.SelfSigning.Name)
	odd["algorithms"] = []string{"changed after it was signed"}
	var list struct {
		Master      json.RawMessage `json:"master_key"`
		SelfSigning json.RawMessage `json:"self_signing_key"`
	}
	if err := json.Unmarshal(p.List(1, 1), &list); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer SECRET":
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"Who are you?"}`)
		case r.Method == http.MethodPost && r.URL.EscapedPath() == bobPath:
			w.WriteHeader(status)
			_, _ = io.WriteString(w, answer)
		case r.URL.Path == "/_matrix/client/v3/keys/query":
			_ = json.NewEncoder(w).Encode(fedtest.Object{
				"device_keys": fedtest.Object{string(bob): keys},
				"master_keys": fedtest.Object{string(bob): list.Master}, "self_signing_keys": fedtest.Object{string(bob): list.SelfSigning},
			})
		default:
			t.Errorf("asked for %s %s", r.Method, r.URL.EscapedPath())
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// refreshOf is the command, with a token from the environment.
func refreshOf(t *testing.T, url string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := command(t, t.TempDir(), append([]string{"refresh", string(bob), "--url", url}, args...)...)
	cmd.Env = append(cmd.Env, "FRESHEN_TOKEN=SECRET")
	return cmd
}

// An administrator who presses the button for a user must see what the user would: whether it worked, and whose devices
// are whose.
func TestRefresh(t *testing.T) {
	t.Parallel()
	server := site(t, http.StatusAccepted, "{}")
	stdout, stderr, status := finish(t, refreshOf(t, server.URL))
	if status != 0 || stderr != "" || strings.Contains(stdout, "\x1b") {
		t.Errorf("refresh ends with %d and says:\n%q%s", status, stdout, stderr)
	}
	finger := fedtest.NewSigner("PHONE", 3).Public()
	for _, part := range []string{
		"The device list of @bob/x:b.org is fresh.\n", "\nDEVICE ", "evil[2Jname\n",
		fmt.Sprintf("\nPHONE   %s %s ", finger[:4], finger[4:8]),
	} {
		if !strings.Contains(stdout, part) {
			t.Errorf("%q is missing in:\n%s", part, stdout)
		}
	}
	for device, standing := range map[string]string{"LAPTOP": "not signed by its owner", "ODD": "unusable: its own signature does not hold", "PHONE": " signed by its owner"} {
		for line := range strings.Lines(stdout) {
			if strings.HasPrefix(line, device) && !strings.Contains(line, standing) {
				t.Errorf("%s is not said to be %s: %s", device, standing, line)
			}
		}
	}
}

func TestRefreshForPrograms(t *testing.T) {
	t.Parallel()
	failure := `{"destination":"b.org","reason":"dns","retry_after_ms":30000}`
	server := site(t, http.StatusBadGateway, `{"errcode":"M_UNKNOWN","error":"The name b.org does not exist.","org.matrix.msc2638.failure":`+failure+`}`)
	stdout, stderr, status := finish(t, refreshOf(t, server.URL, "--json"))
	var got refreshed
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || status != 1 || stderr != "freshen: the device list was not refreshed\n" {
		t.Fatalf("refresh ends with %d (%v) and says:\n%s%s", status, err, stdout, stderr)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, got.Failure); err != nil {
		t.Fatal(err)
	}
	if got.Target != bob || got.Status != 502 || got.ErrCode != "M_UNKNOWN" || compact.String() != failure || !got.CrossSigning || len(got.Devices) != 3 {
		t.Errorf("%+v", got)
	}
	for i, want := range []shownDevice{{ID: "LAPTOP", SignedByItself: true}, {ID: "ODD"}, {ID: "PHONE", SignedByItself: true, SignedByOwner: true}} {
		if d := got.Devices[i]; d.ID != want.ID || d.SignedByItself != want.SignedByItself || d.SignedByOwner != want.SignedByOwner || d.Fingerprint == "" {
			t.Errorf("%+v, want %+v", d, want)
		}
	}
	stdout, _, status = finish(t, refreshOf(t, server.URL))
	if status != 1 || !strings.HasPrefix(stdout, "The name b.org does not exist.\n") {
		t.Errorf("refresh ends with %d and says:\n%s", status, stdout)
	}
}

// The token must come from where no other user of the machine can read it, and never go on to a terminal or a log.
func TestRefreshToken(t *testing.T) {
	t.Parallel()
	server := site(t, http.StatusAccepted, "{}")
	dir := t.TempDir()
	write(t, dir, "token", "SECRET\n")
	write(t, dir, "bad", "WRONG\n")
	write(t, dir, "two", "SECRET SECRET\n")
	for _, test := range []struct {
		args   string
		env    string
		status int
		says   string
	}{
		{"--token-file token", "", 0, "^$"},
		{"--token-file token", "FRESHEN_TOKEN=WRONG", 0, "^$"},
		{"--token-file bad", "", 1, "does not accept the access token (M_UNKNOWN_TOKEN): Who are you?"},
		{"--token-file two", "", 1, "two must hold an access token and nothing else"},
		{"--token-file none", "", 1, "none: no such file"},
		{"", "", 1, "there is no access token: name a file with --token-file, or set FRESHEN_TOKEN"},
	} {
		cmd := command(t, dir, append([]string{"refresh", string(bob), "--url", server.URL}, strings.Fields(test.args)...)...)
		cmd.Env = append(cmd.Env, test.env)
		stdout, stderr, status := finish(t, cmd)
		if status != test.status || (test.says != "^$" && !strings.Contains(stderr, test.says)) || strings.Contains(stdout+stderr, "SECRET") || strings.Contains(stderr, "WRONG") {
			t.Errorf("%s: refresh ends with %d and says %q", test.args, status, stderr)
		}
	}
}

// The whole way: the command, a real freshen, and a homeserver; and what is said where there is no freshen.
func TestRefreshThroughFreshen(t *testing.T) {
	t.Parallel()
	dir, _ := withAdmin(t, homeserverOf(t))
	freshen := start(t, command(t, dir, "serve"))
	cmd := command(t, dir, "refresh", "@bob:127.0.0.1:1", "--url", freshen.url)
	cmd.Env = append(cmd.Env, "FRESHEN_TOKEN=SECRET")
	stdout, stderr, status := finish(t, cmd)
	if status != 1 || !strings.Contains(stdout, "refused the connection") || !strings.Contains(stdout, "freshen tries again by itself in ") ||
		!strings.Contains(stdout, "They have no devices with encryption keys.") || stderr != "freshen: the device list was not refreshed\n" {
		t.Errorf("refresh ends with %d and says:\n%s%s", status, stdout, stderr)
	}

	bare := httptest.NewServer(http.NotFoundHandler())
	defer bare.Close()
	cmd = refreshOf(t, bare.URL)
	if _, stderr, status := finish(t, cmd); status != 1 || !strings.Contains(stderr, "knows no such route (it answered 404): is freshen there") {
		t.Errorf("without freshen it ends with %d and says %q", status, stderr)
	}
	// Without --url it is the freshen of the configuration.
	edit(t, filepath.Join(dir, "freshen.yaml"), "listen: 127.0.0.1:0", "listen: "+strings.TrimPrefix(freshen.url, "http://"))
	cmd = command(t, dir, "refresh", "@bob:127.0.0.1:1")
	cmd.Env = append(cmd.Env, "FRESHEN_TOKEN=SECRET")
	if stdout, stderr, status := finish(t, cmd); status != 1 || !strings.Contains(stdout, "refused the connection") {
		t.Errorf("without --url it ends with %d and says:\n%s%s", status, stdout, stderr)
	}
	if _, stderr, status := finish(t, command(t, dir, "refresh", "bob")); status != 1 || !strings.Contains(stderr, "is no user ID") {
		t.Errorf("of nobody: %d %q", status, stderr)
	}
	freshen.signal(t, syscall.SIGTERM)
	freshen.wait(t)
}
