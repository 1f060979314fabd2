package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
)

// signed is a list as real clients sign it, which the tests change.
type signed struct {
	fedtest.Person
	devices     map[id.DeviceID]int // to the number of their keys
	streamID    int
	master      bool
	selfSigning bool
}

func sign(user id.UserID, devices ...id.DeviceID) *signed {
	s := &signed{Person: fedtest.NewPerson(user), devices: map[id.DeviceID]int{}, streamID: 5, master: true, selfSigning: true}
	for i, d := range devices {
		s.devices[d] = i + 1
	}
	return s
}

// reset makes new cross-signing keys, from these numbers.
func (s *signed) reset(master, selfSigning int) {
	s.Master, s.SelfSigning = fedtest.NewSigner("", master), fedtest.NewSigner("", selfSigning)
}

func (s *signed) list() []byte {
	devices := []fedtest.Object{}
	for d, number := range s.devices {
		devices = append(devices, fedtest.Object{"device_id": d, "device_display_name": "of " + string(d), "keys": s.DeviceKeys(d, number)})
	}
	list := fedtest.Object{"user_id": s.UserID, "stream_id": s.streamID, "devices": devices}
	if s.master {
		list["master_key"] = s.CrossSigningKey("master", s.Master)
	}
	if s.selfSigning {
		key := s.CrossSigningKey("self_signing", s.SelfSigning)
		s.Master.Sign(key, s.UserID)
		list["self_signing_key"] = key
	}
	raw, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	return raw
}

// queried is what a client reads of one user in the answer of a key query.
type queried struct {
	devices             map[id.DeviceID]json.RawMessage
	master, selfSigning json.RawMessage
}

func (w *world) queried(user id.UserID) (q queried) {
	w.t.Helper()
	got := w.query(aliceToken, ask(user))
	var answer struct {
		Devices     map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
		Master      map[id.UserID]json.RawMessage                 `json:"master_keys"`
		SelfSigning map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
	}
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
		w.t.Fatalf("the answer %.300q is no JSON: %v", got.body, err)
	}
	return queried{answer.Devices[user], answer.Master[user], answer.SelfSigning[user]}
}

// trusts checks what a careful client checks: that the devices are those of the list, with these keys, each signed by
// itself and by the self-signing key, which the master key has signed.
func (w *world) trusts(when string, s *signed) {
	w.t.Helper()
	q := w.queried(s.UserID)
	if len(q.devices) != len(s.devices) || (q.master != nil) != s.master || (q.selfSigning != nil) != s.selfSigning {
		w.t.Fatalf("%s: %d devices, master key %s, self-signing key %s; want %d, %v, %v",
			when, len(q.devices), q.master, q.selfSigning, len(s.devices), s.master, s.selfSigning)
	}
	if s.selfSigning {
		w.verify(when+": the self-signing key", q.selfSigning, s, s.Master.Name, s.Master)
	}
	for d, number := range s.devices {
		own := fedtest.NewSigner(string(d), number)
		w.verify(fmt.Sprintf("%s: device %s", when, d), q.devices[d], s, string(d), own)
		w.verify(fmt.Sprintf("%s: device %s, cross-signed", when, d), q.devices[d], s, s.SelfSigning.Name, s.SelfSigning)
		if !strings.Contains(string(q.devices[d]), `"unsigned":{"device_display_name":"of `+string(d)+`"}`) {
			w.t.Errorf("%s: the name of device %s is lost: %s", when, d, q.devices[d])
		}
	}
}

func (w *world) verify(what string, key json.RawMessage, s *signed, keyName string, by fedtest.Signer) {
	w.t.Helper()
	ok, err := signatures.VerifySignatureJSON(key, s.UserID, keyName, id.Ed25519(by.Public()))
	if err != nil || !ok {
		w.t.Errorf("%s has no signature that holds (%v): %s", what, err, key)
	}
}

// contact is somebody with whom Alice shares a room, whom the homeserver knows with one old device.
func (w *world) contact(r *remote, localpart string, devices ...id.DeviceID) *signed {
	w.t.Helper()
	s := sign(r.user(localpart), devices...)
	w.hs.SetRoom("!r:x", alice, carol, s.UserID)
	w.homeserverSays(http.StatusOK, stale(s.UserID))
	r.hs.SetList(s.UserID, s.list())
	w.refreshed(aliceToken, s.UserID)
	return s
}

// becomesList is a refresh after the user's list has changed.
func (w *world) becomesList(r *remote, s *signed) {
	w.t.Helper()
	r.hs.SetList(s.UserID, s.list())
	w.refreshed(aliceToken, s.UserID)
}

