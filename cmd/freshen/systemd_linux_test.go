package main

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// systemd starts what waits for freshen when it is told that freshen serves, and no earlier; and it must know a reload and
// a stop from a hang.
func TestSystemdIsTold(t *testing.T) {
	t.Parallel()
	folder, err := os.MkdirTemp("", "n") //nolint:usetesting // its names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	socket := filepath.Join(folder, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	told := func() string {
		t.Helper()
		if err := systemd.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		message := make([]byte, 1024)
		n, err := systemd.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		return string(message[:n])
	}

	dir := configure(t, homeserverOf(t), "freshen.db")
	cmd := command(t, dir, "serve")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket)
	freshen := start(t, cmd)
	if got := told(); got != "READY=1" {
		t.Errorf("at the start systemd is told %q", got)
	}
	freshen.passes(t)
	for _, broken := range []bool{false, true} {
		if broken {
			edit(t, filepath.Join(dir, "freshen.yaml"), "retry: {first: 1h}", "retry: {first: never}")
		}
		freshen.signal(t, syscall.SIGHUP)
		if got := told(); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=[1-9]\d*\n$`).MatchString(got) {
			t.Errorf("at a reload (of a broken file: %t) systemd is told %q", broken, got)
		}
		if got := told(); got != "READY=1" {
			t.Errorf("after a reload (of a broken file: %t) systemd is told %q", broken, got)
		}
	}
	freshen.signal(t, syscall.SIGTERM)
	if got := told(); got != "STOPPING=1" {
		t.Errorf("at the end systemd is told %q", got)
	}
	if status := freshen.wait(t); status.ExitStatus() != 0 {
		t.Errorf("freshen ended with %v", freshen.cmd.ProcessState)
	}

	// It goes on where systemd cannot be told, and says so.
	edit(t, filepath.Join(dir, "freshen.yaml"), "retry: {first: never}", "retry: {first: 1h}")
	cmd = command(t, dir, "serve")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket+".gone")
	freshen = start(t, cmd)
	if line := freshen.logged(t, "systemd cannot be told"); !strings.Contains(line["err"].(string), "no such file") {
		t.Errorf("the log says %v", line)
	}
	freshen.passes(t)
	freshen.signal(t, syscall.SIGTERM)
	freshen.wait(t)
}

// An administrator refreshes, and reads what is owed, through a unix socket as through a port.
func TestCommandsOverAUnixSocket(t *testing.T) {
	t.Parallel()
	folder, err := os.MkdirTemp("", "o") //nolint:usetesting // the same
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	dir := configure(t, homeserverOf(t), "freshen.db")
	socket := "FRESHEN_ADMIN_LISTEN=unix:" + filepath.Join(folder, "admin.sock")
	owed := func(environment string) (string, string, int) {
		cmd := command(t, dir, "owed")
		cmd.Env = append(cmd.Env, environment)
		return finish(t, cmd)
	}
	if _, stderr, status := owed(socket); status != 1 || !strings.Contains(stderr, "freshen does not run (nothing listens on unix:") {
		t.Errorf("owed, with nobody there, ends with %d: %s", status, stderr)
	}
	public := "FRESHEN_LISTEN=unix:" + filepath.Join(folder, "freshen.sock")
	cmd := command(t, dir, "serve")
	cmd.Env = append(cmd.Env, socket, public)
	freshen := start(t, cmd)
	refresh := command(t, dir, "refresh", "@bob:127.0.0.1:1")
	refresh.Env = append(refresh.Env, public, "FRESHEN_TOKEN=token")
	if stdout, stderr, status := finish(t, refresh); status != 1 || !strings.Contains(stdout, "freshen tries again by itself") {
		t.Errorf("refresh ends with %d: %s%s", status, stdout, stderr)
	}
	refresh = command(t, dir, "refresh", "@bob:127.0.0.1:1")
	refresh.Env = append(refresh.Env, "FRESHEN_LISTEN=systemd", "FRESHEN_TOKEN=token")
	if _, stderr, status := finish(t, refresh); status != 1 || !strings.Contains(stderr, "say where to ask with --url, or set FRESHEN_LISTEN") {
		t.Errorf("refresh, of a socket of systemd's, ends with %d: %s", status, stderr)
	}
	if stdout, stderr, status := owed(socket); status != 0 || !strings.Contains(stdout, "@bob:127.0.0.1:1") {
		t.Errorf("owed ends with %d: %s%s", status, stdout, stderr)
	}
	if _, stderr, status := owed("FRESHEN_ADMIN_LISTEN=fd:admin"); status != 1 || !strings.Contains(stderr, "set FRESHEN_ADMIN_LISTEN to where it does") {
		t.Errorf("owed, of a socket of systemd's, ends with %d: %s", status, stderr)
	}
	freshen.signal(t, syscall.SIGTERM)
	freshen.wait(t)
}
