package jsclient

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed/chromium"
	"freshen/internal/testbed/testbedtest"
)

// The lock file must hold each package to its content and say nothing of where it comes from: that is the installing
// machine's own affair. A failure means that an installation depends on a host that somebody else chose, or is not held to
// what was tested.
func TestLockFileNamesContentAndNoHost(t *testing.T) {
	data, err := sources.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var lock struct {
		Packages map[string]struct {
			Resolved  string `json:"resolved"`
			Integrity string `json:"integrity"`
			Version   string `json:"version"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(data, &lock); err != nil {
		t.Fatal(err)
	}
	for name, entry := range lock.Packages {
		if entry.Resolved != "" {
			t.Errorf("%s has a resolved field: npm install --package-lock-only --omit-lockfile-registry-resolved leaves it out", name)
		}
		if name != "" && entry.Integrity == "" {
			t.Errorf("%s has no integrity", name)
		}
	}
	if got := lock.Packages["node_modules/matrix-js-sdk"].Version; got != Version() {
		t.Errorf("the lock file has matrix-js-sdk %s, package.json %s", got, Version())
	}
}

// hosts starts each kind of host.
func hosts(t *testing.T, f func(t *testing.T, ctx context.Context, h *Host)) {
	_, err := Install(t.Context(), os.Stderr)
	testbedtest.Require(t, "a JavaScript client", err)
	for name, start := range map[string]func(t *testing.T, ctx context.Context) (*Host, error){
		"Node.js": func(t *testing.T, ctx context.Context) (*Host, error) { return Node(ctx, t.TempDir(), nil) },
		"browser": func(t *testing.T, ctx context.Context) (*Host, error) {
			_, err := chromium.Find()
			testbedtest.Require(t, "a JavaScript client", err)
			return Browser(ctx, t.TempDir(), nil, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			h, err := start(t, ctx)
			if err != nil {
				t.Fatal(err)
			}
			f(t, ctx, h)
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A failure means that a test with a JavaScript client hangs, or passes, where the client's code has failed.
func TestWhatFailsIsTold(t *testing.T) {
	hosts(t, func(t *testing.T, ctx context.Context, h *Host) {
		err := h.call(ctx, "alice", "dance", map[string]any{}, nil)
		if err == nil || !strings.Contains(err.Error(), "no such command") {
			t.Errorf("an unknown command is %v", err)
		}
		if _, err := (&Client{host: h, name: "nobody"}).Known(ctx, "@bob:example.org"); err == nil || !strings.Contains(err.Error(), "not signed in") {
			t.Errorf("a client that has not signed in is %v", err)
		}
		// Nobody listens on port 1.
		if _, err := h.Login(ctx, Account{URL: "http://127.0.0.1:1", Localpart: "a", Password: "b", DeviceName: "c"}); err == nil {
			t.Error("a homeserver that is not there lets somebody in")
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := h.call(ended, "alice", "dance", map[string]any{}, nil); err == nil {
			t.Error("a test that has ended gets an answer")
		}
	})
}
