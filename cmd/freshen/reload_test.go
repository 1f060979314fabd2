package main

import (
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What an administrator changes in a hurry (whom to deny, how much to allow, what to log) must count without cutting
// everybody's polls; a mistake made in that hurry must change nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	dir := configure(t, homeserverOf(t), "freshen.db")
	file := filepath.Join(dir, "freshen.yaml")
	edit(t, file, "retry: {first: 1h}", "retry: {first: 1h}\nfederation: {allow_networks: [127.0.0.0/8], deny_servers: []}\nlimits: {per_user: {every: 1h, burst: 3}}")
	edit(t, file, "federation: {allow_networks: [127.0.0.0/8]}\n", "")
	freshen := start(t, command(t, dir, "serve"))
	freshen.refresh(t, "bob", http.StatusBadGateway, "freshen tries again by itself")

	edit(t, file, "burst: 3", "burst: 0")
	freshen.signal(t, syscall.SIGHUP)
	line := freshen.logged(t, "the configuration was not reloaded")
	if text, _ := line["err"].(string); !strings.Contains(text, "limits.per_user.burst: must be at least 1, is 0") {
		t.Errorf("the log says %v", line)
	}
	freshen.refresh(t, "bob", http.StatusBadGateway, "freshen tries again by itself")

	edit(t, file, "every: 1h, burst: 0", "every: 1ms, burst: 100")
	edit(t, file, "deny_servers: []", "deny_servers: ['127.0.0.1']")
	edit(t, file, "log: {", "log: {level: debug, ")
	edit(t, file, "first: 1h", "first: 2h")
	freshen.signal(t, syscall.SIGHUP)
	dropped := freshen.logged(t, "dropped what was owed to a destination that the configuration denies")
	if dropped["debts"] != 1.0 {
		t.Errorf("the log says %v", dropped)
	}
	freshen.logged(t, "configuration reloaded")
	if line := freshen.logged(t, "some settings have changed"); line["keys"] != "retry" {
		t.Errorf("the log says %v", line)
	}
	for range 5 { // more than the old limit allows
		freshen.refresh(t, "bob", http.StatusForbidden, "does not allow device lists to be asked for from 127.0.0.1:1")
	}

	edit(t, file, "deny_servers: ['127.0.0.1']", "deny_servers: []")
	edit(t, file, "every: 1ms, burst: 100", "every: 1h, burst: 2")
	freshen.signal(t, syscall.SIGHUP)
	freshen.logged(t, "configuration reloaded")
	freshen.refresh(t, "bob", http.StatusBadGateway, "freshen tries again by itself")
	// What was used a moment ago still counts, so that the second may be refused, and the third must be.
	freshen.do(t, http.MethodPost, freshen.url+"/_matrix/client/v3/user/@bob:127.0.0.1:1/devices/refresh")
	freshen.refresh(t, "bob", http.StatusTooManyRequests, "You have asked for many device lists")
	freshen.passes(t)

	// At error level no refresh is logged. A second reload ends that, and its line comes after all that was logged.
	edit(t, file, "every: 1h, burst: 2", "every: 1ms, burst: 1000")
	edit(t, file, "level: debug", "level: error")
	freshen.signal(t, syscall.SIGHUP)
	loosened := func() bool {
		status, _ := freshen.do(t, http.MethodPost, freshen.url+"/_matrix/client/v3/user/@bob:127.0.0.1:1/devices/refresh")
		return status != http.StatusTooManyRequests
	}
	for end := time.Now().Add(patience); !loosened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the limit is still in force")
		}
	}
	freshen.refresh(t, "quiet", http.StatusBadGateway, "freshen tries again by itself")
	edit(t, file, "level: error", "level: info")
	freshen.signal(t, syscall.SIGHUP)
	for {
		var line map[string]any
		if err := freshen.log.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line["target"] == "@quiet:127.0.0.1:1" {
			t.Errorf("logged at error level: %v", line)
		}
		if line["msg"] == "configuration reloaded: limits, allow_servers, deny_servers and log.level" {
			break
		}
	}

	freshen.signal(t, syscall.SIGTERM)
	if status := freshen.wait(t); status.ExitStatus() != 0 {
		t.Errorf("freshen ended with %v", freshen.cmd.ProcessState)
	}
}
