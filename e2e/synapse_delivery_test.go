//go:build goolm

package e2e

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"freshen/internal/store/storetest"
	"freshen/internal/testbed"
	"freshen/internal/testbed/client"
	"freshen/internal/testbed/testbedtest"
)

// waiting returns once a poll of Alice's waits at the homeserver, and from where on her client's syncs are counted.
func (p *pair) waiting(t *testing.T, ctx context.Context) (from int) {
	t.Helper()
	from, err := p.alice.AwaitWaiting(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return from
}

// told returns once Alice's client has heard of Bob, and waits again.
func (p *pair) told(t *testing.T, ctx context.Context, from int) {
	t.Helper()
	if _, err := p.alice.AwaitChanged(ctx, from, p.bob.UserID()); err != nil {
		t.Fatalf("%v\nThe end of freshen's log:\n%s\nThe end of the homeserver's:\n%s", err, p.world.Freshen.LogTail(), p.world.A.LogTail())
	}
	p.waiting(t, ctx)
}

// deleteUnheard has another device of Bob's delete his first, of which A does not hear, and returns when what tells of it is
// lost.
func (p *pair) deleteUnheard(t *testing.T, ctx context.Context, by *client.Client) {
	t.Helper()
	p.world.Link.LoseDeviceLists(true)
	p.bob.StopSync()
	if err := by.DeleteDevice(ctx, p.bob.DeviceID()); err != nil {
		t.Fatal(err)
	}
	if err := p.world.Link.AwaitLost(ctx, 1, func(edu testbed.LostEDU) bool { return edu.Deleted && edu.DeviceID == string(p.bob.DeviceID()) }); err != nil {
		t.Fatal(err)
	}
	p.world.Link.LoseDeviceLists(false)
}

// TestSynapseAnnouncesItself: Alice's client talks to Synapse alone, and only the button to freshen. When it fails, a site
// that does not put freshen before /sync has a button that does nothing.
func TestSynapseAnnouncesItself(t *testing.T) {
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{
		A: testbed.Synapse, Freshen: true, Delivery: true,
		Postgres: map[string]*url.URL{"A": storetest.StartPostgres(t, storetest.Options{}).NewDatabase(t)},
	})
	ctx := testbedtest.Context(t, longPatience)
	p := introduced(t, ctx, world, world.A.URL)
	bob := p.bob.UserID()
	press := func(want int) {
		t.Helper()
		if a := p.through.refresh(t, ctx, bob.String()); a.status != want {
			t.Fatalf("the answer should be %d, and is %s\n%s", want, a, world.Freshen.LogTail())
		}
	}
	waiting := func() int { t.Helper(); return p.waiting(t, ctx) }
	told := func(from int) { t.Helper(); p.told(t, ctx, from) }

	laptop := p.signInUnheard(t, ctx, "laptop")
	p.requireDevices(t, ctx, p.direct, "Synapse after the loss", p.bob)
	p.requireCannotRead(t, ctx, "Can your laptop read this already?", laptop)
	from := waiting()
	press(http.StatusAccepted)
	told(from)
	p.requireDevices(t, ctx, p.direct, "Synapse after the refresh", p.bob, laptop)
	p.requireReads(t, ctx, "Can your laptop read this?", laptop)

	// A device that is gone, which Dendrite would not announce.
	from = waiting()
	p.deleteUnheard(t, ctx, laptop)
	press(http.StatusAccepted)
	told(from)
	p.requireDevices(t, ctx, p.direct, "Synapse after the second refresh", laptop)

	// What is owed is told by Synapse as well, without anybody asking again.
	tablet := p.signInUnheard(t, ctx, "tablet")
	from = waiting()
	tablet.StopSync()
	laptop.StopSync()
	if err := world.B.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	press(http.StatusBadGateway)
	if err := world.B.Start(ctx); err != nil {
		t.Fatal(err)
	}
	told(from)
	p.requireDevices(t, ctx, p.direct, "Synapse after the debt was paid", laptop, tablet)

	awaitUndelivered(t, ctx, world, bob, "")
	// Without devices, which Synapse stores and announces to nobody.
	world.Link.LoseDeviceLists(true)
	bobs := newCaller(t, world.B.URL, laptop.Token())
	if a := bobs.do(t, ctx, http.MethodPost, "/_matrix/client/v3/logout/all", []byte("{}")); a.status != http.StatusOK {
		t.Fatalf("Bob cannot sign out: %s", a)
	}
	if err := world.Link.AwaitLost(ctx, 1, func(edu testbed.LostEDU) bool { return edu.Deleted && edu.DeviceID == string(laptop.DeviceID()) }); err != nil {
		t.Fatal(err)
	}
	world.Link.LoseDeviceLists(false)
	press(http.StatusAccepted)
	awaitUndelivered(t, ctx, world, bob, "no_devices")
	p.requireDevices(t, ctx, p.direct, "Synapse when Bob has signed out everywhere")

	// Synapse would have looked at what is marked every 30 s; it was told each time.
	if log, err := os.ReadFile(world.A.LogFile); err != nil || strings.Count(string(log), "Resync for ['"+bob.String()+"']") < 4 {
		t.Errorf("Synapse was not told to fetch at once (%v):\n%s", err, log)
	}
	if log, err := os.ReadFile(world.Freshen.LogFile); err != nil || strings.Contains(string(log), "homeserver.synapse") {
		t.Errorf("freshen has not delivered in order (%v):\n%s", err, log)
	}
}
