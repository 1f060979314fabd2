package freshen_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"freshen"
)

const bob = id.UserID("@bob:b.org")

func device(deviceID string) string {
	return fmt.Sprintf(`{"device_id": %q, "keys": {"user_id": "@bob:b.org", "device_id": %q}}`, deviceID, deviceID)
}

func body(devices ...string) string {
	return `{"user_id": "@bob:b.org", "stream_id": 5, "devices": [` + strings.Join(devices, ",") + `]}`
}

func master(user, usage string) string {
	return fmt.Sprintf(`{"user_id": %q, "usage": [%q], "keys": {"ed25519:K": "K"}}`, user, usage)
}

// TestParseDeviceList: what real and hostile servers send. A part that is wrong must not lose the user's other devices,
// and nothing of another user's may get in.
func TestParseDeviceList(t *testing.T) {
	type drops = map[freshen.DropReason]int
	for _, row := range []struct {
		name    string
		body    string
		devices []id.DeviceID
		dropped drops
		fails   string
	}{
		{name: "empty list, as for an unknown user", body: body()},
		{name: "two devices", body: body(device("A"), device("B")), devices: []id.DeviceID{"A", "B"}},
		{name: "keys without inner IDs", body: body(`{"device_id": "A", "keys": {"keys": {}}}`), devices: []id.DeviceID{"A"}},
		{name: "unknown fields", body: `{"user_id": "@bob:b.org", "devices": [` + device("A") + `], "org.new": [1]}`, devices: []id.DeviceID{"A"}},
		{name: "display name null", body: body(`{"device_id": "A", "device_display_name": null, "keys": {}}`), devices: []id.DeviceID{"A"}},
		{name: "display name no string", body: body(`{"device_id": "A", "device_display_name": 5, "keys": {}}`), devices: []id.DeviceID{"A"}},
		{name: "a device that is a number", body: body(device("A"), "5"), devices: []id.DeviceID{"A"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "a device that is null", body: body("null", device("A")), devices: []id.DeviceID{"A"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "no device ID", body: body(device("OK"), `{"keys": {}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropBadID: 1}},
		{name: "empty device ID", body: body(device("OK"), `{"device_id": "", "keys": {}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropBadID: 1}},
		{name: "device ID no string", body: body(device("OK"), `{"device_id": 5, "keys": {}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropBadID: 1}},
		{name: "device ID too long", body: body(device("OK"), device(strings.Repeat("x", 256))), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropBadID: 1}},
		{name: "longest device ID", body: body(device(strings.Repeat("x", 255))), devices: []id.DeviceID{id.DeviceID(strings.Repeat("x", 255))}},
		{name: "no keys", body: body(device("OK"), `{"device_id": "A"}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "keys no object", body: body(device("OK"), `{"device_id": "A", "keys": "x"}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "a device twice", body: body(device("A"), device("B"), device("A")), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropDuplicate: 2}},
		{
			name: "a device twice, once broken", body: body(device("A"), device("OK"), `{"device_id": "A", "keys": 5}`),
			devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropDuplicate: 1, freshen.DropNoObject: 1},
		},
		{name: "inner device ID differs", body: body(device("OK"), `{"device_id": "A", "keys": {"device_id": "B"}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropOtherID: 1}},
		{name: "inner user ID differs", body: body(device("OK"), `{"device_id": "A", "keys": {"user_id": "@eve:b.org"}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropOtherID: 1}},
		{name: "inner user ID null", body: body(device("OK"), `{"device_id": "A", "keys": {"user_id": null}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropOtherID: 1}},

		{name: "inner user ID hidden by case", body: body(device("OK"), `{"device_id": "A", "keys": {"user_id": "@eve:b.org", "User_ID": "@bob:b.org"}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropOtherID: 1}},
		{name: "a name twice", body: body(device("B"), `{"device_id": "A", "keys": {"user_id": "@eve:b.org", "user_id": "@bob:b.org"}}`), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "a name twice, deep inside", body: body(device("B"), `{"device_id": "A", "keys": {"signatures": {"@bob:b.org": {"ed25519:A": "x", "ed25519:A": "y"}}}}`), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "a name twice, beside the keys", body: body(device("B"), `{"device_id": "A", "keys": {}, "org.new": [{"x": 1, "x": 2}]}`), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "a name in escapes", body: body(`{"device\u005fid": "\u0041", "k\u0065ys": {"user_id": "\u0040bob:b.org", "device\u005fid": "A"}}`), devices: []id.DeviceID{"A"}},
		{name: "inner user ID hidden by escapes", body: body(device("OK"), `{"device_id": "A", "keys": {"user\u005fid": "@eve:b.org"}}`), devices: []id.DeviceID{"OK"}, dropped: drops{freshen.DropOtherID: 1}},
		{name: "no UTF-8", body: body(device("B"), "{\"device_id\": \"A\", \"keys\": {\"x\": \"\xff\"}}"), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "half a surrogate pair", body: body(device("B"), `{"device_id": "A", "keys": {"x": "\ud800"}}`), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "nested too deeply", body: body(device("B"), `{"device_id": "A", "keys": {"x": "[[{{", "y": `+strings.Repeat("[", 31)+strings.Repeat("]", 31)+`}}`), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "nested as deeply as may be", body: body(`{"device_id": "A", "keys": {"x": "[[\"{{", "y": ` + strings.Repeat("[", 30) + strings.Repeat("]", 30) + `}}`), devices: []id.DeviceID{"A"}},

		{name: "keys too long", body: body(device("B"), `{"device_id": "A", "keys": {"x": "`+strings.Repeat("x", 64<<10)+`"}}`), devices: []id.DeviceID{"B"}, dropped: drops{freshen.DropNoObject: 1}},
		{name: "long keys", body: body(`{"device_id": "A", "keys": {"x": "` + strings.Repeat("x", 63<<10) + `"}}`), devices: []id.DeviceID{"A"}},

		{name: "no device that can be used", body: body("5", `{"device_id": "A"}`), fails: "none of the 2 devices"},
		{name: "null", body: "null", fails: "no user_id"},
		{name: "nothing", body: "", fails: "no device list"},
		{name: "HTML", body: "<html>", fails: "no device list"},
		{name: "a list", body: "[]", fails: "no device list"},
		{name: "half", body: body(device("A"))[:40], fails: "no device list"},
		{name: "two values", body: body() + body(), fails: "no device list"},
		{name: "another user's", body: strings.Replace(body(), "@bob", "@eve", 1), fails: "another user's"},
		{name: "the same user in other capitals", body: strings.Replace(body(), "@bob", "@Bob", 1), fails: "another user's"},
		{name: "no devices", body: `{"user_id": "@bob:b.org"}`, fails: "no devices"},
		{name: "devices null", body: `{"user_id": "@bob:b.org", "devices": null}`, fails: "no devices"},
		{name: "user_id no string", body: `{"user_id": 5, "devices": []}`, fails: "no string"},
		{name: "devices an object", body: `{"user_id": "@bob:b.org", "devices": {}}`, fails: "no device list"},
		{name: "too many devices", body: body(strings.Split(strings.Repeat("5,", freshen.MaxDevices)+"5", ",")...), fails: "over the limit of 10000"},
		{name: "too long", body: strings.Repeat(" ", freshen.MaxDeviceListBytes+1), fails: "over the limit"},
		{name: "half of a device", body: body(device("A"))[:70], fails: "no device list"},
		{name: "nested without end", body: `{"user_id": "@bob:b.org", "devices": ` + strings.Repeat("[", 100_000), fails: "no device list"},
	} {
		t.Run(row.name, func(t *testing.T) {
			list, err := freshen.ParseDeviceList([]byte(row.body), bob)
			if row.fails != "" {
				if err == nil || !strings.Contains(err.Error(), row.fails) || list != nil {
					t.Fatalf("got %v and %v, want an error that says %q", list, err, row.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []id.DeviceID
			for _, d := range list.Devices {
				got = append(got, d.ID)
			}
			if row.dropped == nil {
				row.dropped = drops{}
			}
			if diff := cmp.Diff(row.devices, got); diff != "" || list.Devices == nil {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(row.dropped, list.Dropped); diff != "" {
				t.Errorf("dropped (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMostDevices: a user with very many devices is refreshed, where some homeservers give up at a thousand.
func TestMostDevices(t *testing.T) {
	var devices []string
	for i := range freshen.MaxDevices {
		devices = append(devices, device(strconv.Itoa(i)))
	}
	list, err := freshen.ParseDeviceList([]byte(body(devices...)), bob)
	if err != nil || len(list.Devices) != freshen.MaxDevices {
		t.Fatalf("%v, %v", list, err)
	}
}

// TestCrossSigningKeys: a wrong cross-signing key would make clients warn about, or trust, the wrong person.
func TestCrossSigningKeys(t *testing.T) {
	for _, row := range []struct {
		name, master, selfSigning   string
		hasMaster, hasSelf, dropped bool
	}{
		{"both", master("@bob:b.org", "master"), master("@bob:b.org", "self_signing"), true, true, false},
		{"null, as Synapse and Dendrite send", "null", "null", false, false, false},
		{"master alone", master("@bob:b.org", "master"), "null", true, false, false},
		{"another user's", master("@eve:b.org", "master"), "null", false, false, true},
		{"wrong usage", master("@bob:b.org", "self_signing"), "null", false, false, true},
		{"no object", `"key"`, "null", false, false, true},
		{"usage no list", `{"user_id": "@bob:b.org", "usage": "master", "keys": {"a": "b"}}`, "null", false, false, true},
		{"two keys", `{"user_id": "@bob:b.org", "usage": ["master"], "keys": {"a": "b", "c": "d"}}`, "null", false, false, true},
		{"no keys", `{"user_id": "@bob:b.org", "usage": ["master"], "keys": {}}`, "null", false, false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := fmt.Sprintf(`{"user_id": "@bob:b.org", "devices": [], "master_key": %s, "self_signing_key": %s}`, row.master, row.selfSigning)
			list, err := freshen.ParseDeviceList([]byte(text), bob)
			if err != nil {
				t.Fatal(err)
			}
			if (list.MasterKey != nil) != row.hasMaster || (list.SelfSigningKey != nil) != row.hasSelf || (list.Dropped[freshen.DropCrossSigner] == 1) != row.dropped {
				t.Errorf("master %s, self-signing %s, dropped %v", list.MasterKey, list.SelfSigningKey, list.Dropped)
			}
			if row.hasMaster && string(list.MasterKey) != row.master {
				t.Errorf("the master key's bytes changed to %s", list.MasterKey)
			}
		})
	}
}

// TestStreamID: odd numbers cost the number, not the list.
func TestStreamID(t *testing.T) {
	for text, want := range map[string]int64{"5": 5, "0": 0, "-3": -3, "9223372036854775807": 1<<63 - 1} {
		list, err := freshen.ParseDeviceList([]byte(`{"user_id": "@bob:b.org", "devices": [], "stream_id": `+text+`}`), bob)
		if err != nil || list.StreamID == nil || *list.StreamID != want {
			t.Errorf("%s: %v, %v", text, list, err)
		}
	}
	for _, text := range []string{`"5"`, "5.5", "1e3", "null", "{}", "9223372036854775808"} {
		list, err := freshen.ParseDeviceList([]byte(`{"user_id": "@bob:b.org", "devices": [], "stream_id": `+text+`}`), bob)
		if err != nil || list.StreamID != nil {
			t.Errorf("%s: %v, %v, want a list whose stream is unknown", text, list, err)
		}
	}
}

// TestBytesAreKept: signatures cover unknown fields and exact numbers; one changed byte makes a device untrusted. And
// the list must not keep the whole answer alive.
func TestBytesAreKept(t *testing.T) {
	keys := `{ "b":1.0,  "a" : "\u00e9", "org.unknown":[1e2,  -0], "user_id":"@bob:b.org" }`
	raw := []byte(body(`{"device_id": "A", "keys": ` + keys + `}`))
	list, err := freshen.ParseDeviceList(raw, bob)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw)
	if string(list.Devices[0].Keys) != keys {
		t.Errorf("the keys are %s, want %s", list.Devices[0].Keys, keys)
	}
}

func hashOf(t *testing.T, text string) [32]byte {
	t.Helper()
	list, err := freshen.ParseDeviceList([]byte(text), bob)
	if err != nil {
		t.Fatal(err)
	}
	return list.Hash()
}

// TestHash: a hash that changes for nothing makes every client query again; one that stays the same hides a new device.
func TestHash(t *testing.T) {
	base := hashOf(t, body(device("A"), device("B")))
	for name, same := range map[string]string{
		"order of devices": body(device("B"), device("A")),
		"stream_id":        strings.Replace(body(device("A"), device("B")), "5", "4", 1),
		"order of members": body(`{"keys": {"device_id": "A", "user_id": "@bob:b.org"}, "device_id": "A"}`, device("B")),
		"white space":      body(device("A")+" ", strings.ReplaceAll(device("B"), " ", "")),
	} {
		if hashOf(t, same) != base {
			t.Errorf("%s changes the hash", name)
		}
	}
	seen := map[[32]byte]string{base: "the first"}
	for name, other := range map[string]string{
		"a device fewer":     body(device("A")),
		"none":               body(),
		"another device":     body(device("A"), device("C")),
		"another key":        body(device("A"), `{"device_id": "B", "keys": {"keys": {"ed25519:B": "x"}}}`),
		"a display name":     body(device("A"), `{"device_id": "B", "device_display_name": "x", "keys": {"user_id": "@bob:b.org", "device_id": "B"}}`),
		"a master key":       strings.TrimSuffix(body(device("A"), device("B")), "}") + `, "master_key": ` + master("@bob:b.org", "master") + `}`,
		"a self-signing key": strings.TrimSuffix(body(device("A"), device("B")), "}") + `, "self_signing_key": ` + master("@bob:b.org", "self_signing") + `}`,
	} {
		h := hashOf(t, other)
		if before, dup := seen[h]; dup {
			t.Errorf("%s has the hash of %s", name, before)
		}
		seen[h] = name
	}
}

// FuzzParseDeviceList: no answer of a stranger panics, and what is accepted is the target's, bounded, and stays the same
// when kept and read again (as the database does).
func FuzzParseDeviceList(f *testing.F) {
	for _, s := range []string{
		body(), body(device("A"), device("B"), "5", "null"), body(device("A"), device("A")), "null", "{", "[]", `{"user_id": "@bob:b.org", "devices": {}}`,
		`{"user_id": "@bob:b.org", "devices": [{"device_id": "\ud800", "keys": {"a": 1e999}}], "stream_id": 1e3}`,
		`{"user_id": "@bob:b.org", "devices": [], "master_key": ` + master("@bob:b.org", "master") + `, "self_signing_key": null}`,
		`{"user_id": "@bob:b.org", "user_id": "@eve:b.org", "devices": []}`,
		"{\"user_id\": \"@bob:b.org\", \"devices\": [{\"device_id\": \"\xff\", \"keys\": {\"\xff\": 1}}]}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		kept := bytes.Clone(data)
		list, err := freshen.ParseDeviceList(data, bob)
		if !bytes.Equal(kept, data) {
			t.Fatal("the body was changed")
		}
		if err != nil {
			return
		}
		if list.UserID != bob || len(list.Devices) > freshen.MaxDevices {
			t.Fatalf("a list of %s with %d devices", list.UserID, len(list.Devices))
		}
		seen := map[id.DeviceID]bool{}
		for _, d := range list.Devices {
			if d.ID == "" || seen[d.ID] || !jsontext.Value(d.Keys).IsValid() || d.Keys[0] != '{' {
				t.Fatalf("the device %+v got through", d)
			}
			seen[d.ID] = true
		}
		stored, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		again, err := freshen.ParseDeviceList(stored, bob)
		if err != nil {
			t.Fatalf("what was kept cannot be read again: %v", err)
		}
		if again.Hash() != list.Hash() {
			t.Fatalf("kept and read again, the list has another hash:\n%s\n%s", data, stored)
		}
	})
}
