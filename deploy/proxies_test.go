package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

const (
	refreshPath = "/_matrix/client/v3/user/%40bob%2Fx%3Ab.org/devices/refresh"
	// longest is how long clients let a poll wait at the most, in seconds.
	longest = 100
)

func (s *site) host() string {
	if strings.HasPrefix(s.freshen, "unix:") {
		return "localhost"
	}
	return s.freshen
}

// direct asks freshen without a proxy between.
func (s *site) direct() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if path, ok := strings.CutPrefix(s.freshen, "unix:"); ok {
			network, address = "unix", strings.TrimSuffix(path, "?mode=0666")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
}

// snippet is one of ours with this site's addresses in the place of those that it is written for.
func (s *site) snippet(t *testing.T, path string) string {
	t.Helper()
	text := read(t, path)
	homeserver := strings.TrimPrefix(s.homeserver.URL, "http://")
	socket := strings.TrimSuffix(strings.TrimPrefix(s.freshen, "unix:"), "?mode=0666")
	return strings.NewReplacer("127.0.0.1:8009", s.freshen, "127.0.0.1:8008", homeserver, "/run/freshen/freshen.sock", socket).Replace(text)
}

// address is one for freshen to listen at.
func address(t *testing.T, unix bool) string {
	t.Helper()
	if unix {
		dir := short(t)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return "unix:" + filepath.Join(dir, "freshen.sock") + "?mode=0666"
	}
	port, err := testbed.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// nginx starts one with two of our files, before everything else going to the homeserver.
func (s *site) nginx(t *testing.T, upstream, routes string) (url string) {
	t.Helper()
	lines := s.snippet(t, "nginx/"+upstream) + "\nserver {\nlisten {listen};\n" + s.snippet(t, "nginx/"+routes) +
		"\nlocation / { proxy_pass " + s.homeserver.URL + "; }\n}\n"
	return "http://" + testbedtest.StartNginx(t, t, lines, "http", nil).Addr
}

// caddy starts one with our Caddyfile, before everything else going to the homeserver.
func (s *site) caddy(t *testing.T, snippet string, unix bool) (url string) {
	t.Helper()
	path := testbedtest.Program(t, "caddy", "caddy")
	addr, err := testbed.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := read(t, "caddy/Caddyfile")
	if unix {
		text = strings.ReplaceAll(text, "reverse_proxy 127.0.0.1:8009", "reverse_proxy unix//run/freshen/freshen.sock")
	}
	write(t, filepath.Join(dir, "snippets"), text)
	text = "{\nadmin off\nauto_https off\n}\n" + s.snippet(t, filepath.Join(dir, "snippets")) +
		fmt.Sprintf("\nhttp://%s {\nimport %s\nhandle {\nreverse_proxy %s\n}\n}\n", addr, snippet, strings.TrimPrefix(s.homeserver.URL, "http://"))
	file := filepath.Join(dir, "Caddyfile")
	write(t, file, text)
	process, err := testbed.StartProcess(t.Context(), "caddy", filepath.Join(dir, "log"), path,
		[]string{"run", "--adapter", "caddyfile", "--config", file}, []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	url = "http://" + addr
	if err := process.AwaitReady(t.Context(), http.DefaultClient, url+"/_matrix/client/versions", func(int, []byte) bool { return true }); err != nil {
		t.Fatal(err)
	}
	return url
}

// What administrators copy from us must do with the real programs what freshen needs: all that is ours comes to it, paths
// arrive as they were sent, nothing waits in a buffer, and when freshen is down nobody's /sync is.
func TestReverseProxies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		unix  bool
		all   bool // of the client-server API comes to freshen
		start func(s *site, t *testing.T) (url string)
	}{
		"nginx, all":         {false, true, func(s *site, t *testing.T) string { return s.nginx(t, "upstream.conf", "freshen.conf") }},
		"nginx, minimal":     {false, false, func(s *site, t *testing.T) string { return s.nginx(t, "upstream.conf", "freshen-minimal.conf") }},
		"nginx, unix socket": {true, true, func(s *site, t *testing.T) string { return s.nginx(t, "upstream-unix.conf", "freshen.conf") }},
		"caddy, all":         {false, true, func(s *site, t *testing.T) string { return s.caddy(t, "freshen", false) }},
		"caddy, minimal":     {false, false, func(s *site, t *testing.T) string { return s.caddy(t, "freshen-minimal", false) }},
		"caddy, unix socket": {true, true, func(s *site, t *testing.T) string { return s.caddy(t, "freshen", true) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, address(t, c.unix))
			url := c.start(s, t)
			s.routes(t, url, c.all)
			s.paths(t, url)
			s.streams(t, url)
			if c.all { // else it goes past freshen, and our snippets
				s.uploads(t, url)
			}
			s.goesPast(t, url)
		})
	}
}

