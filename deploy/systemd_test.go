package deploy_test

import (
	"bufio"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// systemd must understand every line of the units, and find the service as locked up as it is meant to be.
func TestUnitsAreAccepted(t *testing.T) {
	t.Parallel()
	analyze := testbedtest.Program(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	for _, name := range []string{"freshen.service", "freshen.socket"} {
		// The program and its manual are where the package puts them, and not on this machine.
		unit := strings.ReplaceAll(read(t, "systemd/"+name), "/usr/bin/freshen", binary)
		write(t, filepath.Join(dir, name), regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(unit, ""))
	}
	cmd := exec.CommandContext(t.Context(), analyze, "verify", filepath.Join(dir, "freshen.service"), filepath.Join(dir, "freshen.socket"))
	if said := run(t, cmd); strings.Contains(said, "freshen") {
		t.Errorf("systemd says of the units:\n%s", said)
	}
	said := run(t, exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--no-pager", filepath.Join(dir, "freshen.service")))
	match := regexp.MustCompile(`Overall exposure level for freshen.service: (\d+\.\d+)`).FindStringSubmatch(said)
	if match == nil {
		t.Fatalf("systemd says of the service:\n%s", said)
	}
	if exposure, err := strconv.ParseFloat(match[1], 64); err != nil || exposure > 1.6 {
		t.Errorf("the service is exposed at a level of %s:\n%s", match[1], said)
	}
}

// A socket that systemd holds loses no request over a restart: who comes meanwhile waits. This is systemd's own program for
// trying it, with the socket unit's settings.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	path := testbedtest.Program(t, "systemd-socket-activate", "systemd")
	unit := read(t, "systemd/freshen.socket")
	if name := setting(t, unit, "ListenStream"); "unix:"+name != "unix:/run/freshen/freshen.sock" {
		t.Errorf("the snippets for nginx and Caddy name another socket than %s", name)
	}
	for _, listen := range []string{"systemd", "fd:" + setting(t, unit, "FileDescriptorName")} {
		socket := filepath.Join(short(t), "freshen.sock")
		s := &site{freshen: "unix:" + socket, dir: t.TempDir(), arrivals: make(chan arrival, 1), release: make(chan struct{})}
		s.homeserver = newHomeserver(t, s)
		s.configure(t, listen)
		process, err := testbed.StartProcess(t.Context(), "systemd-socket-activate", filepath.Join(s.dir, "log"), path, []string{
			"--listen=" + socket, "--fdname=" + setting(t, unit, "FileDescriptorName"), binary, "serve", "-c", filepath.Join(s.dir, "freshen.yaml"),
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := process.Stop(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		client := s.direct()
		t.Cleanup(client.CloseIdleConnections)
		// The first request starts freshen.
		if err := process.AwaitReady(t.Context(), client, "http://localhost/_matrix/client/versions", func(status int, body []byte) bool {
			return status == http.StatusOK && strings.Contains(string(body), "org.matrix.msc2638")
		}); err != nil {
			t.Fatal(err)
		}
		if err := process.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("freshen removed a socket that is systemd's: %v", err)
		}
	}
}

// The Containerfile's last stage is a program, root certificates and an empty folder. With nothing but these it must serve,
// as a user who is nobody.
func TestContainer(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		testbedtest.Require(t, "root, for a root folder of its own", os.ErrPermission)
	}
	static(t, binary)
	m := machine{root: t.TempDir()}
	if err := os.Chmod(m.root, 0o755); err != nil {
		t.Fatal(err)
	}
	stages := strings.Split(read(t, "Containerfile"), "\nFROM ")
	last := stages[len(stages)-1]
	made := map[string]string{"/out/freshen": binary, "/etc/ssl/certs/ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt", "/out/state": ""}
	instructions := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(last))
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), " ")
		if name != "COPY" {
			instructions[name] = rest
			continue
		}
		words := strings.Fields(rest)
		source, target := words[len(words)-2], m.path(words[len(words)-1])
		from, known := made[source]
		if !known || words[0] != "--from=build" {
			t.Fatalf("COPY %s: no stage before makes that", rest)
		}
		if source != "/etc/ssl/certs/ca-certificates.crt" && !strings.Contains(stages[1], source) {
			t.Errorf("COPY %s: the stage before does not make it", rest)
		}
		if from == "" {
			if err := os.MkdirAll(target, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(target, 65532, 65532); err != nil || !strings.Contains(rest, "--chown=65532:65532") {
				t.Fatal(err, rest)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, []byte(read(t, from)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if instructions["USER"] != "65532:65532" || !strings.HasPrefix(last, "scratch\n") {
		t.Errorf("the last stage is %s", last)
	}
	for _, source := range regexp.MustCompile(`(?m)^COPY ([^-].*) \S+$`).FindAllStringSubmatch(stages[1], -1) {
		for name := range strings.FieldsSeq(source[1]) {
			if _, err := os.Stat(filepath.Join("..", name)); err != nil {
				t.Errorf("COPY %s: %v", name, err)
			}
		}
	}
	port, err := testbed.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{freshen: port, dir: m.path("/etc/freshen"), arrivals: make(chan arrival, 1), release: make(chan struct{})}
	s.homeserver = newHomeserver(t, s)
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.configure(t, port)
	for _, name := range []string{"freshen.yaml", "signing.key"} {
		if err := os.Chown(filepath.Join(s.dir, name), 65532, 65532); err != nil {
			t.Fatal(err)
		}
	}
	words := regexp.MustCompile(`"([^"]*)"`)
	var command []string
	for _, word := range words.FindAllStringSubmatch(instructions["ENTRYPOINT"]+instructions["CMD"], -1) {
		command = append(command, word[1])
	}
	cmd := m.command(t, command...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65532, Gid: 65532}
	cmd.Dir, cmd.Env = instructions["WORKDIR"], []string{"FRESHEN_DATABASE=/var/lib/freshen/freshen.db"}
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(log)
	serves := false
	for !serves && said.Scan() {
		serves = strings.Contains(said.Text(), "msg=serving")
		t.Log(said.Text())
	}
	if status, _ := get(t, "http://"+port, "/_matrix/client/versions"); !serves || status != http.StatusOK {
		t.Errorf("it answers %d", status)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for said.Scan() {
		continue
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
