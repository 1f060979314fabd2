package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Root finds the root of freshen's source tree, which the testbed builds programs from, going up from the working
// directory.
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("the working directory cannot be told: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(data, []byte("module freshen\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no source tree of freshen at or above " + start + ": run this from inside a clone of the repository")
		}
	}
}

// cacheDir is where built programs are kept between runs: FRESHEN_CACHE, or .cache at the root of the source tree.
func cacheDir(root string) string {
	if dir := os.Getenv("FRESHEN_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(root, ".cache")
}
