package freshen_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

type object = fedtest.Object

// signedList is a list whose signatures all hold, with what change does to it.
func signedList(t testing.TB, user id.UserID, devices int, change func(p fedtest.Person, list object)) *freshen.DeviceList {
	t.Helper()
	p := fedtest.NewPerson(user)
	body := p.List(devices, 1)
	if change != nil {
		var list object
		if err := json.Unmarshal(body, &list); err != nil {
			t.Fatal(err)
		}
		change(p, list)
		var err error
		if body, err = json.Marshal(list); err != nil {
			t.Fatal(err)
		}
	}
	list, err := freshen.ParseDeviceList(body, user)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// keysOf are the keys of the list's device of that number.
func keysOf(list object, number int) object {
	return list["devices"].([]any)[number].(object)["keys"].(object)
}

func signaturesOf(p fedtest.Person, keys object) object {
	return keys["signatures"].(object)[string(p.UserID)].(object)
}

// TestOddities: an administrator who asks why a contact's device is ignored reads the reason in the log; none of it may
// cost the user a device, since their own homeserver would show it.
func TestOddities(t *testing.T) {
	type odd = map[freshen.Oddity]int
	const first = "ed25519:DEVICE0000"
	for _, row := range []struct {
		name   string
		change func(p fedtest.Person, list object)
		odd    odd
	}{
		{"all signatures hold", nil, odd{}},
		{"members that we do not know are signed too", func(p fedtest.Person, list object) {
			keys := keysOf(list, 0)
			delete(keys, "signatures")
			keys["org.new"] = []any{object{"ü\n<>": 1}, -5, nil}
			fedtest.NewSigner("DEVICE0000", 0).Sign(keys, p.UserID)
			p.SelfSigning.Sign(keys, p.UserID)
		}, odd{}},
		{"unsigned members are not", func(_ fedtest.Person, list object) { keysOf(list, 0)["unsigned"] = object{"age": 1} }, odd{}},
		{"a foreign signature that nobody can check", func(_ fedtest.Person, list object) {
			keysOf(list, 0)["signatures"].(object)["@eve:e.org"] = object{"ed25519:X": "!"}
		}, odd{}},
		{"no signatures", func(_ fedtest.Person, list object) { delete(keysOf(list, 0), "signatures") },
			odd{freshen.OddUnsigned: 1, freshen.OddNotCrossSigned: 1}},
		{"not signed by itself", func(p fedtest.Person, list object) { delete(signaturesOf(p, keysOf(list, 0)), first) },
			odd{freshen.OddUnsigned: 1}},
		{"a signature that is no string", func(p fedtest.Person, list object) { signaturesOf(p, keysOf(list, 0))[first] = 5 },
			odd{freshen.OddUnsigned: 1}},
		{"a signature that is no base64", func(p fedtest.Person, list object) { signaturesOf(p, keysOf(list, 0))[first] = "!" },
			odd{freshen.OddBadSignature: 1}},
		{"an empty signature", func(p fedtest.Person, list object) { signaturesOf(p, keysOf(list, 0))[first] = "" },
			odd{freshen.OddBadSignature: 1}},
		{"a short signature", func(p fedtest.Person, list object) { signaturesOf(p, keysOf(list, 0))[first] = "AAAA" },
			odd{freshen.OddBadSignature: 1}},
		{"another device's signature", func(p fedtest.Person, list object) {
			signaturesOf(p, keysOf(list, 0))[first] = signaturesOf(p, keysOf(list, 1))["ed25519:DEVICE0001"]
		}, odd{freshen.OddBadSignature: 1}},
		{"signed, then changed", func(_ fedtest.Person, list object) { keysOf(list, 0)["algorithms"] = []any{} },
			odd{freshen.OddBadSignature: 1, freshen.OddNotCrossSigned: 1}},
		{"no keys", func(_ fedtest.Person, list object) { delete(keysOf(list, 0), "keys") }, odd{freshen.OddNoSigningKey: 1}},
		{"keys no strings", func(_ fedtest.Person, list object) { keysOf(list, 0)["keys"] = object{first: 5} }, odd{freshen.OddNoSigningKey: 1}},
		{"another device's key", func(_ fedtest.Person, list object) { keysOf(list, 0)["keys"] = keysOf(list, 1)["keys"] }, odd{freshen.OddNoSigningKey: 1}},
		{"a key of 31 bytes", func(_ fedtest.Person, list object) {
			keysOf(list, 0)["keys"].(object)[first] = strings.Repeat("A", 42)
		}, odd{freshen.OddNoSigningKey: 1}},
		{"a key that is no point on the curve", func(_ fedtest.Person, list object) {
			keysOf(list, 0)["keys"].(object)[first] = strings.Repeat("A", 41) + "Ag" // of small order, or none at all
		}, odd{freshen.OddBadSignature: 1, freshen.OddNotCrossSigned: 1}},
		{"an empty key", func(_ fedtest.Person, list object) { keysOf(list, 0)["keys"].(object)[first] = "" }, odd{freshen.OddNoSigningKey: 1}},
		{"one identity key on two devices", func(p fedtest.Person, list object) {
			shared := keysOf(list, 1)["keys"].(object)["curve25519:DEVICE0001"]
			keys := keysOf(list, 0)
			delete(keys, "signatures")
			keys["keys"].(object)["curve25519:DEVICE0000"] = shared
			fedtest.NewSigner("DEVICE0000", 0).Sign(keys, p.UserID)
			p.SelfSigning.Sign(keys, p.UserID)
		}, odd{freshen.OddSharedIdentity: 2}},
		{"a new device, not yet verified", func(p fedtest.Person, list object) {
			delete(signaturesOf(p, keysOf(list, 0)), "ed25519:"+p.SelfSigning.Name)
		}, odd{freshen.OddNotCrossSigned: 1}},
		{"no cross-signing", func(_ fedtest.Person, list object) { delete(list, "master_key"); delete(list, "self_signing_key") }, odd{}},
		{"a master key alone", func(_ fedtest.Person, list object) { delete(list, "self_signing_key") }, odd{}},
		{"a self-signing key alone", func(_ fedtest.Person, list object) { delete(list, "master_key") }, odd{freshen.OddSelfSigningKey: 1}},
		{"a self-signing key that the master key has not signed", func(_ fedtest.Person, list object) {
			delete(list["self_signing_key"].(object), "signatures")
		}, odd{freshen.OddSelfSigningKey: 1}},
		{"another master key", func(p fedtest.Person, list object) {
			list["master_key"] = p.CrossSigningKey("master", fedtest.NewSigner("", 99))
		}, odd{freshen.OddSelfSigningKey: 1}},
		{"a master key that is none", func(_ fedtest.Person, list object) {
			list["master_key"].(object)["keys"] = object{"ed25519:AAAA": "AAAA"}
		}, odd{freshen.OddCrossSigningKey: 1, freshen.OddSelfSigningKey: 1}},
		{"a master key under another's name", func(p fedtest.Person, list object) {
			list["master_key"].(object)["keys"] = object{"ed25519:" + p.SelfSigning.Public(): p.Master.Public()}
		}, odd{freshen.OddCrossSigningKey: 1, freshen.OddSelfSigningKey: 1}},
		{"a self-signing key of another algorithm", func(p fedtest.Person, list object) {
			list["self_signing_key"].(object)["keys"] = object{"curve25519:" + p.SelfSigning.Public(): p.SelfSigning.Public()}
		}, odd{freshen.OddCrossSigningKey: 1, freshen.OddSelfSigningKey: 1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			list := signedList(t, bob, 3, row.change)
			if diff := cmp.Diff(row.odd, list.Oddities()); diff != "" {
				t.Errorf("odd (-want +got):\n%s", diff)
			}
			if len(list.Devices) != 3 || len(list.Dropped) != 0 {
				t.Errorf("%d devices are left, %v was dropped", len(list.Devices), list.Dropped)
			}
		})
	}
}

// TestOdditiesOfUnusualNames: users with old names, and devices whose ID a program chose, must not look forged.
func TestOdditiesOfUnusualNames(t *testing.T) {
	const every = `!"#$%&'()*+,-./0123456789;<=>?@ABCXYZ[\]^_abcxyz{|}~`
	names := []string{every}
	for _, r := range every {
		names = append(names, string(r), "a"+string(r)+"b")
	}
	for _, name := range names {
		p := fedtest.NewPerson(id.UserID("@" + name + ":b.org"))
		device := id.DeviceID(name + "é\n")
		keys := p.DeviceKeys(device, 1)
		body, err := json.Marshal(object{"user_id": p.UserID, "devices": []object{{"device_id": device, "keys": keys}}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := freshen.ParseDeviceList(body, p.UserID)
		if err != nil {
			t.Fatal(err)
		}
		if odd := list.Oddities(); len(odd) != 0 {
			t.Errorf("%q has %v", name, odd)
		}
	}
}

// TestOdditiesAreBounded: a stranger's list must not make us check signatures for seconds.
func TestOdditiesAreBounded(t *testing.T) {
	list := signedList(t, bob, 300, nil)
	if diff := cmp.Diff(map[freshen.Oddity]int{freshen.OddUnchecked: 51}, list.Oddities()); diff != "" {
		t.Errorf("of 300 devices, each signed twice (-want +got):\n%s", diff)
	}
	var big []string
	for i := range 40 {
		big = append(big, fmt.Sprintf(`{"device_id": "%d", "keys": {"x": %q}}`, i, strings.Repeat("x", 60<<10)))
	}
	list, err := freshen.ParseDeviceList([]byte(body(big...)), bob)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[freshen.Oddity]int{freshen.OddNoSigningKey: 34, freshen.OddUnchecked: 6}, list.Oddities()); diff != "" {
		t.Errorf("of 40 devices of 60 KiB (-want +got):\n%s", diff)
	}
}

// FuzzOddities: no device and no key of a stranger panics in the check of its signatures, or is changed by it.
func FuzzOddities(f *testing.F) {
	p := fedtest.NewPerson(bob)
	good, err := json.Marshal(p.DeviceKeys("A", 1))
	if err != nil {
		f.Fatal(err)
	}
	master := fmt.Sprintf(`{"user_id": "@bob:b.org", "usage": ["master"], "keys": {"ed25519:%[1]s": %[1]q}}`, p.Master.Public())
	f.Add(good, []byte(master))
	f.Add([]byte(`{"keys": {"ed25519:A": "`+p.Master.Public()+`"}, "signatur\u0065s": {"@bob:b.org": {"ed25519:A": "AAAA"}}, "signatures ": [{}], "unsigned": []}`), []byte("null"))
	f.Add([]byte(`{"keys": {"ed25519:A": "`+p.Master.Public()+`"}, "signatures": {"@bob:b.org": {"ed25519:A": "\u0041AAA"}}, "": {"": 1e-400}}`), []byte(master))
	f.Fuzz(func(t *testing.T, keys, master []byte) {
		selfSigning := bytes.ReplaceAll(master, []byte(`"master"`), []byte(`"self_signing"`))
		list, err := freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id": "@bob:b.org", "devices": [{"device_id": "A", "keys": %s}], "master_key": %s, "self_signing_key": %s}`,
			keys, master, selfSigning), bob)
		if err != nil {
			return
		}
		before := list.Encode()
		list.Oddities()
		if !bytes.Equal(before, list.Encode()) {
			t.Fatal("the list was changed")
		}
	})
}
