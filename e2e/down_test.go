//go:build goolm

package e2e

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// Homeserver, freshen and their connections end and come back. It has a world of its own, which it stops and starts.
func TestThingsGoDown(t *testing.T) { //nolint:tparallel // each part leaves the world up for the next
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{Freshen: true})
	ctx := testbedtest.Context(t, patience)
	_, token := newUser(t, ctx, world.A, "alice")
	bob, _ := newUser(t, ctx, world.B, "bob")
	alice := newCaller(t, world.Freshen.URL, token)
	requireAccepted(t, alice.refresh(t, ctx, bob.String()))
	poll := func() (since string, done chan answer) {
		t.Helper()
		var first struct {
			NextBatch string `json:"next_batch"`
		}
		if a := alice.do(t, ctx, http.MethodGet, "/_matrix/client/v3/sync", nil); json.Unmarshal(a.body, &first) != nil || first.NextBatch == "" {
			t.Fatalf("the first /sync is %s", a)
		}
		done = make(chan answer, 1)
		go func() {
			a, err := alice.try(ctx, http.MethodGet, "/_matrix/client/v3/sync?timeout=30000&since="+first.NextBatch, nil)
			if err != nil {
				a.body = []byte(err.Error())
			}
			done <- a
		}()
		return first.NextBatch, done
	}

	// A failure means that stopping freshen takes as long as the longest poll, 30 s and more for every update.
	t.Run("freshen stops while a client polls", func(t *testing.T) {
		_, done := poll()
		started := time.Now()
		if err := world.Freshen.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		if a := <-done; a.status == http.StatusOK && !json.Valid(a.body) {
			t.Errorf("the poll was answered with %s", a)
		}
		if err := world.Freshen.Start(ctx); err != nil {
			t.Fatal(err)
		}
		requireAccepted(t, alice.refresh(t, ctx, bob.String()))
	})

	// A failure means that clients see something else than a gateway's error, which they wait out, or that freshen does not
	// come round by itself.
	t.Run("the homeserver goes down and comes back", func(t *testing.T) {
		if err := world.A.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		// Somebody whom freshen has not seen, so that it must ask the homeserver who they are.
		requireError(t, alice.as("unknown").refresh(t, ctx, bob.String()), http.StatusBadGateway, "M_UNKNOWN")
		requireError(t, alice.do(t, ctx, http.MethodGet, "/_matrix/client/v3/profile/x", nil), http.StatusBadGateway, "M_UNKNOWN")
		requireError(t, alice.do(t, ctx, http.MethodGet, "/_matrix/client/v3/sync?timeout=30000&since=x", nil), http.StatusBadGateway, "M_UNKNOWN")
		if err := world.A.Start(ctx); err != nil {
			t.Fatal(err)
		}
		requireAccepted(t, alice.refresh(t, ctx, bob.String()))
	})
}
