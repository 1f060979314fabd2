//go:build goolm

package e2e

import (
	"context"
	"testing"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/scenario"
	"freshen/internal/testbed/testbedtest"
)

var shared = testbedtest.Shared{Options: testbed.Options{Freshen: true, ManyRefreshes: true}}

func TestMain(m *testing.M) { shared.Main(m) }

// TestTheMainJob tells the whole story that the demo shows. When it fails, freshen does not do what it is for: the name
// of the failing line says which promise is broken.
func TestTheMainJob(t *testing.T) {
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{Freshen: true})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cast, err := scenario.Run(ctx, world, logger{t})
	cast.Close()
	if err != nil {
		t.Errorf("%v\nThe end of freshen's log:\n%s", err, world.Freshen.LogTail())
	}
}

// logger writes the story into the test's log.
type logger struct{ t *testing.T }

func (logger) Begin(scenario.Line) {}

func (l logger) End(line scenario.Line) {
	l.t.Logf("%d. %7s %3d %s %s", line.Step, line.Took.Round(time.Millisecond), line.Status, line.Text, line.Detail)
}
