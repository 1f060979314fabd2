//go:build unix

package testbed

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script runs a shell script as a process of the testbed and waits until it says that it runs.
func script(t *testing.T, lines string) *Process {
	t.Helper()
	dir := t.TempDir()
	running := filepath.Join(dir, "running")
	p, err := StartProcess(t.Context(), "The script", filepath.Join(dir, "log"), "/bin/sh", []string{"-c", lines}, []string{"RUNNING=" + running})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	for !isFile(running) {
		select {
		case <-p.done:
			return p
		case <-time.After(time.Millisecond):
		}
	}
	return p
}

func unready(t *testing.T) (*http.Client, string) {
	t.Helper()
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	return server.Client(), server.URL
}

func isOK(status int, _ []byte) bool { return status == http.StatusOK }

// A failure means that somebody whose homeserver does not start waits for a minute and then is not told why.
func TestProgramThatEndsAtOnceIsReportedWithItsLog(t *testing.T) {
	client, url := unready(t)
	p := script(t, `echo "cannot bind port"; exit 3`)
	err := p.AwaitReady(t.Context(), client, url, isOK)
	if err == nil || !strings.Contains(err.Error(), "The script ended before it was ready: exit status 3") ||
		!strings.Contains(err.Error(), "cannot bind port") {
		t.Errorf("the error is %v", err)
	}
}

// A failure means that the demo hangs instead of saying which program did not come up.
func TestProgramThatNeverGetsReadyIsReported(t *testing.T) {
	client, url := unready(t)
	p := script(t, `echo starting; : > "$RUNNING"; exec sleep 600`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := p.AwaitReady(ctx, client, url, isOK)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "starting") {
		t.Errorf("the error is %v", err)
	}
}

// A failure means that programs of the testbed outlive it.
func TestStop(t *testing.T) {
	obedient := script(t, `trap 'exit 0' TERM; : > "$RUNNING"; while :; do sleep 0.01; done`)
	if err := obedient.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := obedient.Stop(t.Context()); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
	stubborn := script(t, `trap '' TERM; : > "$RUNNING"; while :; do sleep 0.01; done`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := stubborn.Stop(ctx)
	if err == nil || !strings.Contains(err.Error(), "did not end on SIGTERM and was killed") {
		t.Errorf("the error is %v", err)
	}
	select {
	case <-stubborn.done:
	default:
		t.Error("the stubborn program still runs")
	}
}

// A failure means that the error of a program with a long log is longer than a screen, or shows its beginning.
func TestTailIsTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("early\n", 10_000)+"late\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := string(tail(path))
	if len(got) > tailBytes || !strings.HasSuffix(got, "late") {
		t.Errorf("the tail has %d bytes and ends with %q", len(got), got[max(0, len(got)-20):])
	}
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
