//go:build goolm

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen/internal/testbed/client"
	"freshen/internal/testbed/scenario"
)

// syncNow asks once, without waiting, and returns whom the answer names in device_lists.changed, and its token.
func (c *caller) syncNow(t *testing.T, ctx context.Context, since string) (changed []id.UserID, next string) {
	t.Helper()
	a := c.do(t, ctx, http.MethodGet, "/_matrix/client/v3/sync?timeout=0&since="+since, nil)
	var body struct {
		NextBatch   string `json:"next_batch"`
		DeviceLists struct {
			Changed []id.UserID `json:"changed"`
		} `json:"device_lists"`
	}
	if err := json.Unmarshal(a.body, &body); err != nil || body.NextBatch == "" {
		t.Fatalf("/sync is answered %s", a)
	}
	return body.DeviceLists.Changed, body.NextBatch
}

// A failure means that a client whose connection broke never hears of the change, or that one that has heard is told at
// every sync and asks for keys each time.
func TestToldUntilAcknowledged(t *testing.T) {
	world, ctx, _, alice := setup(t)
	bob, _ := newUser(t, ctx, world.B, "bob")
	told := func(since string) (bool, string) {
		t.Helper()
		changed, next := alice.syncNow(t, ctx, since)
		return slices.Contains(changed, bob), next
	}
	_, since := alice.syncNow(t, ctx, "")
	if early, _ := told(since); early {
		t.Fatal("Alice is told before anything happened")
	}
	requireAccepted(t, alice.refresh(t, ctx, bob.String()))
	for i := range 2 {
		if again, _ := told(since); !again {
			t.Fatalf("answer %d with the same since does not name Bob: a lost answer loses the news", i+1)
		}
	}
	query := alice.do(t, ctx, http.MethodPost, "/_matrix/client/v3/keys/query", fmt.Appendf(nil, `{"device_keys":{%q:[]}}`, bob))
	if query.status != http.StatusOK {
		t.Fatalf("/keys/query is answered %s", query)
	}
	if again, _ := told(since); again {
		t.Error("Alice has asked for Bob's keys and is told to ask again")
	}
	// Somebody who asks explicitly may have lost what they knew.
	requireAccepted(t, alice.refresh(t, ctx, bob.String()))
	if again, _ := told(since); !again {
		t.Error("Alice asked again and is told nothing")
	}
}

// A failure means that only the one who asked gets to use the fresh list, or that strangers learn who talks to whom.
func TestWhoIsTold(t *testing.T) {
	world, ctx, _, _ := setup(t)
	meet := func(url, localpart string) *client.Client {
		t.Helper()
		c, err := client.Register(ctx, client.Account{
			URL: url, Localpart: fmt.Sprintf("%s%d", localpart, people.Add(1)), Password: scenario.Password, DeviceName: "test",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	alice, carol, dave := meet(world.Freshen.URL, "alice"), meet(world.Freshen.URL, "carol"), meet(world.Freshen.URL, "dave")
	bob := meet(world.B.URL, "bob")
	room, err := alice.CreateEncryptedRoom(ctx, bob.UserID(), carol.UserID())
	if err != nil {
		t.Fatal(err)
	}
	for _, guest := range []*client.Client{bob, carol} {
		if err := guest.Join(ctx, room, world.A.ServerName); err != nil {
			t.Fatal(err)
		}
	}
	from := make(map[*client.Client]int)
	for _, c := range []*client.Client{alice, carol, dave} {
		c.StartSync(ctx)
		if c != dave {
			if err := c.AwaitMember(ctx, room, bob.UserID()); err != nil {
				t.Fatal(err)
			}
		}
		// Her own change comes after what the homeserver itself has to say about the new room.
		next, err := c.AwaitWaiting(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetUpCrossSigning(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := c.AwaitChanged(ctx, next, c.UserID()); err != nil {
			t.Fatal(err)
		}
		if from[c], err = c.AwaitWaiting(ctx); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := alice.Refresh(ctx, bob.UserID())
	if err != nil {
		t.Fatal(err)
	}
	if answer.Status != http.StatusAccepted {
		t.Fatalf("the refresh is answered %s", answer)
	}
	for _, c := range []*client.Client{alice, carol} {
		if _, err := c.AwaitChanged(ctx, from[c], bob.UserID()); err != nil {
			t.Error(err)
		}
	}
	// An answer to a change of his own ends Dave's waiting.
	if err := dave.SetUpCrossSigning(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := dave.AwaitChanged(ctx, from[dave], dave.UserID()); err != nil {
		t.Fatal(err)
	}
	for _, s := range dave.Syncs(0) {
		if slices.Contains(s.Changed, bob.UserID()) {
			t.Error("Dave, who shares no room with Bob and has not asked, is told of him")
		}
	}
}
