package testbed

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// CachedFolder returns the folder of that name in the cache of built things, filling it first where this machine has none
// yet: fill gets an empty folder, which takes its place in the cache only if fill succeeds. Programs that ask at the same
// time share one filling. The name must tell apart whatever must not be mixed up; what is for people, "Waiting for another
// program that installs …". progress may be nil.
func CachedFolder(ctx context.Context, name, what string, progress io.Writer, fill func(dir string) error) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache := cacheDir(root)
	path := filepath.Join(cache, name)
	if isFolder(path) {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("the cache folder for %s cannot be made: %w", what, err)
	}
	unlock, err := lockFile(ctx, path+".lock", func() {
		fmt.Fprintf(orDiscard(progress), "Waiting for another program that installs %s …\n", what)
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if isFolder(path) {
		return path, nil
	}
	unfinished, err := os.MkdirTemp(cache, ".filling-")
	if err != nil {
		return "", fmt.Errorf("no folder to install %s in: %w", what, err)
	}
	defer os.RemoveAll(unfinished) //nolint:errcheck // a left-over folder harms nobody
	if err := fill(unfinished); err != nil {
		return "", err
	}
	if err := os.Rename(unfinished, path); err != nil {
		return "", fmt.Errorf("%s cannot be moved to its place: %w", what, err)
	}
	return path, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
