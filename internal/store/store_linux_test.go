package store_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"freshen/internal/store"
)

// An upgrade or a restore that leaves the file to root must be told as that, not as a riddle of SQLite's.
func TestADatabaseThatMayNotBeWritten(t *testing.T) {
	dir := t.TempDir()
	// The way there is open to everybody.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "freshen.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func() error{
		"the file":   func() error { return os.Chmod(path, 0o400) },
		"the folder": func() error { return os.Chmod(dir, 0o555) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := prepare(); err != nil {
				t.Fatal(err)
			}
			result := make(chan error, 1)
			go func() {
				asNobody()
				s, err := store.Open(t.Context(), store.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
				if err == nil {
					err = s.Close()
				}
				result <- err
			}()
			err := <-result
			if err == nil {
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "folder") {
				t.Errorf("the error is: %v", err)
			}
			t.Log(err)
		})
	}
}

// asNobody takes root's power over files from the calling goroutine's thread, which ends with it.
func asNobody() {
	if os.Getuid() != 0 {
		return
	}
	runtime.LockOSThread()
	const nobody = 65534
	_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0)
}
