package testbed

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func writeModule(t *testing.T, source string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"go.mod": "module m\n\ngo 1.26\n", "main.go": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A failure means that a build that broke is not explained, or leaves a program behind that is then run.
func TestFailedBuildSaysWhyAndLeavesNothing(t *testing.T) {
	dir, out := writeModule(t, "package main\n\nfunc main() { undefinedThing() }\n"), t.TempDir()
	err := goBuild(t.Context(), dir, filepath.Join(out, "m"), io.Discard, ".")
	if err == nil || !strings.Contains(err.Error(), "undefinedThing") {
		t.Errorf("the error is %v", err)
	}
	if left, _ := os.ReadDir(out); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A failure means that go build -v's output is not understood: no sign of life for minutes, or a lost compiler error.
func TestBuildOutput(t *testing.T) {
	var o buildOutput
	for _, part := range []string{"internal/abi\nexample.org/a", "/b\ngo: downloading x v1\n", "./main.go:3:15: undefined: x\nerrors\n"} {
		if n, err := o.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := o.packages.Load(); got != 3 {
		t.Errorf("%d packages, want 3", got)
	}
	if got, want := o.rest.String(), "go: downloading x v1\n./main.go:3:15: undefined: x\n"; got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
}

// A failure means that a changed dependency of the homeserver is not built, or that it is built at every run.
func TestDendriteKeyFollowsTheModule(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) (string, string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		version, key, err := dendriteKey(dir)
		if err != nil {
			t.Fatal(err)
		}
		return version, key
	}
	version, first := write("module m\nrequire (\n\tgithub.com/matrix-org/dendrite v1.2.3 // indirect\n)\n")
	if version != "v1.2.3" {
		t.Errorf("the version is %q", version)
	}
	if _, again := write("module m\nrequire (\n\tgithub.com/matrix-org/dendrite v1.2.3 // indirect\n)\n"); again != first {
		t.Error("the same module has two keys")
	}
	if _, other := write("module m\nrequire (\n\tgithub.com/matrix-org/dendrite v1.2.3 // indirect\n\tx v1.0.0\n)\n"); other == first {
		t.Error("two modules have the same key")
	}
}

// A failure means that two test binaries build the homeserver at once, minutes each.
func TestLockWaitsForTheOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path, func() { t.Error("nobody holds it") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	told := false
	if _, err := lockFile(ctx, path, func() { told = true }); !errors.Is(err, context.DeadlineExceeded) || !told {
		t.Errorf("a taken lock: %v, told %v", err, told)
	}
	unlock()
	unlock, err = lockFile(t.Context(), path, func() { t.Error("nobody holds it any more") })
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
