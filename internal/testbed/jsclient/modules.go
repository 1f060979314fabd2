package jsclient

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"freshen/docs/examples"
	"freshen/internal/testbed"
)

// sources are what npm installs by, and the clients' own code.
//
//go:embed package.json package-lock.json *.mjs
var sources embed.FS

// Install returns a folder with node_modules as the lock file says: matrix-js-sdk, the Node.js that it needs and esbuild.
// Where this machine has none for this lock file yet, npm fetches them, which takes seconds and needs the package registry.
// No package's own scripts run. progress (may be nil) is told.
func Install(ctx context.Context, progress io.Writer) (string, error) {
	lock, err := sources.ReadFile("package-lock.json")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(lock)
	name := fmt.Sprintf("js-%s-%s-%s", hex.EncodeToString(sum[:4]), runtime.GOOS, runtime.GOARCH)
	return testbed.CachedFolder(ctx, name, "matrix-js-sdk", progress, func(dir string) error {
		npm, err := exec.LookPath("npm")
		if err != nil {
			return errors.New("npm is missing, which installs matrix-js-sdk and the Node.js that runs it: apt-get install npm, or Node.js from https://nodejs.org")
		}
		if err := copySources(dir, "package.json", "package-lock.json"); err != nil {
			return err
		}
		if progress != nil {
			fmt.Fprintf(progress, "Installing matrix-js-sdk %s with npm; afterwards it is at hand in the cache.\n", Version())
		}
		cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		cmd.Dir = dir
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm ci: %w\n%s", err, strings.TrimSpace(string(output)))
		}
		return nil
	})
}

// Version is that of matrix-js-sdk.
func Version() string {
	var manifest struct {
		Dependencies map[string]string `json:"dependencies"`
	}
	data, err := sources.ReadFile("package.json")
	if err != nil || json.Unmarshal(data, &manifest) != nil {
		return "unknown"
	}
	return manifest.Dependencies["matrix-js-sdk"]
}

// prepare makes a folder below parent that the clients' code runs in, with the installed modules beside it.
func prepare(ctx context.Context, parent string, progress io.Writer) (string, error) {
	modules, err := Install(ctx, progress)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, "js-")
	if err != nil {
		return "", fmt.Errorf("no folder for a JavaScript client: %w", err)
	}
	if err := copySources(dir, "package.json", "client.mjs", "node.mjs", "browser.mjs"); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "refresh.mjs"), []byte(examples.RefreshJS), 0o600); err != nil {
		return "", fmt.Errorf("the code of a JavaScript client cannot be written: %w", err)
	}
	if err := os.Symlink(filepath.Join(modules, "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		return "", fmt.Errorf("the modules of a JavaScript client cannot be linked: %w", err)
	}
	return dir, nil
}

func copySources(dir string, names ...string) error {
	for _, name := range names {
		data, err := sources.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("the code of a JavaScript client cannot be written: %w", err)
		}
	}
	return nil
}