// A signature that does not hold any more would make every device of the contact one that is not to be trusted.
func TestSignaturesHoldThroughAll(t *testing.T) {
	w := running(t)
	bob := w.contact(w.remote(), "bob", "PHONE", "LAPTOP", "<&>\u2028")
	w.trusts("after the refresh", bob)
	w.stop()
	w.start()
	w.trusts("after a restart", bob)
}

// A user whose client lost its way while it set up cross-signing has a master key and nothing signed by it: their devices
// must still be got, and the keys that the homeserver has from before must not vouch for them.
func TestAMasterKeyWithoutASelfSigningKey(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := w.contact(r, "bob", "PHONE")
	bob.selfSigning = false
	bob.reset(11, 12)
	w.becomesList(r, bob)
	old := strings.Replace(stale(bob.UserID), `"user_signing_keys"`, fmt.Sprintf(`"self_signing_keys":{%q:{"usage":["self_signing"]}},"user_signing_keys"`, bob.UserID), 1)
	w.homeserverSays(http.StatusOK, old)
	w.trusts("without a self-signing key", bob)
	if got := w.query(aliceToken, ask(bob.UserID)).body; strings.Contains(got, "mine") {
		t.Errorf("Alice's signature of the old master key stands on the new one: %s", got)
	}
	bob.master = false
	w.becomesList(r, bob)
	w.trusts("without any cross-signing key", bob)
}

// Bob resets his cross-signing while his list is on its way: the list may have been made before that or after. Whatever
// the homeserver tells of it meanwhile, the client must not be left with keys of both kinds, or with the old ones.
func TestACrossSigningResetDuringARefresh(t *testing.T) {
	l := live(t)
	w, r := l.world, l.r
	bob := w.contact(r, "bob", "PHONE")
	before := bob.list()
	asked := make(chan struct{}, 10)
	answers := make(chan struct{})
	r.serve(http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
		asked <- struct{}{}
		select {
		case <-answers:
			_, _ = rw.Write(before)
		case <-rq.Context().Done():
		}
	}))
	done := make(chan reply, 2)
	go func() { done <- w.refresh(aliceToken, bob.UserID) }()
	await(t, asked, "the fetch")
	bob.reset(21, 22)
	r.hs.SetList(bob.UserID, bob.list())
	l.announced()
	// A client that asks at once waits for the same fetch, is not given what came of it, and has it made once more.
	early := make(chan reply, 1)
	go func() { early <- w.query(aliceToken, ask(bob.UserID)) }()
	r.up()
	close(answers)
	if got := await(t, done, "the refresh"); got.status != http.StatusAccepted {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if got := await(t, early, "the early query"); strings.Contains(got.body, fedtest.NewSigner("", -1).Public()) {
		t.Errorf("the early query was given the old master key as fresh: %s", got.body)
	}
	w.trusts("after the reset", bob)
	// Bob's other server-side half-steps are lists like any other: the new master key, and devices not yet signed by it.
	bob.reset(31, 32)
	bob.selfSigning = false
	w.becomesList(r, bob)
	w.trusts("half way through another reset", bob)
	bob.selfSigning = true
	w.becomesList(r, bob)
	w.trusts("after that reset", bob)
}

// A restored backup or a rebuilt bridge comes back as the same device with other keys: the homeserver's old ones would
// have messages encrypted for nobody.
func TestADeviceThatKeepsItsIDWithANewKey(t *testing.T) {
	w := running(t)
	w.introduce(aliceToken, alice)
	r := w.remote()
	bob := w.contact(r, "bob", "PHONE", "BRIDGE")
	bob.devices["BRIDGE"] = 99
	w.becomesList(r, bob)
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob.UserID)
	w.trusts("with a new key", bob)
	// The homeserver that knows the device, but its old key, has not healed.
	old := sign(bob.UserID, "PHONE", "BRIDGE")
	w.homeserverSays(http.StatusOK, fmt.Sprintf(`{"device_keys":{%q:{"PHONE":%s,"BRIDGE":%s}}}`, bob.UserID,
		must(json.Marshal(old.DeviceKeys("PHONE", 1))), must(json.Marshal(old.DeviceKeys("BRIDGE", 2)))))
	w.trusts("put over the old key", bob)
	w.trusts("and once more", bob)
}

func must(raw []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return raw
}

