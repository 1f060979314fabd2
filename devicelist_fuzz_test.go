package freshen_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"freshen"
)

// FuzzKeptDeviceList: what is accepted from a stranger is what clients may be told, and stays the same on its way
// through the database. In full, for each accepted body:
//
//  1. the list is the target's, shares no memory with the body and has at most MaxDevices devices;
//  2. each device has an ID of 1 to 255 bytes of UTF-8 that no other has, and its keys are a JSON object that every
//     client can read (no name twice, all UTF-8, at most 64 KiB) and that names no other user and no other device;
//  3. a cross-signing key is a JSON object of the target and of its usage, with one key;
//  4. nothing is lost silently: devices kept and devices dropped are together those that came;
//  5. Encode and DecodeKept give the same list with the same hash, and ParseDeviceList of what Encode wrote drops nothing.
func FuzzKeptDeviceList(f *testing.F) {
	for _, seed := range []string{
		body(), body(device("A"), device("B"), "5", "null", "[]"), body(device("A"), device("B"), device("B")),
		body(`{"device_id": "A", "keys": {}, "device_display_name": "\ud83d\ude00"}`, `{"device_id": "\u0041", "keys": {}}`),
		body(`{"device_id": "A", "keys": {"user_id": "@eve:b.org"}}`, `{"device_id": "B", "keys": {"device_id": "A"}}`, device("C")),
		body(`{"device_id": "A", "keys": {"a": 1.0, "b": 1e999, "c": -0}}`), body("{\"device_id\": \"\xff\", \"keys\": {}}", device("A")),
		`{"user_id": "@bob:b.org", "devices": [], "master_key": ` + master("@bob:b.org", "master") + `, "self_signing_key": ` + master("@bob:b.org", "self_signing") + `}`,
		`{"user_id": "@bob:b.org", "devices": [], "master_key": ` + master("@eve:b.org", "master") + `, "self_signing_key": null, "stream_id": 9223372036854775807}`,
		`{"user_id": "@bob:b.org", "user_id": null, "devices": null, "devices": [], "stream_id": 1e3}`,
		`{"user_id": "@bob:b.org", "devices": [` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `, ` + device("A") + `], "__proto__": {}}`,
		"\xef\xbb\xbf" + body(), body() + body(), "null", "[]", `""`, "NaN", " ", strings.Repeat("[", 1000),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		came := len(devicesIn(data))
		list, err := freshen.ParseDeviceList(data, bob)
		if err != nil {
			return
		}
		clear(data)
		if list.UserID != bob || len(list.Devices) > freshen.MaxDevices {
			t.Fatalf("a list of %s with %d devices", list.UserID, len(list.Devices))
		}
		dropped := 0
		for reason, n := range list.Dropped {
			if reason != freshen.DropCrossSigner {
				dropped += n
			}
		}
		if len(list.Devices)+dropped != came {
			t.Fatalf("of %d devices %d were kept and %d dropped", came, len(list.Devices), dropped)
		}
		seen := map[id.DeviceID]bool{}
		for _, d := range list.Devices {
			if d.ID == "" || len(d.ID) > 255 || !utf8.ValidString(string(d.ID)) || !utf8.ValidString(d.DisplayName) || seen[d.ID] {
				t.Fatalf("the device %q got through", d.ID)
			}
			seen[d.ID] = true
			checkKeys(t, d.Keys, string(d.ID))
		}
		checkCrossSigningKey(t, list.MasterKey, "master")
		checkCrossSigningKey(t, list.SelfSigningKey, "self_signing")

		stored := list.Encode()
		kept, err := freshen.DecodeKept(stored)
		if err != nil || kept.Hash() != list.Hash() {
			t.Fatalf("what was kept is read as %+v with the error %v:\n%s", kept, err, stored)
		}
		again, err := freshen.ParseDeviceList(stored, bob)
		if err != nil || again.Hash() != list.Hash() || len(again.Dropped) != 0 {
			t.Fatalf("what was kept is parsed as %+v with the error %v:\n%s", again, err, stored)
		}
	})
}

// devicesIn reads a list with another parser than the one that is tested; nil if that finds none.
func devicesIn(data []byte) []json.RawMessage {
	in := jsontext.NewDecoder(strings.NewReader(string(data)), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	var devices []json.RawMessage
	if token, err := in.ReadToken(); err != nil || token.Kind() != '{' {
		return nil
	}
	for in.PeekKind() == '"' {
		name, err := in.ReadToken()
		if err != nil {
			return nil
		}
		isDevices := name.String() == "devices"
		value, err := in.ReadValue()
		if err != nil {
			return nil
		}
		if isDevices {
			devices = nil // the last one counts
			if value.Kind() == '[' && json.Unmarshal(value, &devices) != nil {
				return nil
			}
		}
	}
	return devices
}

func checkKeys(t *testing.T, raw json.RawMessage, deviceID string) {
	t.Helper()
	if !jsontext.Value(raw).IsValid() || raw[0] != '{' || len(raw) > 64<<10 { // IsValid: no name twice, all UTF-8
		t.Fatalf("the keys %s got through", raw)
	}
	var inner map[string]json.RawMessage // names with their case
	if err := json.Unmarshal(raw, &inner); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"user_id": string(bob), "device_id": deviceID} {
		var got string
		if value, there := inner[name]; there && (json.Unmarshal(value, &got) != nil || got != want) {
			t.Fatalf("the keys of %s say that their %s is %s", deviceID, name, value)
		}
	}
}

func checkCrossSigningKey(t *testing.T, raw json.RawMessage, usage string) {
	t.Helper()
	if raw == nil {
		return
	}
	var key map[string]json.RawMessage
	var user string
	var usages []string
	var keys map[string]string
	if !jsontext.Value(raw).IsValid() || json.Unmarshal(raw, &key) != nil || json.Unmarshal(key["user_id"], &user) != nil ||
		json.Unmarshal(key["usage"], &usages) != nil || json.Unmarshal(key["keys"], &keys) != nil ||
		user != string(bob) || !strings.Contains(strings.Join(usages, " "), usage) || len(keys) != 1 {
		t.Fatalf("the %s key %s got through", usage, raw)
	}
}
