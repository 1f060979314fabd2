package testbed

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// A failure means that two tests install into one folder at once, or that what a failed installation left is taken for
// a whole one.
func TestCachedFolderIsFilledOnceAndWhole(t *testing.T) {
	t.Setenv("FRESHEN_CACHE", t.TempDir())
	broken := errors.New("no network")
	_, err := CachedFolder(t.Context(), "things", "things", nil, func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("a failed installation is %v", err)
	}
	var filled atomic.Int64
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			dir, err := CachedFolder(t.Context(), "things", "things", nil, func(dir string) error {
				filled.Add(1)
				return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != "whole" {
				t.Errorf("the folder has %v, %v", entries, err)
			}
		})
	}
	wait.Wait()
	if filled.Load() != 1 {
		t.Errorf("it was filled %d times", filled.Load())
	}
}
