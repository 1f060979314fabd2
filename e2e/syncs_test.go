//go:build goolm

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"freshen/internal/overlay/splice"
)

var record = flag.String("record", "", "write the bodies of the homeservers' syncs, users renamed, into this folder")

// Real homeservers write their syncs in their own ways, and another one with each version: a client must get all of it,
// and what is owed.
func TestRealSyncs(t *testing.T) {
	world, ctx, _, _ := setup(t)
	alice, bob := newClient(t, ctx, world.A.URL, "alice"), newClient(t, ctx, world.B.URL, "bob")
	alice.StartSync(ctx)
	bob.StartSync(ctx)
	room, err := alice.CreateEncryptedRoom(ctx, bob.UserID())
	if err != nil {
		t.Fatal(err)
	}
	if err := bob.Join(ctx, room, world.A.ServerName); err != nil {
		t.Fatal(err)
	}
	if err := alice.AwaitMember(ctx, room, bob.UserID()); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := alice.Send(ctx, room, fmt.Sprintf("message %d, \"quoted\" and \\ more: äöü 🦜", i)); err != nil {
			t.Fatal(err)
		}
	}
	requireSplices(t, ctx, "dendrite", newCaller(t, world.A.URL, alice.Token()))
}

// requireSplices takes syncs of every kind from the homeserver itself, and requires of each that what is inserted is all
// that changes, wherever the body is cut.
func requireSplices(t *testing.T, ctx context.Context, homeserver string, direct *caller) {
	t.Helper()
	get := func(query string) []byte {
		t.Helper()
		a := direct.do(t, ctx, http.MethodGet, "/_matrix/client/v3/sync?timeout=0"+query, nil)
		if a.status != http.StatusOK {
			t.Fatalf("/sync is answered %s", a)
		}
		return a.body
	}
	first := get("")
	var token struct {
		NextBatch string `json:"next_batch"`
	}
	if err := json.Unmarshal(first, &token); err != nil {
		t.Fatal(err)
	}
	before := get(`&filter={"room":{"timeline":{"limit":1}}}`)
	for kind, body := range map[string][]byte{
		"first": first, "limited": before, "idle": get("&since=" + token.NextBatch), "full-state": get("&full_state=true&since=" + token.NextBatch),
	} {
		name := homeserver + "-" + kind
		requireSplice(t, name, body)
		if *record == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(*record, name+".json"), renamed(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func requireSplice(t *testing.T, name string, body []byte) {
	t.Helper()
	const added = "@added:elsewhere.example"
	var want map[string]any
	if err := json.Unmarshal(body, &want); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	lists, _ := want["device_lists"].(map[string]any)
	if lists == nil {
		lists = map[string]any{}
	}
	changed, _ := lists["changed"].([]any)
	lists["changed"] = append(changed, added)
	want["device_lists"] = lists
	for at := 0; at <= len(body); at += 1 + len(body)/500 {
		source := io.MultiReader(bytes.NewReader(body[:at]), bytes.NewReader(body[at:]))
		spliced, err := io.ReadAll(splice.NewReader(source, splice.Edit{Path: []string{"device_lists", "changed"}, Token: "next_batch", Add: []string{added}}))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got map[string]any
		if err := json.Unmarshal(spliced, &got); err != nil {
			t.Fatalf("%s, cut at %d, is no JSON any more: %v", name, at, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s, cut at %d: %s", name, at, diff)
		}
	}
}

var (
	address = regexp.MustCompile(`127\.[0-9.]+:[0-9]+`)
	person  = regexp.MustCompile(`(alice|bob|carol|dave|erin)[0-9]+`)
)

// renamed is a body without the addresses and names of one run.
func renamed(body []byte) []byte {
	servers := map[string]string{}
	body = address.ReplaceAllFunc(body, func(found []byte) []byte {
		name, known := servers[string(found)]
		if !known {
			name = string(rune('a'+len(servers))) + ".example"
			servers[string(found)] = name
		}
		return []byte(name)
	})
	return person.ReplaceAllFunc(body, func(found []byte) []byte { return []byte(strings.TrimRight(string(found), "0123456789")) })
}
