//go:build goolm

package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// site is what a new administrator has: a real Dendrite, a folder that was empty before, the freshen program, and a real
// nginx with TLS before both. Nothing of it is made by the testbed that the commands and the README should bring.
type site struct {
	t       *testing.T
	world   *testbed.World
	program string
	dir     string
	// listen and admin are freshen's, public is nginx's URL.
	listen, admin, public string
	// before is what freshen's commands are started through, such as a shell with limits.
	before []string
}

// newSite makes the folder and has freshen init write the configuration into it. What init cannot know, where this Dendrite listens
// and that the world is on loopback addresses, is put in afterwards, as init says.
func newSite(t *testing.T, world *testbed.World, program string) *site {
	t.Helper()
	s := &site{t: t, world: world, program: program, dir: t.TempDir()}
	for _, address := range []*string{&s.listen, &s.admin} {
		port, err := testbed.FreePort(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		*address = port
	}
	dendrite, err := os.ReadFile(filepath.Join(filepath.Dir(world.A.SigningKeyFile), "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("dendrite.yaml", string(dendrite))
	said := s.run("init", "dendrite.yaml")
	if !strings.Contains(said, "If it is started with --http-bind-address, name that in homeserver.url.") {
		t.Errorf("init does not say what it could not find out:\n%s", said)
	}
	s.set(`  url: .*`, "  url: "+world.A.URL)
	s.set(`listen: "?127.0.0.1:8009"?`, "listen: "+s.listen)
	s.set(`  # listen: 127.0.0.1:9009`, "  listen: "+s.admin)
	s.set(`  # ca_file: .*`, "  ca_file: "+world.CA.File)
	s.set(`  # allow_networks: .*`, "  allow_networks: [127.0.0.0/8]")
	return s
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// set replaces the one line of freshen.yaml that matches.
func (s *site) set(line, by string) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "freshen.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	pattern := regexp.MustCompile("(?m)^" + line + "$")
	if found := len(pattern.FindAll(data, -1)); found != 1 {
		s.t.Fatalf("freshen.yaml has %d lines like %q:\n%s", found, line, data)
	}
	s.write("freshen.yaml", pattern.ReplaceAllLiteralString(string(data), by))
}

// folder makes one in the site's.
func (s *site) folder(name string) (path string) {
	s.t.Helper()
	path = filepath.Join(s.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// asOwner has freshen's commands run as users do who may write only what is theirs to write: root may write everything, and so it
// is taken from it.
func (s *site) asOwner() {
	s.t.Helper()
	if os.Getuid() == 0 {
		s.before = []string{testbedtest.Program(s.t, "setpriv", "util-linux"), "--bounding-set=-dac_override"}
	}
}

// command is freshen in the site's folder.
func (s *site) command(args ...string) *exec.Cmd {
	words := slices.Concat(s.before, []string{s.program}, args)
	cmd := exec.CommandContext(s.t.Context(), words[0], words[1:]...)
	cmd.Dir = s.dir
	return cmd
}

// run is a command that must do, and refuses one that must not; both return what it says.
func (s *site) run(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("freshen %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *site) refuses(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err == nil {
		s.t.Fatalf("freshen %s ends well:\n%s", strings.Join(args, " "), out)
	}
	return string(out)
}

// serve starts freshen serve, which ends with the test.
func (s *site) serve() *testbed.Process {
	s.t.Helper()
	words := slices.Concat(s.before, []string{s.program, "serve", "--config", filepath.Join(s.dir, "freshen.yaml")})
	process, err := testbed.StartProcess(s.t.Context(), "freshen", filepath.Join(s.dir, "log"), words[0], words[1:], nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(process.Kill)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	healthy := func(status int, _ []byte) bool { return status == http.StatusOK }
	if err := process.AwaitReady(s.t.Context(), client, "http://"+s.admin+"/health", healthy); err != nil {
		s.t.Fatal(err)
	}
	return process
}

func (s *site) stop(process *testbed.Process) {
	s.t.Helper()
	if err := process.Stop(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// log is what a freshen that has answered already has logged so far.
func (s *site) log(*testbed.Process) string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

// readmeLines are the lines for nginx that the README gives, which a new administrator copies.
func (s *site) readmeLines() string {
	s.t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		s.t.Fatal(err)
	}
	_, lines, found := strings.Cut(string(readme), "```nginx\n")
	lines, _, ends := strings.Cut(lines, "```")
	if !found || !ends || !strings.Contains(lines, "127.0.0.1:8009") {
		s.t.Fatal("README.md has no lines for nginx with freshen's address in them")
	}
	return strings.ReplaceAll(lines, "127.0.0.1:8009", s.listen)
}

// nginx starts a real one with these lines, and all that they do not take going to the homeserver.
func (s *site) nginx(lines string) {
	s.t.Helper()
	s.nginxUntil(lines, time.Now().Add(24*time.Hour))
}

// nginxUntil is nginx with a certificate that ends then.
func (s *site) nginxUntil(lines string, until time.Time) {
	s.t.Helper()
	certFile, keyFile, err := s.world.CA.IssueUntil("nginx-of-the-site", net.IPv4(127, 0, 0, 1), until)
	if err != nil {
		s.t.Fatal(err)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: s.world.CA.Pool, MinVersion: tls.VersionTLS12, Time: func() time.Time { return until.Add(-time.Minute) }},
	}}
	started := testbedtest.StartNginx(s.t, s.t, fmt.Sprintf(`
	server {
		listen {listen} ssl http2;
		ssl_certificate %s;
		ssl_certificate_key %s;
		%s
		location / { proxy_pass %s; }
	}`, certFile, keyFile, lines, s.world.A.URL), "https", client)
	s.public = "https://" + started.Addr
}

// finding is what doctor says.
type finding struct {
	Lines   []struct{ Check, Status, Text, Fix string }
	Missing string
}

func (f *finding) with(status string) (checks []string) {
	for _, line := range f.Lines {
		if line.Status == status {
			checks = append(checks, line.Check)
		}
	}
	return checks
}

// line is what is said of one check: what was found, and what to do.
func (f *finding) line(check string) string {
	for _, line := range f.Lines {
		if line.Check == check {
			return line.Status + ": " + line.Text + " → " + line.Fix
		}
	}
	return ""
}

// doctor runs freshen doctor twice, once as a person reads it, into the test's log, and once for this program.
func (s *site) doctor() (_ *finding, well bool) {
	s.t.Helper()
	args := []string{"doctor", "--url", s.public, "--server", s.world.B.ServerName}
	shown, err := s.command(args...).CombinedOutput()
	s.t.Logf("%s", shown)
	var report finding
	var out, errs bytes.Buffer
	cmd := s.command(append(args, "--json")...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	again := cmd.Run()
	if decodeErr := json.Unmarshal(out.Bytes(), &report); decodeErr != nil {
		s.t.Fatalf("doctor: %v %v\n%s%s", again, decodeErr, out.Bytes(), errs.Bytes())
	}
	if (err == nil) != (again == nil) {
		s.t.Errorf("doctor ends with %v, and with --json with %v", err, again)
	}
	return &report, again == nil
}
