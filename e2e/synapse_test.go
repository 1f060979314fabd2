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

// TestTheMainJobBeforeSynapse tells the demo's story with Synapse in the place of Alice's homeserver. When it fails, freshen
// does not do what it is for before the homeserver that most sites run.
func TestTheMainJobBeforeSynapse(t *testing.T) {
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{A: testbed.Synapse, Freshen: true})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cast, err := scenario.Run(ctx, world, logger{t})
	cast.Close()
	if err != nil {
		t.Errorf("%v\nThe end of freshen's log:\n%s\nThe end of Synapse's:\n%s", err, world.Freshen.LogTail(), world.A.LogTail())
	}
}
