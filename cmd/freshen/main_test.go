package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"freshen/internal/testbed/testbedtest"
)

// binary is the real program, built once: exit statuses and signals are those of a process.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "freshen-cmd-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "freshen")
		build := exec.CommandContext(context.Background(), "go", "build", "-buildvcs=false", "-trimpath",
			"-ldflags", "-X freshen/internal/app.linkedVersion=v0.0.0-test", "-o", binary, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "freshen does not build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// command is freshen with args, in a folder of its own and without the environment's overrides.
func command(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return cmd
}

// finish runs cmd to its end.
func finish(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	} else if ok {
		return out.String(), errs.String(), exit.ExitCode()
	}
	return out.String(), errs.String(), 0
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Scripts and service managers go by the exit status; people by what stands on the terminal.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"--help", 0, "Usage: freshen <command>", "^$"},
		{"serve --help", 0, "Usage: freshen serve", "^$"},
		{"version", 0, `^freshen v0\.0\.0-test \(go1\.`, "^$"},
		{"", 2, "^$", "expected one of"},
		{"chekc", 2, "^$", `did you mean "check"`},
		{"check --nope", 2, "^$", "unknown flag --nope"},
		{"check surplus", 2, "^$", "unexpected argument surplus"},
		{"check --config", 2, "^$", "--config"},
		{"check", 1, "^$", `^freshen: there is no configuration file, neither \./freshen\.yaml nor /etc/freshen/freshen\.yaml: .*\n$`},
		{"check -c none.yaml", 1, "^$", `^freshen: the configuration file cannot be read: open none\.yaml: no such file or directory\n$`},
		{"serve -c none.yaml", 1, "^$", `cannot be read`},
		{"-c none.yaml check", 1, "^$", `cannot be read`},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			if test.args == "check" {
				if _, err := os.Stat("/etc/freshen/freshen.yaml"); err == nil {
					testbedtest.Require(t, "a machine without /etc/freshen/freshen.yaml, which would be used", errors.New("move it away"))
				}
			}
			stdout, stderr, status := finish(t, command(t, t.TempDir(), strings.Fields(test.args)...))
			if status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			if !regexp.MustCompile(test.stdout).MatchString(stdout) {
				t.Errorf("stdout %q does not match %s", stdout, test.stdout)
			}
			if !regexp.MustCompile(test.stderr).MatchString(stderr) {
				t.Errorf("stderr %q does not match %s", stderr, test.stderr)
			}
		})
	}
}

// Five mistakes must be five lines, from check and from serve alike, and nothing may start.
func TestFiveMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "freshen.yaml", `listen: 8009
homeserver:
  name: example.org
  signing_key: signing.key
  type: synapse
limits:
  per_user: {every: 6, burst: 0}
`)
	want := `freshen.yaml:1: listen: must be host:port, such as 127.0.0.1:8009 or [::1]:8009, is "8009"
freshen.yaml:2: homeserver.url: is required and missing
freshen.yaml:5: homeserver.type: is no key that freshen knows; here may stand name, url, signing_key, kind, synapse, dendrite
freshen.yaml:7: limits.per_user.burst: must be at least 1, is 0
freshen.yaml:7: limits.per_user.every: must be a duration with its unit, such as 30s or 1h30m, is "6"
`
	for _, name := range []string{"check", "serve"} {
		stdout, stderr, status := finish(t, command(t, dir, name))
		if status != 1 || stdout != "" || stderr != want {
			t.Errorf("%s ends with %d and says:\n%s%s\nwant:\n%s", name, status, stdout, stderr, want)
		}
	}
}

// A good file must be said to be good, without the password; one that names files that are not there must not.
func TestCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "signing.key", "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n")
	good := "homeserver: {name: example.org, url: http://127.0.0.1:8008, signing_key: signing.key}\n"
	write(t, dir, "freshen.yaml", good+"federation: {deny_servers: [evil.org]}\n")
	stdout, stderr, status := finish(t, command(t, dir, "check"))
	want := `freshen.yaml: ok
  listen       127.0.0.1:8009 for the reverse proxy, 127.0.0.1:9009 for operators
  homeserver   example.org at http://127.0.0.1:8008 (kind: auto)
  signing key  signing.key
  database     freshen.db
  servers      all, but not evil.org
`
	if status != 0 || stdout != want || stderr != "" {
		t.Errorf("check ends with %d and says:\n%s%s\nwant:\n%s", status, stdout, stderr, want)
	}

	write(t, dir, "empty.pem", "")
	write(t, dir, "bad.yaml", `
homeserver: {name: example.org, url: http://127.0.0.1:8008, signing_key: none.key, kind: dendrite,
  dendrite: {admin_token_file: none.token}}
federation: {ca_file: empty.pem}
database: none/freshen.db
`)
	stdout, stderr, status = finish(t, command(t, dir, "check", "--config", "bad.yaml"))
	want = `bad.yaml:2: homeserver.signing_key: the signing key cannot be read: stat none.key: no such file or directory
bad.yaml:3: homeserver.dendrite.admin_token_file: cannot be read: open none.token: no such file or directory
bad.yaml:4: federation.ca_file: empty.pem holds no certificate in PEM format
bad.yaml:5: database: cannot open none: no such file or directory
`
	if status != 1 || stdout != "" || stderr != want {
		t.Errorf("check ends with %d and says:\n%s%s\nwant:\n%s", status, stdout, stderr, want)
	}

	write(t, dir, "none.token", "two words")
	if _, stderr, _ := finish(t, command(t, dir, "check", "--config", "bad.yaml")); !strings.Contains(stderr, "none.token must hold an access token and nothing else\n") {
		t.Errorf("check says of a file without a token:\n%s", stderr)
	}

	cmd := command(t, dir, "check")
	cmd.Env = append(cmd.Env, "FRESHEN_DATABASE=postgres://u:SECRET@db/freshen")
	stdout, stderr, status = finish(t, cmd)
	if status != 0 || !strings.Contains(stdout, "postgres://u:xxxxx@db/freshen") || strings.Contains(stdout+stderr, "SECRET") {
		t.Errorf("check ends with %d and says:\n%s%s", status, stdout, stderr)
	}
}

