package testbed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// signOfLife is how often a running build says that it still runs.
const signOfLife = 5 * time.Second

var dendriteVersion = regexp.MustCompile(`(?m)^\s*github\.com/matrix-org/dendrite (v\S+)`)

// BuildDendrite returns the path of a Dendrite homeserver, building it first where this machine has none of that version
// yet. That takes minutes once, and needs the module proxy; progress (may be nil) is told so, and how far it is. The
// version is the one in internal/testbed/dendrite/go.mod. Programs that ask at the same time share one build.
func BuildDendrite(ctx context.Context, progress io.Writer) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "internal", "testbed", "dendrite")
	version, key, err := dendriteKey(module)
	if err != nil {
		return "", err
	}
	const program = "dendrite"
	name := fmt.Sprintf("dendrite-%s-%s-%s-%s", version, key, runtime.GOOS, runtime.GOARCH)
	dir, err := CachedFolder(ctx, name, "Dendrite", progress, func(dir string) error {
		fmt.Fprintf(orDiscard(progress), "Building Dendrite %s. The first time this takes some minutes; afterwards it is at hand in the cache.\n", version)
		return goBuild(ctx, module, filepath.Join(dir, program), progress, "tool")
	})
	if err != nil {
		return "", fmt.Errorf("%s %s could not be built (it needs the Go toolchain and its module proxy): %w", Dendrite, version, err)
	}
	return filepath.Join(dir, program), nil
}

// dendriteKey returns the version of Dendrite that the module in dir requires, and a short hash over the versions of all
// that it is built from.
func dendriteKey(dir string) (version, key string, err error) {
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", "", fmt.Errorf("the module that names Dendrite's version cannot be read: %w", err)
	}
	match := dendriteVersion.FindSubmatch(mod)
	if match == nil {
		return "", "", fmt.Errorf("%s/go.mod requires no github.com/matrix-org/dendrite", dir)
	}
	sum := sha256.Sum256(mod)
	return string(match[1]), hex.EncodeToString(sum[:4]), nil
}

// BuildFreshen builds freshen from the source tree into dir, as it is packaged but for the version, and returns its path. The first time that takes a minute or
// two; progress (may be nil) is told how far it is. FRESHEN_BINARY names one to use instead, built by whatever means.
func BuildFreshen(ctx context.Context, dir string, progress io.Writer) (string, error) {
	if path := os.Getenv("FRESHEN_BINARY"); path != "" {
		return path, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "freshen-bin")
	if err := goBuild(ctx, root, path, progress, "-trimpath", "./cmd/freshen"); err != nil {
		return "", fmt.Errorf("freshen could not be built: %w", err)
	}
	return path, nil
}

// goBuild runs go build in dir and moves what it made to path in one step, so that a cut-off build leaves nothing behind
// that looks finished.
func goBuild(ctx context.Context, dir, path string, progress io.Writer, args ...string) error {
	unfinished, err := os.MkdirTemp(filepath.Dir(path), ".building-")
	if err != nil {
		return fmt.Errorf("no folder to build in: %w", err)
	}
	defer os.RemoveAll(unfinished) //nolint:errcheck // a left-over folder harms nobody
	out := filepath.Join(unfinished, filepath.Base(path))
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-v", "-o", out}, args...)...)
	cmd.Dir = dir
	// Flags of the caller's (-race, -tags) are meant for freshen's own tests and would cost a second cold build.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	counter := &buildOutput{}
	cmd.Stdout, cmd.Stderr = counter, counter
	stop := sayAlive(orDiscard(progress), func() string { return fmt.Sprintf("%d packages compiled", counter.packages.Load()) })
	err = cmd.Run()
	stop()
	if err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, strings.TrimSpace(counter.rest.String()))
	}
	if err := os.Rename(out, path); err != nil {
		return fmt.Errorf("the built program cannot be moved to its place: %w", err)
	}
	return nil
}

// sayAlive writes how far a build is until the function that it returns is called.
func sayAlive(progress io.Writer, how func() string) (stop func()) {
	done, stopped := make(chan struct{}), make(chan struct{})
	started := time.Now()
	go func() {
		defer close(stopped)
		tick := time.NewTicker(signOfLife)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Fprintf(progress, "  … %s, %s\n", how(), time.Since(started).Round(time.Second))
			}
		}
	}()
	return func() { close(done); <-stopped }
}

// buildOutput counts the package names that go build -v writes, one a line, and keeps everything else for the error.
type buildOutput struct {
	packages atomic.Int64
	partial  []byte
	rest     bytes.Buffer
}

var packageLine = regexp.MustCompile(`^[\w.~+-]+(/[\w.~+-]+)*$`)

func (o *buildOutput) Write(p []byte) (int, error) {
	o.partial = append(o.partial, p...)
	for {
		advance, line, _ := bufio.ScanLines(o.partial, false)
		if advance == 0 {
			return len(p), nil
		}
		if packageLine.Match(line) {
			o.packages.Add(1)
		} else {
			o.rest.Write(line)
			o.rest.WriteByte('\n')
		}
		o.partial = o.partial[advance:]
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
