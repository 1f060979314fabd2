//go:build goolm

package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
	"freshen/internal/testbed"
	"freshen/internal/testbed/scenario"
	"freshen/internal/testbed/testbedtest"
)

// signer is a user of B whose keys the test makes itself, so that it can tell whether signatures over them hold.
type signer struct {
	fedtest.Person
	at      *caller
	main    id.DeviceID         // the one that at is signed in on
	devices map[id.DeviceID]int // to the number of their keys
	crossed bool
}

// meet registers somebody at B, signed in on one device.
func meet(t *testing.T, ctx context.Context, world *testbed.World, localpart string, device id.DeviceID) *signer {
	t.Helper()
	user, token := newUser(t, ctx, world.B, localpart)
	s := &signer{Person: fedtest.NewPerson(user), at: newCaller(t, world.B.URL, token), devices: map[id.DeviceID]int{}}
	s.must(t, ctx, http.MethodPost, "logout", nil) // the device that registered, which has no keys
	s.main = device
	s.signIn(t, ctx, device, 1)
	return s
}

func (s *signer) must(t *testing.T, ctx context.Context, method, path string, body any) answer {
	t.Helper()
	a := s.at.do(t, ctx, method, "/_matrix/client/v3/"+path, encoded(t, body))
	if a.status != http.StatusOK {
		t.Fatalf("%s %s of %s is answered %s", method, path, s.UserID, a)
	}
	return a
}