// routes looks whether what is freshen's comes to it. Only a request that came through it has two hops.
func (s *site) routes(t *testing.T, url string, all bool) {
	t.Helper()
	if status, header := get(t, url, refreshPath); status != http.StatusMethodNotAllowed || header.Get("X-Homeserver") != "" {
		t.Errorf("GET of the refresh route is answered with %d %v, not by freshen", status, header)
	}
	for _, path := range []string{
		"/_matrix/client/r0/user/@bob:b.org/devices/refresh", "/_matrix/client/unstable/org.matrix.msc2638/user/@bob:b.org/devices/refresh",
	} {
		if status, _ := get(t, url, path); status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s is answered with %d, not by freshen", path, status)
		}
	}
	if status, header := get(t, url, "/_matrix/unstable/org.matrix.msc2638/user/@bob:b.org/devices"); status != http.StatusUnauthorized || header.Get("X-Homeserver") != "" {
		t.Errorf("the route that the proposal names is answered with %d", status)
	}
	response := do(t, http.MethodGet, url, "/_matrix/client/versions", nil)
	var versions struct {
		Unstable map[string]bool `json:"unstable_features"`
	}
	if err := json.NewDecoder(response.Body).Decode(&versions); err != nil || !versions.Unstable["org.matrix.msc2638"] {
		t.Errorf("/versions says %v %v", versions, err)
	}
	_ = response.Body.Close()
	for _, path := range []string{
		"/_matrix/client/v3/sync?timeout=0", "/_matrix/client/r0/sync", "/_matrix/client/v4/sync", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
		"/_matrix/client/v3/keys/query", "/_matrix/client/unstable/keys/query", "/_matrix/client/r0/keys/changes?from=a",
	} {
		if got := s.arrives(t, url, path); !strings.Contains(got.forwarded, ", ") && !s.onSocket() || got.uri != path {
			t.Errorf("%s did not come through freshen: %+v", path, got)
		}
	}
	if got := s.arrives(t, url, "/_matrix/client/v3/profile/@bob:b.org"); !s.onSocket() && strings.Contains(got.forwarded, ", ") != all {
		t.Errorf("a profile arrives as %+v, want through freshen: %t", got, all)
	}
	if got := s.arrives(t, url, "/_matrix/federation/v1/version"); strings.Contains(got.forwarded, ", ") {
		t.Errorf("federation came through freshen: %+v", got)
	}
	if got := s.arrives(t, url, "/_matrix/client/v3/sync"); !strings.HasPrefix(got.forwarded, "127.0.0.1") || strings.Contains(got.forwarded, "203.0.113.9") ||
		got.proto != "http" || got.host == "" || !strings.HasPrefix(got.host, "127.0.0.1") {
		t.Errorf("the homeserver is told of the client %+v", got)
	}
}

func (s *site) onSocket() bool { return strings.HasPrefix(s.freshen, "unix:") }

// arrives asks for a path and returns what the homeserver got.
func (s *site) arrives(t *testing.T, url, path string) arrival {
	t.Helper()
	if status, _ := get(t, url, path); status != http.StatusOK {
		t.Fatalf("%s is answered with %d", path, status)
	}
	return <-s.arrivals
}

// paths looks whether IDs that hold what proxies like to tidy arrive as they were sent.
func (s *site) paths(t *testing.T, url string) {
	t.Helper()
	for _, path := range []string{
		"/_matrix/client/v3/profile/%40bob%2Fx%3Ab.org", "/_matrix/client/v3/profile/@bob%25x:b.org", "/_matrix/client/v3/rooms/%21a%3Ab.org/state/m.room.name/",
		"/_matrix/client/v3/profile/@a+b=%2b%3d:b.org?x=%2F%20+&y", "/_matrix/client/v3/rooms/!a:b/state/x/%C3%A4%23", "/_matrix/client/v3/rooms/!a:b/state//x",
	} {
		if got := s.arrives(t, url, path); got.uri != path {
			t.Errorf("%s was sent, and %s arrived", path, got.uri)
		}
	}
}