// Synapse drops a list of over 1,000 devices and calls it valid. A bridge or a test account has that many.
func TestAUserWith1001Devices(t *testing.T) {
	w := running(t)
	r := w.remote()
	var devices []id.DeviceID
	for i := range 1001 {
		devices = append(devices, id.DeviceID(fmt.Sprintf("DEVICE%04d", i)))
	}
	bob := w.contact(r, "bob", devices...)
	w.trusts("with 1,001 devices", bob)
	if got := devicesIn(t, w.query(aliceToken, ask(bob.UserID, "DEVICE1000")), bob.UserID); len(got) != 1 {
		t.Errorf("of the one that was asked for, %d came", len(got))
	}
	delete(bob.devices, "DEVICE0500")
	w.becomesList(r, bob)
	w.trusts("with one fewer", bob)
}

// Who signs a device out has lost it, or had it stolen: nothing may be encrypted for it any more.
func TestADeletedDevice(t *testing.T) {
	w := running(t)
	w.introduce(aliceToken, alice)
	r := w.remote()
	bob := w.contact(r, "bob", "OLD", "NEW", "NEWER")
	for _, gone := range []id.DeviceID{"OLD", "NEW", "NEWER"} {
		delete(bob.devices, gone)
		w.becomesList(r, bob)
		wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob.UserID)
		w.trusts("without "+string(gone), bob)
	}
	if q := w.queried(bob.UserID); q.devices == nil {
		t.Error("there is no entry for a user whose devices are all gone: a client keeps those that it knows")
	}
	// And of devices asked for by name the same is said.
	if got := devicesIn(t, w.query(aliceToken, ask(bob.UserID, "OLD")), bob.UserID); got == nil || len(got) != 0 {
		t.Errorf("asked for a device of a user who has none, got %v", got)
	}
}

// A server that was set up anew begins to count at the beginning. A list that looks older by its number is the newer one.
func TestAServerThatComesBackRebuilt(t *testing.T) {
	w := running(t)
	w.introduce(aliceToken, alice)
	r := w.remote()
	bob := w.contact(r, "bob", "BEFORE")
	bob.streamID = 4711
	w.becomesList(r, bob)
	bob.streamID, bob.devices = 3, map[id.DeviceID]int{"AFTER": 7}
	bob.reset(41, 42)
	w.becomesList(r, bob)
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob.UserID)
	w.trusts("after the rebuild", bob)
	// The number alone is no change: nobody but who asked hears of it.
	w.query(carolToken, ask(bob.UserID))
	w.exchange(carolToken, "since=c1&timeout=0", `{"next_batch":"c2"}`)
	w.exchange(carolToken, "since=c2&timeout=0", `{"next_batch":"c3"}`)
	bob.streamID = 2
	w.becomesList(r, bob)
	if got := w.exchange(carolToken, "since=c3&timeout=0", `{"next_batch":"c3"}`); got != `{"next_batch":"c3"}` {
		t.Errorf("a list that says the same was announced to everybody: %s", got)
	}
}

// A client that lost its sync token, but not its crypto store, begins anew without a since. The first answer carries no
// device_lists. What the device had not heard of comes with the second; what it had, it must ask for by itself, as
// clients do for everybody whom they track, and gets the kept list.
func TestANewSyncWithAKeptCryptoStore(t *testing.T) {
	w := running(t)
	w.introduce(aliceToken, alice)
	r := w.remote()
	bob := w.contact(r, "bob", "PHONE")
	bob.devices["LAPTOP"] = 2
	w.becomesList(r, bob)
	if got := w.exchange(aliceToken, "timeout=0", `{"next_batch":"n1"}`); got != `{"next_batch":"n1"}` {
		t.Errorf("a first sync became %s", got)
	}
	wantChanged(t, w.exchange(aliceToken, "since=n1&timeout=0", `{"next_batch":"n2"}`), bob.UserID)
	// It has heard, syncs on, and loses its token again.
	w.exchange(aliceToken, "since=n2&timeout=0", `{"next_batch":"n3"}`)
	if got := w.exchange(aliceToken, "timeout=0", `{"next_batch":"n4"}`); got != `{"next_batch":"n4"}` {
		t.Errorf("another first sync became %s", got)
	}
	if got := w.exchange(aliceToken, "since=n4&timeout=0", `{"next_batch":"n5"}`); got != `{"next_batch":"n5"}` {
		t.Errorf("what was heard of came again: %s", got)
	}
	w.trusts("asked for by the client itself", bob)
	// A store that is older than what was heard: the button is what is left.
	w.refreshed(aliceToken, bob.UserID)
	wantChanged(t, w.exchange(aliceToken, "since=n5&timeout=0", `{"next_batch":"n6"}`), bob.UserID)
}
