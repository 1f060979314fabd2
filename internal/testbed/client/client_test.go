//go:build goolm

package client_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/testbed"
	"freshen/internal/testbed/client"
	"freshen/internal/testbed/testbedtest"
)

var shared testbedtest.Shared

func TestMain(m *testing.M) { shared.Main(m) }

const (
	password = "correct horse"
	patience = 30 * time.Second
)

var users atomic.Int64

// register makes a new user, named after role, on a homeserver.
func register(t *testing.T, ctx context.Context, on *testbed.Homeserver, role string) *client.Client {
	t.Helper()
	c, err := client.Register(ctx, client.Account{
		URL: on.URL, Localpart: fmt.Sprintf("%s%d", role, users.Add(1)), Password: password, DeviceName: "first",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.StartSync(ctx)
	return c
}

// login signs c's user in on another device.
func login(t *testing.T, ctx context.Context, on *testbed.Homeserver, c *client.Client, name string) *client.Client {
	t.Helper()
	localpart, _, err := c.UserID().Parse()
	if err != nil {
		t.Fatal(err)
	}
	other, err := client.Login(ctx, client.Account{URL: on.URL, Localpart: localpart, Password: password, DeviceName: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	other.StartSync(ctx)
	return other
}

// friends are two users of two homeservers who share an encrypted room and have talked.
type friends struct {
	alice, bob *client.Client
	room       id.RoomID
	// settled is the number of Alice's first /sync answer after everything about Bob's devices so far.
	settled int
}

func makeFriends(t *testing.T, ctx context.Context, world *testbed.World) *friends {
	t.Helper()
	f := &friends{alice: register(t, ctx, world.A, "alice"), bob: register(t, ctx, world.B, "bob")}
	var err error
	if f.room, err = f.alice.CreateEncryptedRoom(ctx, f.bob.UserID()); err != nil {
		t.Fatal(err)
	}
	if err := f.bob.Join(ctx, f.room, world.A.ServerName); err != nil {
		t.Fatal(err)
	}
	if err := f.alice.AwaitMember(ctx, f.room, f.bob.UserID()); err != nil {
		t.Fatal(err)
	}
	if err := f.bob.AwaitMember(ctx, f.room, f.alice.UserID()); err != nil {
		t.Fatal(err)
	}
	f.say(t, ctx, f.alice, "hello", f.bob)
	f.say(t, ctx, f.bob, "hello yourself", f.alice)
	f.settled = f.settle(t, ctx)
	return f
}

// say sends an encrypted message and requires that to reads it.
func (f *friends) say(t *testing.T, ctx context.Context, from *client.Client, text string, to *client.Client) {
	t.Helper()
	message, err := from.Send(ctx, f.room, text)
	if err != nil {
		t.Fatal(err)
	}
	read, err := to.AwaitMessage(ctx, message)
	if err != nil {
		t.Fatal(err)
	}
	if read != text {
		t.Fatalf("%s read %q instead of %q", to.Name(), read, text)
	}
}

// settle returns when Alice has been told every change of a device list that her homeserver knows of: one of her own
// comes to her after them.
func (f *friends) settle(t *testing.T, ctx context.Context) int {
	t.Helper()
	from, err := f.alice.AwaitWaiting(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.alice.SetUpCrossSigning(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := f.alice.AwaitChanged(ctx, from, f.alice.UserID()); err != nil {
		t.Fatal(err)
	}
	next, err := f.alice.AwaitWaiting(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// told says whether Alice's /sync has named Bob since answer number from.
func (f *friends) told(from int) bool {
	return slices.ContainsFunc(f.alice.Syncs(from), func(s client.Sync) bool {
		return slices.Contains(s.Changed, f.bob.UserID())
	})
}

func (f *friends) requireKnown(t *testing.T, ctx context.Context, want ...*client.Client) {
	t.Helper()
	known, err := f.alice.Known(ctx, f.bob.UserID())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(known)), devices(want...); !slices.Equal(got, want) {
		t.Fatalf("Alice knows Bob's devices %v, want %v", got, want)
	}
}

func (f *friends) requireQuery(t *testing.T, ctx context.Context, want ...*client.Client) client.Keys {
	t.Helper()
	keys, _, err := f.alice.QueryKeys(ctx, f.bob.UserID())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(slices.Values(keys.Devices)), devices(want...); !slices.Equal(got, want) {
		t.Fatalf("/keys/query has Bob's devices %v, want %v", got, want)
	}
	return keys
}

func devices(clients ...*client.Client) []id.DeviceID {
	var ids []id.DeviceID
	for _, c := range clients {
		ids = append(ids, c.DeviceID())
	}
	slices.Sort(ids)
	return ids
}

// A failure means that the two homeservers do not federate or that the clients do not encrypt: nothing that is tested
// with them says anything.
func TestClientsTalkAcrossTheFederation(t *testing.T) {
	world := shared.World(t)
	ctx := testbedtest.Context(t, patience)
	f := makeFriends(t, ctx, world)
	f.requireKnown(t, ctx, f.bob)

	laptop := login(t, ctx, world.B, f.bob, "laptop")
	if err := laptop.SetUpCrossSigning(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := f.alice.AwaitChanged(ctx, f.settled, f.bob.UserID()); err != nil {
		t.Fatalf("An update that no link loses must be announced: %v", err)
	}
	f.settle(t, ctx)
	f.requireKnown(t, ctx, f.bob, laptop)
	f.say(t, ctx, f.alice, "to both", laptop)
}

// A failure means that the link does not make lists stale, so that a test of a refresh would pass without one; or that
// Dendrite announces what freshen is there to announce.
func TestLostUpdatesLeaveTheListStale(t *testing.T) {
	world := shared.World(t)
	ctx := testbedtest.Context(t, patience)
	f := makeFriends(t, ctx, world)
	world.Link.LoseDeviceLists(true)
	t.Cleanup(func() { world.Link.LoseDeviceLists(false) })

	laptop := login(t, ctx, world.B, f.bob, "laptop")
	if err := laptop.SetUpCrossSigning(ctx); err != nil {
		t.Fatal(err)
	}
	awaitLost(t, ctx, world, 2, func(edu testbed.LostEDU) bool {
		return edu.Type == "m.signing_key_update" && edu.UserID == string(f.bob.UserID())
	})
	f.say(t, ctx, f.bob, "I have a laptop", f.alice)
	f.settle(t, ctx)
	if f.told(f.settled) {
		t.Fatal("Alice was told of an update that was lost")
	}
	f.requireKnown(t, ctx, f.bob)
	message, err := f.alice.Send(ctx, f.room, "not for the laptop")
	if err != nil {
		t.Fatal(err)
	}
	if err := laptop.AwaitReceived(ctx, message); err != nil {
		t.Fatal(err)
	}
	if err := laptop.CannotRead(message); err != nil {
		t.Fatal(err)
	}

	// Dendrite asks the other server on every query for all devices, so the answer is fresh, and the news of it is told.
	if keys := f.requireQuery(t, ctx, f.bob, laptop); !keys.HasMasterKey || !keys.HasSelfSigningKey {
		t.Errorf("/keys/query lacks Bob's cross-signing keys: %+v", keys)
	}
	if _, err := f.alice.AwaitChanged(ctx, f.settled, f.bob.UserID()); err != nil {
		t.Fatal(err)
	}

	// A lost deletion is never told, not even after a query has found it out.
	from := f.settle(t, ctx)
	f.bob.StopSync()
	if err := laptop.DeleteDevice(ctx, f.bob.DeviceID()); err != nil {
		t.Fatal(err)
	}
	awaitLost(t, ctx, world, 1, func(edu testbed.LostEDU) bool { return edu.Deleted && edu.DeviceID == string(f.bob.DeviceID()) })
	f.requireQuery(t, ctx, laptop)
	f.settle(t, ctx)
	if f.told(from) {
		t.Error("Dendrite announces lost deletions after all")
	}
	f.requireKnown(t, ctx, f.bob, laptop)
}

func awaitLost(t *testing.T, ctx context.Context, world *testbed.World, n int, match func(testbed.LostEDU) bool) {
	t.Helper()
	if err := world.Link.AwaitLost(ctx, n, match); err != nil {
		t.Fatalf("%v: %+v", err, world.Link.Lost())
	}
}

// What freshen counts on in Dendrite's answers. A failure means that a workaround for it can go, or that one is missing.
func TestWhatDendriteAnswers(t *testing.T) {
	world := shared.World(t)
	ctx := testbedtest.Context(t, patience)
	alice := register(t, ctx, world.A, "alice")
	if _, err := alice.AwaitWaiting(ctx); err != nil {
		t.Fatal(err)
	}
	alice.StopSync()
	last := alice.Syncs(0)
	since := last[len(last)-1].NextBatch
	// The token stands still, and the count of keys is there: without it clients would upload keys at every answer.
	want := `{"next_batch":"` + since + `","device_one_time_keys_count":{"signed_curve25519":50}}`
	for _, timeout := range []string{"0", "100"} {
		answer := do(t, ctx, alice, http.MethodGet, "/_matrix/client/v3/sync?timeout="+timeout+"&since="+since)
		if got := strings.TrimSpace(string(answer.Body)); got != want {
			t.Errorf("/sync with timeout=%s while nothing happens is %s, want %s", timeout, got, want)
		}
	}
	answer := do(t, ctx, alice, http.MethodGet, "/_matrix/client/v1/mutual_rooms?user_id=@bob:example.org")
	if answer.Status != http.StatusNotFound || !strings.Contains(string(answer.Body), "M_UNRECOGNIZED") {
		t.Errorf("mutual_rooms is %s", answer)
	}
	answer = do(t, ctx, alice, http.MethodGet, "/_matrix/client/v3/account/whoami")
	if answer.Status != http.StatusOK || !strings.Contains(string(answer.Body), string(alice.DeviceID())) {
		t.Errorf("whoami is %s", answer)
	}
}

func do(t *testing.T, ctx context.Context, c *client.Client, method, pathAndQuery string) *client.Answer {
	t.Helper()
	answer, err := c.DoRaw(ctx, method, pathAndQuery, nil)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}
