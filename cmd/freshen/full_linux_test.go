package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what should come soon.
const patience = time.Minute

// disk is where the database lies, and how there comes to be no space on it, and some again.
type disk struct {
	folder string
	// start makes the command that is full from its start.
	start func(t *testing.T, dir string) *exec.Cmd
	fill  func(t *testing.T, pid int)
	free  func(t *testing.T, pid int)
}

// limited is a process that may make no file any longer, as under a quota; anybody can have that.
func limited(t *testing.T) *disk {
	t.Helper()
	set := func(limit string) func(*testing.T, int) {
		return func(t *testing.T, pid int) {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), "prlimit", "--pid", strconv.Itoa(pid), "--fsize="+limit+":")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("prlimit (of util-linux): %v %s", err, out)
			}
		}
	}
	return &disk{
		folder: t.TempDir(), fill: set("0"), free: set("unlimited"),
		start: func(t *testing.T, dir string) *exec.Cmd {
			t.Helper()
			cmd := command(t, dir, "serve")
			cmd.Args = []string{"sh", "-c", `ulimit -S -f 0 && exec "$0" serve`, cmd.Path}
			shell, err := exec.LookPath("sh")
			if err != nil {
				t.Fatal(err)
			}
			cmd.Path = shell
			return cmd
		},
	}
}

// small is a file system of one MiB; nil where none may be mounted.
func small(t *testing.T) *disk {
	t.Helper()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
			t.Fatal(err)
		}
		return nil
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(folder, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(folder, "filler")
	fill := func(t *testing.T, _ int) {
		t.Helper()
		file, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for err == nil {
			_, err = file.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return &disk{
		folder: folder, fill: fill,
		free: func(t *testing.T, _ int) {
			t.Helper()
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		},
		start: func(t *testing.T, dir string) *exec.Cmd {
			t.Helper()
			fill(t, 0)
			return command(t, dir, "serve")
		},
	}
}

// A full disk takes nothing with it but refreshes, and these come back with the space; what was promised is kept.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(*testing.T) *disk{"quota": limited, "small file system": small} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			where := make(t)
			if where == nil {
				return // not for us; the other way is for everybody
			}
			homeserver := homeserverOf(t)
			dir := configure(t, homeserver, filepath.Join(where.folder, "freshen.db"))

			freshen := start(t, command(t, dir, "serve"))
			freshen.refresh(t, "bob", http.StatusBadGateway, "freshen tries again by itself")
			where.fill(t, freshen.cmd.Process.Pid)
			// What SQLite has made room for already may still take a few.
			freshen.becomes(t, http.StatusServiceUnavailable)
			freshen.refresh(t, "carl", http.StatusServiceUnavailable, "freshen cannot reach its own database")
			freshen.passes(t)
			where.free(t, freshen.cmd.Process.Pid)
			freshen.becomes(t, http.StatusOK)
			freshen.refresh(t, "carl", http.StatusBadGateway, "freshen tries again by itself")
			freshen.signal(t, syscall.SIGKILL)
			freshen.wait(t)

			freshen = start(t, where.start(t, dir))
			freshen.passes(t)
			freshen.refresh(t, "dave", http.StatusServiceUnavailable, "freshen cannot reach its own database")
			where.free(t, freshen.cmd.Process.Pid)
			freshen.becomes(t, http.StatusOK)
			if owed := freshen.logged(t, "device lists are owed from before")["debts"]; owed != 2.0 {
				t.Errorf("%v debts, want the two that were promised", owed)
			}
			freshen.refresh(t, "dave", http.StatusBadGateway, "freshen tries again by itself")
			freshen.signal(t, syscall.SIGTERM)
			if status := freshen.wait(t); status.ExitStatus() != 0 {
				t.Errorf("freshen ended with %v", freshen.cmd.ProcessState)
			}
		})
	}
}

// homeserverOf knows one user and answers everything else with {}.
func homeserverOf(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/account/whoami") {
			_, _ = io.WriteString(w, `{"user_id":"@alice:example.org","device_id":"PHONE"}`)
			return
		}
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// configure writes the configuration of a freshen whose database is at path.
func configure(t *testing.T, homeserver, path string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, dir, "signing.key", "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n")
	write(t, dir, "freshen.yaml", fmt.Sprintf(`listen: 127.0.0.1:0
admin: {listen: "127.0.0.1:0"}
homeserver: {name: example.org, url: %q, signing_key: signing.key, kind: generic}
federation: {allow_networks: [127.0.0.0/8]}
cache: {failure: 1ms}
retry: {first: 1h}
database: %q
log: {format: json}
`, homeserver, path))
	return dir
}

func (s *served) do(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer token")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(read)
}

// refresh asks for a user of a server that is down.
func (s *served) refresh(t *testing.T, localpart string, want int, says string) {
	t.Helper()
	status, body := s.do(t, http.MethodPost, s.url+"/_matrix/client/v3/user/@"+localpart+":127.0.0.1:1/devices/refresh")
	if status != want || !strings.Contains(body, says) {
		t.Errorf("refresh of %s: %d %s, want %d and that %q", localpart, status, body, want, says)
	}
}

// passes checks that what needs no database is served.
func (s *served) passes(t *testing.T) {
	t.Helper()
	for _, url := range []string{s.url + "/_matrix/client/v3/sync", s.url + "/_matrix/client/versions", s.admin + "/health"} {
		if status, body := s.do(t, http.MethodGet, url); status != http.StatusOK {
			t.Errorf("%s: %d %s", url, status, body)
		}
	}
}

// becomes waits until /ready has that status.
func (s *served) becomes(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		status, body := s.do(t, http.MethodGet, s.admin+"/ready")
		if status == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("/ready: %d %s after %v, want %d", status, body, patience, want)
		}
	}
}
