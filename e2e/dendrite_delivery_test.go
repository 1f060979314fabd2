//go:build goolm

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/owed"
	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// TestDendriteAnnouncesItself: Alice's client talks to Dendrite alone, and only the button to freshen. When it fails, a site
// that does not put freshen before /sync has a button that does nothing, or one whose administrator does not learn what it
// cannot do.
func TestDendriteAnnouncesItself(t *testing.T) {
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{Freshen: true, Delivery: true})
	ctx := testbedtest.Context(t, longPatience)
	p := introduced(t, ctx, world, world.A.URL)
	bob := p.bob.UserID()
	press := func() {
		t.Helper()
		requireAccepted(t, p.through.refresh(t, ctx, bob.String()))
	}
	waiting := func() int { t.Helper(); return p.waiting(t, ctx) }
	told := func(from int) { t.Helper(); p.told(t, ctx, from) }

	laptop := p.signInUnheard(t, ctx, "laptop")
	p.requireCannotRead(t, ctx, "Can your laptop read this already?", laptop)
	from := waiting()
	press()
	told(from)
	p.requireDevices(t, ctx, p.direct, "Dendrite after the refresh", p.bob, laptop)
	p.requireReads(t, ctx, "Can your laptop read this?", laptop)

	// A device that is gone is what Dendrite stores and announces to nobody: that is told, and clears with the next change.
	p.deleteUnheard(t, ctx, laptop)
	press()
	awaitUndelivered(t, ctx, world, bob, "devices_gone")
	tablet := p.signInUnheard(t, ctx, "tablet")
	from = waiting()
	press()
	told(from)
	awaitUndelivered(t, ctx, world, bob, "")
	p.requireDevices(t, ctx, p.direct, "Dendrite after the next refresh", laptop, tablet)

	// What cannot be told to Dendrite now is told later, after a crash, too, and without anybody asking again.
	token := filepath.Join(filepath.Dir(world.Freshen.ConfigFile), "admin_token")
	good, err := os.ReadFile(token)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, []byte("nobody's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	watch := p.signInUnheard(t, ctx, "watch")
	from = waiting()
	press()
	awaitUndelivered(t, ctx, world, bob, "homeserver_away")
	world.Freshen.Kill()
	if err := os.WriteFile(token, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := world.Freshen.Start(ctx); err != nil {
		t.Fatal(err)
	}
	told(from)
	awaitUndelivered(t, ctx, world, bob, "")
	p.requireDevices(t, ctx, p.direct, "Dendrite after the crash", laptop, tablet, watch)
}

// awaitUndelivered waits until freshen owed says, for a user, what the homeserver was not brought to: "" for nothing.
func awaitUndelivered(t *testing.T, ctx context.Context, world *testbed.World, target id.UserID, want string) {
	t.Helper()
	var list owed.List
	for {
		out, err := world.Freshen.Command(ctx, "owed", "--json").Output()
		if err != nil {
			t.Fatalf("freshen owed: %v\nThe end of its log:\n%s", err, world.Freshen.LogTail())
		}
		list = owed.List{}
		if err := json.Unmarshal(out, &list); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		has := ""
		for _, one := range list.Undelivered {
			if one.Target == target {
				has = one.Hole
			}
		}
		if has == want {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("freshen owed should say %q, and says %+v\n%s", want, list, world.Freshen.LogTail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
