//go:build goolm

package e2e

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite" // freshen's own database

	"freshen/internal/homeserver"
	"freshen/internal/store/storetest"
	"freshen/internal/testbed"
	"freshen/internal/testbed/client"
	"freshen/internal/testbed/scenario"
	"freshen/internal/testbed/testbedtest"
)

// longPatience bounds a story between two Synapses, which take their time on a busy machine.
const longPatience = 3 * time.Minute

// pair are Alice at A, through freshen, and Bob at B, who share an encrypted room and have talked: A has Bob's devices in
// its cache, and Alice's client has heard of all changes so far.
type pair struct {
	world      *testbed.World
	alice, bob *client.Client
	room       id.RoomID
	// direct is Alice asking A itself, past freshen; through is she asking freshen.
	direct, through *caller
}

func introduced(t *testing.T, ctx context.Context, world *testbed.World, through string) *pair {
	t.Helper()
	p := &pair{world: world}
	p.alice = newClient(t, ctx, through, "alice")
	p.bob = newClient(t, ctx, world.B.URL, "bob")
	p.direct, p.through = newCaller(t, world.A.URL, p.alice.Token()), newCaller(t, world.Freshen.URL, p.alice.Token())
	p.alice.StartSync(ctx)
	p.bob.StartSync(ctx)
	var err error
	if p.room, err = p.alice.CreateEncryptedRoom(ctx, p.bob.UserID()); err != nil {
		t.Fatal(err)
	}
	if err := p.bob.Join(ctx, p.room, world.A.ServerName); err != nil {
		t.Fatal(err)
	}
	if err := p.alice.AwaitMember(ctx, p.room, p.bob.UserID()); err != nil {
		t.Fatal(err)
	}
	p.requireReads(t, ctx, "Hello Bob", p.bob)
	p.settle(t, ctx)
	return p
}