func encoded(t *testing.T, body any) []byte {
	t.Helper()
	if body == nil {
		body = struct{}{}
	}
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (s *signer) password() map[string]any {
	return map[string]any{"type": "m.login.password", "password": scenario.Password, "identifier": map[string]any{"type": "m.id.user", "user": s.UserID}}
}

// tokenOf signs in on a device of that ID, which logs it out where it was signed in.
func (s *signer) tokenOf(t *testing.T, ctx context.Context, device id.DeviceID) string {
	t.Helper()
	login := s.password()
	login["device_id"], login["initial_device_display_name"] = device, "Bob's "+string(device)
	a := s.at.as("").do(t, ctx, http.MethodPost, "/_matrix/client/v3/login", encoded(t, login))
	var signedIn struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(a.body, &signedIn); err != nil || signedIn.Token == "" {
		t.Fatalf("%s cannot sign in: %s", s.UserID, a)
	}
	return signedIn.Token
}

// signIn signs in on a device, whose keys are those of the number.
func (s *signer) signIn(t *testing.T, ctx context.Context, device id.DeviceID, number int) {
	t.Helper()
	at := s.at.as(s.tokenOf(t, ctx, device))
	if device == s.main {
		s.at = at
	}
	a := at.do(t, ctx, http.MethodPost, "/_matrix/client/v3/keys/upload", encoded(t, map[string]any{"device_keys": s.DeviceKeys(device, number)}))
	if a.status != http.StatusOK {
		t.Fatalf("the keys of %s %s are answered %s", s.UserID, device, a)
	}
	s.devices[device] = number
}

// withPassword is must for what the homeserver wants the password for.
func (s *signer) withPassword(t *testing.T, ctx context.Context, method, path string, body map[string]any) {
	t.Helper()
	a := s.at.do(t, ctx, method, "/_matrix/client/v3/"+path, encoded(t, body))
	var challenge struct {
		Session string `json:"session"`
	}
	if a.status == http.StatusUnauthorized && json.Unmarshal(a.body, &challenge) == nil {
		auth := s.password()
		auth["session"] = challenge.Session
		body["auth"] = auth
		a = s.at.do(t, ctx, method, "/_matrix/client/v3/"+path, encoded(t, body))
	}
	if a.status != http.StatusOK {
		t.Fatalf("%s %s of %s is answered %s", method, path, s.UserID, a)
	}
}

// crossSign publishes cross-signing keys of these numbers.
func (s *signer) crossSign(t *testing.T, ctx context.Context, master, selfSigning int) {
	t.Helper()
	s.Master, s.SelfSigning, s.crossed = fedtest.NewSigner("", master), fedtest.NewSigner("", selfSigning), true
	keys := map[string]any{"master_key": s.CrossSigningKey("master", s.Master)}
	own := s.CrossSigningKey("self_signing", s.SelfSigning)
	s.Master.Sign(own, s.UserID)
	keys["self_signing_key"] = own
	s.withPassword(t, ctx, http.MethodPost, "keys/device_signing/upload", keys)
}

func (s *signer) signOut(t *testing.T, ctx context.Context, device id.DeviceID) {
	t.Helper()
	s.withPassword(t, ctx, http.MethodDelete, "devices/"+string(device), map[string]any{})
	delete(s.devices, device)
}

func (s *signer) signOutEverywhere(t *testing.T, ctx context.Context) {
	t.Helper()
	s.must(t, ctx, http.MethodPost, "logout/all", nil)
	clear(s.devices)
}

// seen is what an answer of /keys/query says of one user.
type seen struct {
	answer              answer
	devices             map[id.DeviceID]json.RawMessage // nil where the user has no entry
	master, selfSigning json.RawMessage
	failed              bool
}

// query asks for these users' devices: for all of each where none are named.
func (c *caller) query(t *testing.T, ctx context.Context, asked map[id.UserID][]id.DeviceID) map[id.UserID]seen {
	t.Helper()
	a := c.do(t, ctx, http.MethodPost, "/_matrix/client/v3/keys/query", encoded(t, map[string]any{"device_keys": asked}))
	var said struct {
		Devices     map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
		Master      map[id.UserID]json.RawMessage                 `json:"master_keys"`
		SelfSigning map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
		Failures    map[string]json.RawMessage                    `json:"failures"`
	}
	if err := json.Unmarshal(a.body, &said); err != nil || a.status != http.StatusOK {
		t.Fatalf("/keys/query is answered %s", a)
	}
	all := map[id.UserID]seen{}
	for user := range asked {
		_, failed := said.Failures[user.Homeserver()]
		all[user] = seen{a, said.Devices[user], said.Master[user], said.SelfSigning[user], failed}
	}
	return all
}

// requireAllTrusted asks for all of these users at once.
func (c *caller) requireAllTrusted(t *testing.T, ctx context.Context, all ...*signer) {
	t.Helper()
	asked := map[id.UserID][]id.DeviceID{}
	for _, s := range all {
		asked[s.UserID] = []id.DeviceID{}
	}
	got := c.query(t, ctx, asked)
	for _, s := range all {
		s.requireTrusted(t, got[s.UserID])
	}
}

// requireTrusted checks what a careful client checks: just the devices that there are, each with the keys that it has now, signed
// by itself and by the self-signing key of now, which the master key of now has signed.
func (s *signer) requireTrusted(t *testing.T, got seen) {
	t.Helper()
	if len(got.devices) != len(s.devices) || got.devices == nil || got.failed {
		t.Fatalf("%s has %d devices now, and clients get %s", s.UserID, len(s.devices), got.answer)
	}
	verify := func(what string, key json.RawMessage, name string, by fedtest.Signer) {
		t.Helper()
		if ok, err := signatures.VerifySignatureJSON(key, s.UserID, name, id.Ed25519(by.Public())); err != nil || !ok {
			t.Errorf("%s has no signature that holds (%v): %s", what, err, key)
		}
	}
	for device, number := range s.devices {
		verify("the device "+string(device), got.devices[device], string(device), fedtest.NewSigner(string(device), number))
	}
	if s.crossed {
		verify("the self-signing key", got.selfSigning, s.Master.Name, s.Master)
		if !strings.Contains(string(got.master), s.Master.Public()) {
			t.Errorf("the master key is not that of now: %s", got.master)
		}
	}
}

// A failure means that clients encrypt for devices that are gone, not for those that are there, or see an identity that was
// reset: with real homeservers, of which one has lost touch with the other and answers from what it had.
func TestFreshKeysWhileTheOtherServerIsDown(t *testing.T) {
	t.Parallel()
	world := testbedtest.Own(t, testbed.Options{Freshen: true, ManyRefreshes: true})
	ctx := testbedtest.Context(t, 2*patience)
	_, token := newUser(t, ctx, world.A, "alice")
	alice := newCaller(t, world.Freshen.URL, token)

	reset := meet(t, ctx, world, "reset", "PHONE")
	reset.crossSign(t, ctx, 11, 12)
	reset.signIn(t, ctx, "PHONE", 1) // with a signature of the self-signing key
	same := meet(t, ctx, world, "same", "BRIDGE")
	fewer := meet(t, ctx, world, "fewer", "PHONE")
	fewer.signIn(t, ctx, "STOLEN", 2)
	none := meet(t, ctx, world, "none", "PHONE")
	all := []*signer{reset, same, fewer, none}
	alice.requireAllTrusted(t, ctx, all...) // which A stores

	world.Link.LoseDeviceLists(true)
	reset.crossSign(t, ctx, 21, 22)
	reset.signIn(t, ctx, "LAPTOP", 3)
	same.signIn(t, ctx, "BRIDGE", 99)
	fewer.signOut(t, ctx, "STOLEN")
	none.signOutEverywhere(t, ctx)

	_, since := alice.syncNow(t, ctx, "")
	for _, s := range all {
		requireAccepted(t, alice.refresh(t, ctx, s.UserID.String()))
	}
	// A client that begins anew hears with its second answer of what it has missed.
	changed, next := alice.syncNow(t, ctx, "")
	if len(changed) != 0 {
		t.Errorf("a first sync names %v", changed)
	}
	for _, since := range []string{since, next} {
		changed, _ = alice.syncNow(t, ctx, since)
		for _, s := range all {
			if !slices.Contains(changed, s.UserID) {
				t.Errorf("%s is not named in %v", s.UserID, changed)
			}
		}
	}

	if err := world.B.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	// A waits 10 s for B at each query.
	alice.requireAllTrusted(t, ctx, all...)
	named := alice.query(t, ctx, map[id.UserID][]id.DeviceID{same.UserID: {"BRIDGE"}, reset.UserID: {"LAPTOP"}, fewer.UserID: {"STOLEN"}})
	if len(named[same.UserID].devices) != 1 || len(named[reset.UserID].devices) != 1 || named[fewer.UserID].devices != nil {
		t.Errorf("asked for by name, two devices that there are and one that is gone: %s", named[same.UserID].answer)
	}
	// And after a restart.
	if err := world.Freshen.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := world.Freshen.Start(ctx); err != nil {
		t.Fatal(err)
	}
	alice.requireAllTrusted(t, ctx, all...)
	// The homeserver alone would have sent its clients astray, or said that it cannot tell.
	alone := alice.at(world.A.URL).query(t, ctx, map[id.UserID][]id.DeviceID{fewer.UserID: {}})[fewer.UserID]
	if !alone.failed && alone.devices["STOLEN"] == nil {
		t.Errorf("A knows by itself: this test shows nothing: %s", alone.answer)
	}
}
