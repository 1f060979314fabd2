package deploy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
)

const (
	// patience is how long a test waits for what should happen at once.
	patience = time.Minute
	key      = "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n"
)

// binary is freshen, static as it is packaged, and built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "freshen-deploy-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if binary, err = testbed.BuildFreshen(context.Background(), dir, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// short is a folder whose name is short enough for sockets in it.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") //nolint:usetesting // its names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// run runs a program to its end, which must be a success, and returns what it wrote.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// arrival is a request as the homeserver gets it.
type arrival struct {
	uri, host, forwarded, proto string
	length                      int64
}

// site is a homeserver, and freshen before it where the test has one.
type site struct {
	homeserver *httptest.Server
	arrivals   chan arrival
	// release lets an answer that streams go on to its end.
	release chan struct{}

	// freshen is where it listens: host:port, or unix: and a path.
	freshen string
	process *testbed.Process
	dir     string
}

// newSite starts a homeserver that tells what arrives, and freshen before it.
func newSite(t *testing.T, listen string) *site {
	t.Helper()
	s := &site{arrivals: make(chan arrival, 100), release: make(chan struct{}), freshen: listen, dir: t.TempDir()}
	s.homeserver = newHomeserver(t, s)
	s.configure(t, listen)
	t.Cleanup(func() { s.stop(t) })
	s.start(t)
	return s
}

func newHomeserver(t *testing.T, s *site) *httptest.Server {
	t.Helper()
	homeserver := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(homeserver.Close)
	return homeserver
}

// configure writes what freshen goes by.
func (s *site) configure(t *testing.T, listen string) {
	t.Helper()
	write(t, filepath.Join(s.dir, "signing.key"), key)
	write(t, filepath.Join(s.dir, "freshen.yaml"), fmt.Sprintf(`listen: %q
admin: {listen: "127.0.0.1:0"}
homeserver: {name: example.org, url: %q, signing_key: signing.key, kind: generic}
`, listen, s.homeserver.URL))
}

func (s *site) start(t *testing.T) {
	t.Helper()
	process, err := testbed.StartProcess(t.Context(), "freshen", filepath.Join(s.dir, "log"), binary, []string{"serve", "-c", filepath.Join(s.dir, "freshen.yaml")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.process = process
	client := s.direct()
	defer client.CloseIdleConnections()
	if err := process.AwaitReady(t.Context(), client, "http://"+s.host()+"/_matrix/client/versions", func(status int, _ []byte) bool { return status == http.StatusOK }); err != nil {
		t.Fatal(err)
	}
}

func (s *site) stop(t *testing.T) {
	t.Helper()
	if s.process == nil {
		return
	}
	if err := s.process.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	s.process = nil
}

// serve is the homeserver: it says in X-Homeserver that it answered.
func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Homeserver", "yes")
	switch {
	case r.URL.Path == "/_matrix/client/versions":
		_, _ = io.WriteString(w, `{"versions":["v1.1"]}`)
		return
	case strings.Contains(r.URL.RawQuery, "stream"):
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"next_batch":"s1"`)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-s.release:
			_, _ = io.WriteString(w, "}")
		case <-r.Context().Done():
		}
		return
	}
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		n = -1
	}
	select {
	case s.arrivals <- arrival{r.RequestURI, r.Host, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"), n}:
	default: // nobody looks
	}
	_, _ = io.WriteString(w, "{}")
}

// get asks without changing a byte of the path.
func get(t *testing.T, base, path string) (status int, header http.Header) {
	t.Helper()
	response := do(t, http.MethodGet, base, path, nil)
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header
}

func do(t *testing.T, method, base, path string, body io.Reader) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, method, base, body)
	if err != nil {
		t.Fatal(err)
	}
	request.URL.Opaque, request.URL.RawQuery, _ = strings.Cut(path, "?")
	request.Header.Set("X-Forwarded-For", "203.0.113.9") // what a client makes up
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	return response
}