func newClient(t *testing.T, ctx context.Context, url, localpart string) *client.Client {
	t.Helper()
	c, err := client.Register(ctx, client.Account{
		URL: url, Localpart: fmt.Sprintf("%s%d", localpart, people.Add(1)), Password: scenario.Password, DeviceName: "phone",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// settle returns the number of the first answer after everything that Alice's homeserver has to say of Bob so far: a change
// of her own, made now, comes to her after it.
func (p *pair) settle(t *testing.T, ctx context.Context) int {
	t.Helper()
	from, err := p.alice.AwaitWaiting(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.alice.SetUpCrossSigning(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := p.alice.AwaitChanged(ctx, from, p.alice.UserID()); err != nil {
		t.Fatal(err)
	}
	if from, err = p.alice.AwaitWaiting(ctx); err != nil {
		t.Fatal(err)
	}
	return from
}

// signIn adds a device of Bob's.
func (p *pair) signIn(t *testing.T, ctx context.Context, name string) *client.Client {
	t.Helper()
	localpart, _, err := p.bob.UserID().Parse()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Login(ctx, client.Account{URL: p.world.B.URL, Localpart: localpart, Password: scenario.Password, DeviceName: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.StartSync(ctx)
	return c
}

// signInUnheard adds a device of Bob's of which A does not hear, and returns when what tells of it is lost.
func (p *pair) signInUnheard(t *testing.T, ctx context.Context, name string) *client.Client {
	t.Helper()
	p.world.Link.LoseDeviceLists(true)
	c := p.signIn(t, ctx, name)
	if err := p.world.Link.AwaitLost(ctx, 1, func(edu testbed.LostEDU) bool {
		return edu.HasKeys && edu.DeviceID == string(c.DeviceID())
	}); err != nil {
		t.Fatal(err)
	}
	p.world.Link.LoseDeviceLists(false)
	return c
}

func (p *pair) requireReads(t *testing.T, ctx context.Context, text string, device *client.Client) {
	t.Helper()
	message, err := p.alice.Send(ctx, p.room, text)
	if err != nil {
		t.Fatal(err)
	}
	if read, err := device.AwaitMessage(ctx, message); err != nil || read != text {
		t.Fatalf("%s reads %q: %v", device.Name(), read, err)
	}
}

func (p *pair) requireCannotRead(t *testing.T, ctx context.Context, text string, device *client.Client) {
	t.Helper()
	message, err := p.alice.Send(ctx, p.room, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := device.AwaitReceived(ctx, message); err != nil {
		t.Fatal(err)
	}
	if err := device.CannotRead(message); err != nil {
		t.Fatal(err)
	}
}

// requireDevices asks for Bob's keys and requires exactly these devices.
func (p *pair) requireDevices(t *testing.T, ctx context.Context, from *caller, what string, devices ...*client.Client) {
	t.Helper()
	if got, want := p.devices(t, ctx, from), deviceIDs(devices); !slices.Equal(got, want) {
		t.Fatalf("%s: Bob's devices are %v, and %v is answered\n%s", what, want, got, p.world.A.LogTail())
	}
}

func (p *pair) devices(t *testing.T, ctx context.Context, from *caller) []id.DeviceID {
	t.Helper()
	bob := p.bob.UserID()
	a := from.do(t, ctx, http.MethodPost, "/_matrix/client/v3/keys/query", fmt.Appendf(nil, `{"device_keys":{%q:[]}}`, bob))
	var body struct {
		Keys map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
	}
	if err := json.Unmarshal(a.body, &body); a.status != http.StatusOK || err != nil {
		t.Fatalf("/keys/query is answered %s", a)
	}
	var ids []id.DeviceID
	for device := range body.Keys[bob] {
		ids = append(ids, device)
	}
	slices.Sort(ids)
	return ids
}

func deviceIDs(devices []*client.Client) []id.DeviceID {
	ids := make([]id.DeviceID, len(devices))
	for i, device := range devices {
		ids[i] = device.DeviceID()
	}
	slices.Sort(ids)
	return ids
}

// TestBetweenSynapses: when it fails, the keys that Alice's client gets are those of Synapse's stale cache, or freshen
// goes on serving its own when Synapse knows better.
func TestBetweenSynapses(t *testing.T) {
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{
		A: testbed.Synapse, B: testbed.Synapse, Freshen: true,
		Postgres: map[string]*url.URL{"A": storetest.StartPostgres(t, storetest.Options{}).NewDatabase(t)},
	})
	ctx := testbedtest.Context(t, longPatience)
	p := introduced(t, ctx, world, world.Freshen.URL)
	bob := p.bob.UserID()
	p.requireDevices(t, ctx, p.direct, "before anything is lost", p.bob)

	laptop := p.signInUnheard(t, ctx, "laptop")
	p.requireDevices(t, ctx, p.direct, "Synapse alone after the loss", p.bob)
	p.requireDevices(t, ctx, p.through, "through freshen, which has not been asked yet", p.bob)
	p.requireCannotRead(t, ctx, "Can your laptop read this already?", laptop)

	from, err := p.alice.AwaitWaiting(ctx)
	if err != nil {
		t.Fatal(err)
	}
	requireAccepted(t, p.through.refresh(t, ctx, bob.String()))
	if _, err := p.alice.AwaitChanged(ctx, from, bob); err != nil {
		t.Fatal(err)
	}
	if _, err := p.alice.AwaitWaiting(ctx); err != nil {
		t.Fatal(err)
	}
	p.requireDevices(t, ctx, p.through, "through freshen after the refresh", p.bob, laptop)
	p.requireDevices(t, ctx, p.direct, "Synapse alone after the refresh", p.bob)
	p.requireReads(t, ctx, "Can your laptop read this?", laptop)

	t.Run("sliding sync", func(t *testing.T) { slidingSyncTells(t, ctx, p) })
	var watch *client.Client
	t.Run("mutual rooms", func(t *testing.T) { watch = mutualRoomsAreAsked(t, ctx, p) })
	if t.Failed() {
		return
	}

	requireSplices(t, ctx, "synapse", p.direct)

	// The next update names a predecessor that Synapse has not seen, so it asks for the whole list by itself.
	if from, err = p.alice.AwaitWaiting(ctx); err != nil {
		t.Fatal(err)
	}
	tablet := p.signIn(t, ctx, "tablet")
	if _, err := p.alice.AwaitChanged(ctx, from, bob); err != nil {
		t.Fatal(err)
	}
	if err := p.awaitDevices(t, ctx, p.direct, p.bob, laptop, watch, tablet); err != nil {
		t.Fatalf("Synapse does not heal by itself: %v\n%s", err, world.A.LogTail())
	}
	p.requireDevices(t, ctx, p.through, "through freshen after Synapse healed", p.bob, laptop, watch, tablet)
	p.awaitKnown(t, ctx, tablet) // her client asks for his keys when it hears of either update, in its own time
	p.requireReads(t, ctx, "Can your tablet read this?", tablet)
	p.requireRetired(t, ctx)
}

// awaitKnown returns once Alice's own client knows the device.
func (p *pair) awaitKnown(t *testing.T, ctx context.Context, device *client.Client) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		known, err := p.alice.Known(ctx, device.UserID())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := known[device.DeviceID()]; ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Alice's client never learns of %s, and knows %v", device.Name(), known)
		case <-tick.C:
		}
	}
}

// awaitDevices asks until Synapse itself has them. It says that a list changed twice where the keys come in two updates.
func (p *pair) awaitDevices(t *testing.T, ctx context.Context, from *caller, devices ...*client.Client) error {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		got, want := p.devices(t, ctx, from), deviceIDs(devices)
		if slices.Equal(got, want) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("Bob's devices are %v, and %v is answered: %w", want, got, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// requireRetired stops freshen, which writes what it has in memory, and looks whether it still keeps Bob's list.
func (p *pair) requireRetired(t *testing.T, ctx context.Context) {
	t.Helper()
	if err := p.world.Freshen.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", p.world.Freshen.DatabaseFile)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var retired bool
	if err := db.QueryRowContext(ctx, `SELECT list IS NULL FROM kept_lists WHERE user_id = ?`, p.bob.UserID()).Scan(&retired); err != nil {
		t.Fatal(err)
	}
	if !retired {
		t.Error("Synapse has healed, and freshen still keeps Bob's list")
	}
}

// slidingSyncTells requires that a client with sliding sync hears of a refresh, where this Synapse has sliding sync.
func slidingSyncTells(t *testing.T, ctx context.Context, p *pair) {
	const path, flag = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", "org.matrix.simplified_msc3575"
	_, token := newUser(t, ctx, p.world.A, "carol")
	carol := newCaller(t, p.world.Freshen.URL, token)
	if a := carol.do(t, ctx, http.MethodGet, "/_matrix/client/versions", nil); !strings.Contains(string(a.body), flag) {
		a := carol.do(t, ctx, http.MethodPost, path, []byte(`{}`))
		requireError(t, a, http.StatusNotFound, "M_UNRECOGNIZED")
		return
	}
	poll := func(pos string) (next string, changed []id.UserID) {
		t.Helper()
		query := "?timeout=0"
		if pos != "" {
			query += "&pos=" + url.QueryEscape(pos)
		}
		a := carol.do(t, ctx, http.MethodPost, path+query, []byte(`{"conn_id":"encryption","extensions":{"e2ee":{"enabled":true}}}`))
		var body struct {
			Pos        string `json:"pos"`
			Extensions struct {
				E2EE struct {
					DeviceLists struct {
						Changed []id.UserID `json:"changed"`
					} `json:"device_lists"`
				} `json:"e2ee"`
			} `json:"extensions"`
		}
		if err := json.Unmarshal(a.body, &body); err != nil || body.Pos == "" {
			t.Fatalf("sliding sync is answered %s", a)
		}
		return body.Pos, body.Extensions.E2EE.DeviceLists.Changed
	}
	pos, changed := poll("")
	if slices.Contains(changed, p.bob.UserID()) {
		t.Error("a first answer names Bob")
	}
	requireAccepted(t, carol.refresh(t, ctx, p.bob.UserID().String()))
	next, changed := poll(pos)
	if !slices.Contains(changed, p.bob.UserID()) {
		t.Error("Carol refreshed Bob's list and is not told in sliding sync")
	}
	// Where nothing happens Synapse's pos stands still, and a position that stands still tells of a lost answer three times.
	for range 3 {
		next, changed = poll(next)
	}
	if slices.Contains(changed, p.bob.UserID()) {
		t.Error("Carol is told again and again of what she knows")
	}
}

// mutualRoomsAreAsked requires that freshen understands this Synapse's mutual_rooms, and that those who share a room with
// Bob are found by it. It returns the device that Bob signs in on for that.
func mutualRoomsAreAsked(t *testing.T, ctx context.Context, p *pair) *client.Client {
	base, err := url.Parse(p.world.A.URL)
	if err != nil {
		t.Fatal(err)
	}
	asking := homeserver.New(base, nil)
	defer asking.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.world.A.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+p.alice.Token())
	rooms, err := asking.MutualRooms(ctx, homeserver.CredentialsOf(request), p.bob.UserID())
	if err != nil || !slices.Equal(rooms, []id.RoomID{p.room}) {
		t.Errorf("Alice shares %v with Bob, and mutual_rooms says %v, %v", p.room, rooms, err)
	}

	// Dave is in the room and has not asked; Alice's request finds him through the rooms that she shares with Bob.
	dave := newClient(t, ctx, p.world.Freshen.URL, "dave")
	dave.StartSync(ctx)
	invite := fmt.Appendf(nil, `{"user_id":%q}`, dave.UserID())
	if a := p.direct.do(t, ctx, http.MethodPost, "/_matrix/client/v3/rooms/"+url.PathEscape(p.room.String())+"/invite", invite); a.status != http.StatusOK {
		t.Fatalf("Dave cannot be invited: %s", a)
	}
	if err := dave.Join(ctx, p.room, p.world.A.ServerName); err != nil {
		t.Fatal(err)
	}
	if err := dave.AwaitMember(ctx, p.room, p.bob.UserID()); err != nil {
		t.Fatal(err)
	}
	from, err := dave.AwaitWaiting(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := dave.SetUpCrossSigning(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := dave.AwaitChanged(ctx, from, dave.UserID()); err != nil {
		t.Fatal(err)
	}
	if from, err = dave.AwaitWaiting(ctx); err != nil {
		t.Fatal(err)
	}
	watch := p.signInUnheard(t, ctx, "watch")
	requireAccepted(t, p.through.refresh(t, ctx, p.bob.UserID().String()))
	if _, err := dave.AwaitChanged(ctx, from, p.bob.UserID()); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(p.world.A.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "mutual_rooms?user_id=") {
		t.Error("freshen has not asked for mutual_rooms")
	}
	return watch
}