// served is a running freshen, and the lines of its log as they come.
type served struct {
	cmd *exec.Cmd
	log *json.Decoder
	url string
	// admin is the operators' port.
	admin string
}

// serve starts freshen before a homeserver and returns when it serves.
func serve(t *testing.T, homeserver string, args ...string) *served {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "signing.key", "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n")
	write(t, dir, "freshen.yaml", fmt.Sprintf(`listen: 127.0.0.1:0
admin: {listen: "127.0.0.1:0"}
homeserver: {name: example.org, url: %q, signing_key: signing.key, kind: generic}
log: {format: json}
`, homeserver))
	return start(t, command(t, dir, append([]string{"serve"}, args...)...))
}

// start runs cmd, which becomes freshen, until it serves.
func start(t *testing.T, cmd *exec.Cmd) *served {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &served{cmd: cmd, log: json.NewDecoder(bufio.NewReader(stderr))}
	serving := s.logged(t, "serving")
	s.url, s.admin = "http://"+serving["listen"].(string), "http://"+serving["admin"].(string)
	return s
}

// logged reads the log up to a line whose message begins so.
func (s *served) logged(t *testing.T, message string) map[string]any {
	t.Helper()
	for {
		var line map[string]any
		if err := s.log.Decode(&line); err != nil {
			t.Fatalf("the log ends before %q: %v", message, err)
		}
		if text, _ := line["msg"].(string); strings.HasPrefix(text, message) {
			return line
		}
	}
}

func (s *served) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// wait reads the log to its end and returns how the process ended.
func (s *served) wait(t *testing.T) syscall.WaitStatus {
	t.Helper()
	var rest map[string]any
	for s.log.Decode(&rest) == nil {
		continue
	}
	_ = s.cmd.Wait()
	return s.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// A service manager's stop must be a success, and running requests must get their answer.
func TestFirstSignalLetsRequestsEnd(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	homeserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "{}")
	}))
	defer homeserver.Close()
	freshen := serve(t, homeserver.URL)
	answered := get(t, freshen.url)
	<-arrived
	freshen.signal(t, syscall.SIGTERM)
	freshen.logged(t, "stopping")
	close(release)
	if got := <-answered; got != "200 {}" {
		t.Errorf("the running request got %s", got)
	}
	if status := freshen.wait(t); !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("freshen ended with %v, want exit status 0", freshen.cmd.ProcessState)
	}
}

// Whoever presses Ctrl-C twice must not wait for a request that hangs.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	homeserver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-release
	}))
	defer homeserver.Close()
	defer close(release)
	freshen := serve(t, homeserver.URL)
	answered := get(t, freshen.url)
	<-arrived
	start := time.Now()
	freshen.signal(t, syscall.SIGINT)
	freshen.logged(t, "stopping")
	freshen.signal(t, syscall.SIGINT)
	if status := freshen.wait(t); !status.Signaled() || status.Signal() != syscall.SIGINT {
		t.Errorf("freshen ended with %v, want by the signal", freshen.cmd.ProcessState)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("freshen ended after %s", took)
	}
	<-answered
}

// get asks for a path that freshen passes on, in the background, and tells the outcome.
func get(t *testing.T, url string) <-chan string {
	t.Helper()
	outcome := make(chan string, 1)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/_matrix/client/v3/capabilities", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			outcome <- err.Error()
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			outcome <- err.Error()
			return
		}
		outcome <- fmt.Sprint(response.StatusCode, " ", string(body))
	}()
	return outcome
}

// A port that is taken must be said, with its address, and be a failure.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	write(t, dir, "signing.key", "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n")
	write(t, dir, "freshen.yaml", "admin: {listen: '127.0.0.1:0'}\nhomeserver: {name: example.org, url: 'http://127.0.0.1:1', signing_key: signing.key, kind: generic}\n")
	cmd := command(t, dir, "serve")
	cmd.Env = append(cmd.Env, "FRESHEN_LISTEN="+taken.Addr().String())
	_, stderr, status := finish(t, cmd)
	if status != 1 || !strings.Contains(stderr, "freshen: cannot start: ") || !strings.Contains(stderr, taken.Addr().String()) {
		t.Errorf("serve ends with %d and says:\n%s", status, stderr)
	}
}

// edit puts one text in the place of another in a file.
func edit(t *testing.T, path, before, after string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), before) {
		t.Fatalf("%s has no %q", path, before)
	}
	write(t, filepath.Dir(path), filepath.Base(path), strings.Replace(string(data), before, after, 1))
}