// streams looks whether what the homeserver has said is heard before it says more.
func (s *site) streams(t *testing.T, url string) {
	t.Helper()
	response := do(t, http.MethodGet, url, "/_matrix/client/v3/sync?stream&timeout=100000", nil)
	defer response.Body.Close()
	begun := make([]byte, len(`{"next_batch"`))
	if _, err := io.ReadFull(response.Body, begun); err != nil {
		t.Errorf("the beginning of a long answer did not come: %v", err)
	}
	s.release <- struct{}{}
	if rest, err := io.ReadAll(response.Body); err != nil || string(rest) != `:"s1"}` {
		t.Errorf("the rest is %q %v", rest, err)
	}
}

// uploads looks whether a file as large as people send passes whole.
func (s *site) uploads(t *testing.T, url string) {
	t.Helper()
	const size = 40 << 20
	response := do(t, http.MethodPost, url, "/_matrix/client/v1/media/upload", io.LimitReader(zeros{}, size))
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("a large upload is answered with %d", response.StatusCode)
	}
	if got := <-s.arrivals; got.length != size {
		t.Errorf("%d bytes were sent, and %d arrived", size, got.length)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// goesPast looks what becomes of clients while freshen is down, and after.
func (s *site) goesPast(t *testing.T, url string) {
	t.Helper()
	s.stop(t)
	ask := func(method, path string, body io.Reader, want int) {
		response := do(t, method, url, path, body)
		_ = response.Body.Close()
		if response.StatusCode != want || (response.Header.Get("X-Homeserver") != "") != (want == http.StatusOK) {
			t.Errorf("while freshen is down, %s %s is answered with %d %v", method, path, response.StatusCode, response.Header)
		}
	}
	for _, path := range []string{"/_matrix/client/v3/sync?timeout=0", "/_matrix/client/versions", "/_matrix/client/v3/sync"} {
		ask(http.MethodGet, path, nil, http.StatusOK)
	}
	for _, path := range []string{"/_matrix/client/v3/keys/query", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"} {
		want := http.StatusOK
		if strings.Contains(t.Name(), "caddy") {
			want = http.StatusBadGateway // it cannot send a body twice
		}
		ask(http.MethodPost, path, strings.NewReader("{}"), want)
	}
	ask(http.MethodGet, "/_matrix/client/v3/sync", nil, http.StatusOK)
	ask(http.MethodPost, refreshPath, strings.NewReader("{}"), http.StatusBadGateway)
	s.start(t)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		response := do(t, http.MethodGet, url, "/_matrix/client/versions", nil)
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err == nil && strings.Contains(string(body), "org.matrix.msc2638") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("freshen is back, and clients go on past it: %s", body)
		}
	}
}

// No time limit may cut a poll that waits as long as clients let it. Where nginx has a default that would, the snippets set
// another; Caddy has none, and the snippets give it none.
func TestNoTimeLimitCutsAPoll(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"nginx/freshen.conf", "nginx/freshen-minimal.conf"} {
		text := read(t, path)
		limits := regexp.MustCompile(`(?m)^\s*proxy_read_timeout (\d+)s;$`).FindAllStringSubmatch(text, -1)
		if passes := strings.Count(text, "proxy_pass "); len(limits) != passes || strings.Count(text, "proxy_buffering off;") != passes {
			t.Errorf("%s: %d places pass on, and %d have a time limit", path, passes, len(limits))
		}
		for _, limit := range limits {
			if seconds, err := strconv.Atoi(limit[1]); err != nil || seconds <= longest {
				t.Errorf("%s cuts polls after %s s", path, limit[1])
			}
		}
	}
	if limit := regexp.MustCompile(`(?m)^\s*[^#\n]*(read_timeout|write_timeout|response_header_timeout|stream_timeout).*`).FindString(read(t, "caddy/Caddyfile")); limit != "" {
		t.Errorf("the Caddyfile has a time limit: %s", limit)
	}
}
