//go:build unix

package soak

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"freshen/internal/testbed"
)

var (
	seedFlag = flag.Uint64("seed", 0, "the seed of all choices; 0 draws one")
	kills    = flag.Int("kills", 4, "how often freshen is ended in a crash test")
	clients  = flag.Int("clients", 40, "how many devices a crowd has; from 500 on it syncs for minutes")
	cutAfter = flag.Duration("cut", 3*time.Second, "after how long the proxy before some of a crowd cuts a poll, which lasts twice as long")
)

var mapsKeys = maps.Keys[map[string]int]

var drawn = rand.Uint64N(1_000_000)

// seed is that of this run.
func seed() uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	return drawn
}

var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// buildFreshen builds the real program once.
func buildFreshen() (string, error) {
	built.once.Do(func() {
		if built.dir, built.err = testbed.TempDir(); built.err == nil {
			built.path, built.err = testbed.BuildFreshen(context.Background(), built.dir, os.Stderr)
		}
	})
	return built.path, built.err
}

type runner func() int

func (r runner) Run() int { return r() }

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(runner(func() int {
		code := m.Run()
		if built.dir != "" {
			if err := os.RemoveAll(built.dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
		return code
	}))
}
