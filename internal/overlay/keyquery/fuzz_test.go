package keyquery

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/overlay/rawjson"
)

// The homeserver's answer and the remote's list are both foreign: no panic, JSON stays JSON, and who has no kept list is
// untouched.
func FuzzOverlay(f *testing.F) {
	f.Add([]byte(`{"device_keys":{"@bob:b.example":{"A":{}},"@carol:c.example":{"X":{"k":1}}},"failures":{"b.example":{}},"master_keys":{"@bob:b.example":{"keys":{"a":"b"},"signatures":{"@alice:a.example":{}}}}}`),
		[]byte(`{"user_id":"@bob:b.example","devices":[{"device_id":"A","keys":{"unsigned":{}},"device_display_name":"x"}],"master_key":{"user_id":"@bob:b.example","usage":["master"],"keys":{"a":"b"},"signatures":null}}`), false)
	f.Add([]byte(`{"device_keys":null,"device_keys":{"\u0040carol:c.example":{ }}}`), []byte(`{"user_id":"@bob:b.example","devices":[]}`), true)
	f.Add([]byte(`{"failures":{ "b.example":1 }}`), []byte(`{"user_id":"@bob:b.example","devices":[{"device_id":"","keys":{}}]}`), true)
	f.Fuzz(func(t *testing.T, answer, body []byte, named bool) {
		list, err := freshen.ParseDeviceList(body, bob)
		if err != nil {
			return
		}
		req := Request{Devices: map[id.UserID][]id.DeviceID{bob: nil, carol: nil}}
		if named {
			req.Devices[bob] = []id.DeviceID{"A"}
		}
		out, _, err := Overlay(answer, req, alice, map[id.UserID]*freshen.DeviceList{bob: list})
		if err != nil {
			return
		}
		if json.Valid(answer) && !json.Valid(out) {
			t.Fatalf("%q became %q", answer, out)
		}
		if before, after := without(t, answer, bob), without(t, out, bob); before != after {
			t.Fatalf("someone else's entry changed:\nbefore %s\nafter  %s", before, after)
		}
	})
}

// without lists the members of answer and of its sections, with their raw bytes, leaving out user, their server among
// the failures, and sections that hold nothing else.
func without(t *testing.T, answer []byte, user id.UserID) string {
	t.Helper()
	var b strings.Builder
	members, err := rawjson.Members(answer)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{"device_keys": true, "master_keys": true, "self_signing_keys": true, "failures": true}
	for _, m := range members {
		raw := answer[m.Value:m.To]
		inner, err := rawjson.Members(raw)
		if !sections[m.Name] || err != nil {
			if string(raw) != "null" || !sections[m.Name] {
				fmt.Fprintf(&b, "%q %s\n", m.Name, raw)
			}
			continue
		}
		for _, i := range inner {
			if i.Name != string(user) && (m.Name != "failures" || i.Name != freshen.Destination(user)) {
				fmt.Fprintf(&b, "%q %q %s\n", m.Name, i.Name, raw[i.Value:i.To])
			}
		}
	}
	return b.String()
}

// Once the homeserver says of a user what their own server said, in its own words, that must be seen, whatever odd things
// stand there; else a list stays for good, and is fetched again every hour. What the overlay made of an answer is such a
// homeserver's answer.
func FuzzHealed(f *testing.F) {
	f.Add([]byte(`{"user_id":"@bob:b.example","devices":[{"device_id":"A","keys":{"unsigned":{"x":1},"signatures":{"@bob:b.example":{"ed25519:A":"s"},"@dave:b.example":{}}},"device_display_name":"x"}],"master_key":{"user_id":"@bob:b.example","usage":["master"],"keys":{"a":"b"},"signatures":{"@alice:a.example":{"k":"v"},"b.example":{}}}}`))
	f.Add([]byte(`{"user_id":"@bob:b.example","devices":[],"self_signing_key":{"user_id":"@bob:b.example","usage":["self_signing"],"keys":{"a":"b"},"signatures":{"@alice:a.example":{}}}}`))
	f.Add([]byte(`{"user_id":"@bob:b.example","devices":[{"device_id":"\u0041","keys":{"n":1e400,"m":-0,"signatures":null,"unsigned":[]}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := freshen.ParseDeviceList(body, bob)
		if err != nil {
			return
		}
		kept := map[id.UserID]*freshen.DeviceList{bob: list}
		served, _, err := Overlay([]byte(`{"device_keys":{}}`), ask(bob), alice, kept)
		if err != nil {
			t.Fatalf("an empty answer cannot be edited: %v", err)
		}
		again, healed, err := Overlay(served, ask(bob), alice, kept)
		if err != nil || len(healed) != 1 {
			t.Fatalf("%s is not seen to be what was kept (%v)", served, err)
		}
		if string(again) != string(served) {
			t.Fatalf("put over itself, %s became %s", served, again)
		}
		for _, d := range list.Devices {
			one, _, err := Overlay(served, ask(bob, d.ID), alice, kept)
			if err != nil || len(member(member(member(one, "device_keys"), string(bob)), string(d.ID))) == 0 {
				t.Fatalf("device %q is lost: %s (%v)", d.ID, one, err)
			}
		}
	})
}

// A client's request is foreign too.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"device_keys":{"@bob:b.example":["A"],"@carol:c.example":[]},"timeout":1}`))
	f.Add([]byte(`{"device_keys":{"@bob:b.example":null}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if req, err := ParseRequest(body); err == nil && req.Devices == nil {
			t.Fatalf("%q: neither an error nor a request", body)
		}
	})
}

// BenchmarkOverlay is what one kept user costs in an answer about 250 users with 4 devices each.
func BenchmarkOverlay(b *testing.B) {
	p := newPerson(bob)
	var entries []string
	req := ask(bob)
	for i := range 250 {
		user := id.UserID(fmt.Sprintf("@user%d:c.example", i))
		req.Devices[user] = nil
		var devices []string
		for d := range 4 {
			devices = append(devices, fmt.Sprintf(`"DEVICE%d":%s`, d, p.device(b, "FIRST", "")))
		}
		entries = append(entries, fmt.Sprintf(`%q:{%s}`, user, strings.Join(devices, ",")))
	}
	answer := []byte(`{"device_keys":{` + strings.Join(entries, ",") + `},"failures":{}}`)
	kept := map[id.UserID]*freshen.DeviceList{bob: keptList(b, bob, `{"device_id":"FIRST","keys":`+p.device(b, "FIRST", "")+`,"device_display_name":"phone"}`, "")}
	b.SetBytes(int64(len(answer)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Overlay(answer, req, alice, kept); err != nil {
			b.Fatal(err)
		}
	}
}
