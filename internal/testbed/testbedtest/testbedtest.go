// Package testbedtest gives tests a world of real homeservers: one that all tests of a binary share, or one of their own.
package testbedtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"freshen/internal/testbed"
)

const closeWithin = 30 * time.Second

// Shared is a world that all tests of a binary share. It starts when it is first asked for.
type Shared struct {
	// Options say what the world is made of. Its folder is made here.
	Options testbed.Options

	once  sync.Once
	world *testbed.World
	dir   string
	err   error
}

// World returns the shared world. Where this machine cannot build its homeservers the test is skipped, or fails if CI is set.
func (s *Shared) World(t testing.TB) *testbed.World {
	t.Helper()
	need(t, s.Options.A, s.Options.B)
	s.once.Do(func() { s.world, s.dir, s.err = start(s.Options) })
	if s.err != nil {
		t.Fatalf("The shared world did not start: %v", s.err)
	}
	return s.world
}

// Main runs the tests of a binary, stops the shared world, and fails if a goroutine is left over.
func (s *Shared) Main(m *testing.M) {
	goleak.VerifyTestMain(runner(func() int {
		code := m.Run()
		if s.world == nil {
			return code
		}
		if err := closeWorld(s.world, s.dir, code == 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
		return code
	}))
}

type runner func() int

func (r runner) Run() int { return r() }

// Own starts a world for one test, for stories that spoil it, and stops it with the test. The logs of a failed test stay.
func Own(t testing.TB, options testbed.Options) *testbed.World {
	t.Helper()
	need(t, options.A, options.B)
	world, dir, err := start(options)
	if err != nil {
		t.Fatalf("The world did not start: %v", err)
	}
	t.Cleanup(func() {
		if err := closeWorld(world, dir, !t.Failed()); err != nil {
			t.Error(err)
		}
	})
	return world
}

func start(options testbed.Options) (*testbed.World, string, error) {
	dir, err := testbed.TempDir()
	if err != nil {
		return nil, "", err
	}
	options.Dir, options.Progress = dir, os.Stderr
	// Builds take as long as they take, and the testbed bounds how long programs may take to get ready.
	world, err := testbed.Start(context.Background(), options)
	if err != nil {
		return nil, "", err
	}
	return world, dir, nil
}

func closeWorld(world *testbed.World, dir string, remove bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	err := world.Close(ctx)
	if !remove || err != nil {
		fmt.Fprintln(os.Stderr, "The data and logs of the homeservers are kept in", dir)
		return err
	}
	return os.RemoveAll(dir)
}

// built has, by kind, whether this machine has that homeserver, once for the binary. No bound in time but the test's own:
// a cold build takes minutes.
var built = map[testbed.Kind]func() error{
	testbed.Dendrite: sync.OnceValue(func() error { return build(testbed.Dendrite) }),
	testbed.Synapse:  sync.OnceValue(func() error { return build(testbed.Synapse) }),
}

func build(kind testbed.Kind) error {
	_, err := kind.Build(context.Background(), os.Stderr)
	return err
}

// need builds what a world is made of. Where that cannot be, the test is skipped, or fails if CI is set.
func need(t testing.TB, kinds ...testbed.Kind) {
	t.Helper()
	for _, kind := range kinds {
		Require(t, "a real homeserver", built[cmp.Or(kind, testbed.Dendrite)]())
	}
}

// Context ends after d, or a little before the test's deadline, so that what fails can still say why.
func Context(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, errors.New("the test waited for too long"))
	t.Cleanup(cancel)
	return ctx
}
