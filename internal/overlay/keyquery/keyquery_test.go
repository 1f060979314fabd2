package keyquery

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"

	"freshen"
)

const (
	alice id.UserID = "@alice:a.example"
	bob   id.UserID = "@bob:b.example"
	ben   id.UserID = "@ben:b.example"
	carol id.UserID = "@carol:c.example"
)

func TestParseRequest(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]map[id.UserID][]id.DeviceID{
		`{"device_keys":{}}`: {},
		`{"device_keys":{"@bob:b.example":[]},"timeout":10000,"token":{}}`:          {bob: {}},
		`{"device_keys":{"@bob\u003ab.example":["B","A"],"@carol:c.example":null}}`: {bob: {"B", "A"}, carol: {}},
		`{"device_keys":{"@bob:b.example":["B"],"@bob:b.example":[]}}`:              {bob: {}},
		`{"device_keys":[],"device_keys":{"@bob:b.example":["B"]}}`:                 {bob: {"B"}},
		"{\"x\":\"\xff\",\"device_keys\":{\"@bob:b.example\":[\"B\"]}}":             {bob: {"B"}},
	} {
		got, err := ParseRequest([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if diff := cmp.Diff(want, got.Devices); diff != "" {
			t.Errorf("%s: %s", in, diff)
		}
	}
	for _, in := range []string{``, `null`, `[]`, `{}`, `{"device_keys":null}`, `{"device_keys":["@bob:b.example"]}`,
		`{"device_keys":{"@bob:b.example":{}}}`, `{"device_keys":{"@bob:b.example":"B"}}`, `{"device_keys":{"@bob:b.example":[1]}}`,
		`{"device_keys":{"@bob:b.example":[null]}}`, `{"device_keys":{}`, strings.Repeat(" ", MaxRequestBytes) + `{"device_keys":{}}`} {
		if got, err := ParseRequest([]byte(in)); err == nil {
			t.Errorf("%.60q: %v", in, got)
		}
	}
}

// person is a user with a real signing key for each of their keys.
type person struct {
	id   id.UserID
	priv ed25519.PrivateKey
}

func newPerson(user id.UserID) person {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, user)
	return person{user, ed25519.NewKeyFromSeed(seed)}
}

func (p person) public() string {
	return base64.RawStdEncoding.EncodeToString(p.priv.Public().(ed25519.PublicKey))
}

// sign returns raw with p's signature in front, in a layout that no encoder would make.
func (p person) sign(t testing.TB, raw, keyName string) string {
	t.Helper()
	canonical := json.RawMessage(raw)
	if err := canonicaljson.Canonicalize(&canonical); err != nil {
		t.Fatal(err)
	}
	sig := base64.RawStdEncoding.EncodeToString(ed25519.Sign(p.priv, canonical))
	return fmt.Sprintf(`{ "signatures": {%q: {"ed25519:%s":%q}} ,%s`, p.id, keyName, sig, raw[1:])
}

// device appends unsigned, which is signed by nobody.
func (p person) device(t testing.TB, name, unsigned string) string {
	t.Helper()
	signed := p.sign(t, fmt.Sprintf(`{"user_id":%q,"device_id":%q,"algorithms":["m.megolm.v1.aes-sha2"],"keys":{"ed25519:%s":%q},"org.example.z\u00fcrich":{"b":1,"a":"\u003c"}}`,
		p.id, name, name, p.public()), name)
	return strings.TrimSuffix(signed, "}") + unsigned + "}"
}

func (p person) crossSigning(t testing.TB, usage string) string {
	t.Helper()
	key := fmt.Sprintf(`{"user_id":%q,"usage":[%q],"keys":{"ed25519:%s":%q}}`, p.id, usage, p.public(), p.public())
	return p.sign(t, key, p.public())
}

func (p person) verify(t *testing.T, raw, keyName string) {
	t.Helper()
	ok, err := signatures.VerifySignatureJSON(json.RawMessage(raw), p.id, keyName, id.Ed25519(p.public()))
	if err != nil || !ok {
		t.Errorf("the signature of %s does not hold (%v): %s", p.id, err, raw)
	}
}

// keptList parses a list as the refresh does.
func keptList(t testing.TB, user id.UserID, devices, crossSigning string) *freshen.DeviceList {
	t.Helper()
	list, err := freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id":%q,"stream_id":5,"devices":[%s]%s}`, user, devices, crossSigning), user)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Dropped) > 0 {
		t.Fatalf("the test's own list is bad: %v", list.Dropped)
	}
	return list
}

func ask(user id.UserID, devices ...id.DeviceID) Request {
	return Request{Devices: map[id.UserID][]id.DeviceID{user: devices}}
}

func overlaid(t *testing.T, answer string, req Request, lists ...*freshen.DeviceList) (string, []id.UserID) {
	t.Helper()
	kept := map[id.UserID]*freshen.DeviceList{}
	for _, l := range lists {
		kept[l.UserID] = l
	}
	out, healed, err := Overlay([]byte(answer), req, alice, kept)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(out) {
		t.Fatalf("no JSON: %s", out)
	}
	return string(out), healed
}

// Alice's client encrypts for what /keys/query shows: the new device must be in it with signatures that hold, and
// nobody else's entry may change by a byte.
func TestFreshKeys(t *testing.T) {
	t.Parallel()
	b := newPerson(bob)
	first, second := b.device(t, "FIRST", ""), b.device(t, "SECOND", `,"unsigned":{"org.example":"x"}`)
	master, self := b.crossSigning(t, "master"), b.crossSigning(t, "self_signing")
	b.verify(t, second, "SECOND")
	list := keptList(t, bob, fmt.Sprintf(`{"device_id":"FIRST","keys":%s},{"device_id":"SECOND","keys":%s,"device_display_name":"Bob's \"phone\""}`, first, second),
		fmt.Sprintf(`,"master_key":%s,"self_signing_key":%s`, master, self))
	others := `"@carol:c.example" : {"X":{"keys":{}, "unsigned":{"device_display_name":"caf\u00e9"}}}`
	answer := `{"device_keys": {` + others + `,"@bob:b.example":{"FIRST":{"keys":{"old":"one"}}}}, "failures":{}, "user_signing_keys":{"@alice:a.example":{"a": 1}}}`
	req := Request{Devices: map[id.UserID][]id.DeviceID{bob: nil, carol: nil}}

	out, healed := overlaid(t, answer, req, list)
	named := strings.Replace(second, `"unsigned":{"org.example":"x"}`, `"unsigned":{"org.example":"x","device_display_name":"Bob's \"phone\""}`, 1)
	want := `{"device_keys": {` + others + `,"@bob:b.example":{"FIRST":` + first + `,"SECOND":` + named + `}}, "failures":{}, "user_signing_keys":{"@alice:a.example":{"a": 1}}` +
		`,"master_keys":{"@bob:b.example":` + master + `},"self_signing_keys":{"@bob:b.example":` + self + `}}`
	if out != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
	if healed != nil {
		t.Errorf("healed: %v", healed)
	}
	var decoded struct {
		DeviceKeys map[id.UserID]map[string]json.RawMessage `json:"device_keys"`
		MasterKeys map[id.UserID]json.RawMessage            `json:"master_keys"`
	}
	if err := json.Unmarshal([]byte(out), &decoded); err != nil {
		t.Fatal(err)
	}
	b.verify(t, string(decoded.DeviceKeys[bob]["FIRST"]), "FIRST")
	b.verify(t, string(decoded.DeviceKeys[bob]["SECOND"]), "SECOND")
	b.verify(t, string(decoded.MasterKeys[bob]), b.public())
}

func TestDevicesAskedFor(t *testing.T) {
	t.Parallel()
	two := keptList(t, bob, `{"device_id":"A","keys":{"k":1}},{"device_id":"B","keys":{"k":2}}`, "")
	none := keptList(t, bob, "", "")
	stale := `{"device_keys":{"@bob:b.example":{"A":{},"OLD":{}}}}`
	for _, c := range []struct {
		name, in, out string
		req           Request
		list          *freshen.DeviceList
	}{
		{"all", stale, `{"device_keys":{"@bob:b.example":{"A":{"k":1},"B":{"k":2}}}}`, ask(bob), two},
		{"one", stale, `{"device_keys":{"@bob:b.example":{"B":{"k":2}}}}`, ask(bob, "B"), two},
		{"one twice and one gone", stale, `{"device_keys":{"@bob:b.example":{"B":{"k":2}}}}`, ask(bob, "B", "B", "OLD"), two},
		{"only one that is gone: not all are", stale, `{"device_keys":{}}`, ask(bob, "OLD"), two},
		{"all are gone", stale, `{"device_keys":{"@bob:b.example":{}}}`, ask(bob), none},
		{"all are gone, one asked", stale, `{"device_keys":{"@bob:b.example":{}}}`, ask(bob, "A"), none},
		{"device_keys absent", `{}`, `{"device_keys":{"@bob:b.example":{"A":{"k":1},"B":{"k":2}}}}`, ask(bob), two},
		{"device_keys null", `{"device_keys":null}`, `{"device_keys":{"@bob:b.example":{"A":{"k":1},"B":{"k":2}}}}`, ask(bob), two},
		{"nobody asked for bob", stale, stale, ask(carol), two},
	} {
		if out, _ := overlaid(t, c.in, c.req, c.list); out != c.out {
			t.Errorf("%s:\n got %s\nwant %s", c.name, out, c.out)
		}
	}
}

// A display name helps people to tell devices apart; the remote's own unsigned must not break it.
func TestDisplayName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{}`:                      `{"unsigned":{"device_display_name":"é"}}`,
		`{"unsigned":null,"k":1}`: `{"unsigned":{"device_display_name":"é"},"k":1}`,
		`{"unsigned":"x"}`:        `{"unsigned":{"device_display_name":"é"}}`,
		`{"unsigned":{ "a":1 }}`:  `{"unsigned":{ "a":1,"device_display_name":"é" }}`,
		`{"unsigned":{"device_display_name":"old"}}`: `{"unsigned":{"device_display_name":"é"}}`,
	} {
		list := keptList(t, bob, `{"device_id":"A","device_display_name":"\u00e9","keys":`+in+`}`, "")
		out, _ := overlaid(t, `{}`, ask(bob), list)
		if want = `{"device_keys":{"@bob:b.example":{"A":` + want + `}}}`; out != want {
			t.Errorf("%s:\n got %s\nwant %s", in, out, want)
		}
	}
}

// Who verified Bob must not see him as unverified after a refresh, unless his identity really changed.
func TestRequestersSignature(t *testing.T) {
	t.Parallel()
	b, a := newPerson(bob), newPerson(alice)
	master := b.crossSigning(t, "master")
	signed := a.sign(t, fmt.Sprintf(`{"user_id":%q,"usage":["master"],"keys":{"ed25519:%s":%q}}`, bob, b.public(), b.public()), a.public())
	var theirs struct {
		Signatures map[id.UserID]json.RawMessage `json:"signatures"`
	}
	if err := json.Unmarshal([]byte(signed), &theirs); err != nil {
		t.Fatal(err)
	}
	list := keptList(t, bob, "", `,"master_key":`+master)
	out, _ := overlaid(t, `{"device_keys":{},"master_keys":{"@bob:b.example":`+signed+`}}`, ask(bob), list)
	var decoded struct {
		MasterKeys map[id.UserID]json.RawMessage `json:"master_keys"`
	}
	if err := json.Unmarshal([]byte(out), &decoded); err != nil {
		t.Fatal(err)
	}
	got := string(decoded.MasterKeys[bob])
	b.verify(t, got, b.public())
	a.verify(t, got, a.public())

	other := newPerson("@else:b.example")
	other.id = bob
	list = keptList(t, bob, "", `,"master_key":`+other.crossSigning(t, "master"))
	out, _ = overlaid(t, `{"master_keys":{"@bob:b.example":`+signed+`}}`, ask(bob), list)
	if strings.Contains(out, string(theirs.Signatures[alice])) {
		t.Errorf("a signature over the old key went to the new one: %s", out)
	}
}

// A stranger's server must not make it look as if Alice, or anybody, had verified Bob; whom others here have verified is
// not for Alice to see.
func TestOnlyOwnSignaturesAreServed(t *testing.T) {
	t.Parallel()
	b := newPerson(bob)
	claim := func(key string) string {
		return strings.Replace(key, `{"@bob`, `{"@alice:a.example":{"ed25519:U":"claimed"}, "@dave:b.example":{"ed25519:U":"told"}, "b.example":{"ed25519:1":"server"},"@bob`, 1)
	}
	list := keptList(t, bob, "", `,"master_key":`+claim(b.crossSigning(t, "master"))+`,"self_signing_key":`+claim(b.crossSigning(t, "self_signing")))
	theirs := strings.Replace(b.crossSigning(t, "master"), `{"@bob`, `{"@carol:c.example":{"ed25519:U":"hers"},"@bob`, 1)
	for name, answer := range map[string]string{
		"the homeserver has no key":    `{}`,
		"the homeserver has Carol's":   `{"master_keys":{"@bob:b.example":` + theirs + `}}`,
		"the homeserver has Alice's":   `{"master_keys":{"@bob:b.example":` + strings.Replace(theirs, "@carol:c.example", "@alice:a.example", 1) + `}}`,
		"the homeserver has no object": `{"master_keys":{"@bob:b.example":` + strings.Replace(b.crossSigning(t, "master"), `"signatures":`, `"signatures":[],"x":`, 1) + `}}`,
	} {
		out, _ := overlaid(t, answer, ask(bob), list)
		for _, wrong := range []string{"claimed", "told", "carol"} {
			if strings.Contains(out, wrong) {
				t.Errorf("%s: %q is served: %s", name, wrong, out)
			}
		}
		if strings.Count(out, `"server"`) != 2 {
			t.Errorf("%s: what is no user's was left out: %s", name, out)
		}
		if got := strings.Contains(out, `"@alice:a.example":{"ed25519:U":"hers"}`); got != (name == "the homeserver has Alice's") {
			t.Errorf("%s: Alice's own signature is there: %v: %s", name, got, out)
		}
		var decoded struct {
			MasterKeys map[id.UserID]json.RawMessage `json:"master_keys"`
			Self       map[id.UserID]json.RawMessage `json:"self_signing_keys"`
		}
		if err := json.Unmarshal([]byte(out), &decoded); err != nil {
			t.Fatal(err)
		}
		b.verify(t, string(decoded.MasterKeys[bob]), b.public())
		b.verify(t, string(decoded.Self[bob]), b.public())
	}
}

// A cross-signing key that is gone at home would keep old devices trusted.
func TestCrossSigningKeyGone(t *testing.T) {
	t.Parallel()
	list := keptList(t, bob, `{"device_id":"A","keys":{}}`, `,"master_key":null`)
	in := `{"device_keys":{},"master_keys":{"@bob:b.example":{"keys":{}},"@carol:c.example":{}},"self_signing_keys":{"@bob:b.example":{}}}`
	out, _ := overlaid(t, in, ask(bob), list)
	if want := `{"device_keys":{"@bob:b.example":{"A":{}}},"master_keys":{"@carol:c.example":{}},"self_signing_keys":{}}`; out != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
}

// Clients back off from a server that stands in failures, and leave its users dirty.
func TestFailures(t *testing.T) {
	t.Parallel()
	bobs, bens := keptList(t, bob, "", ""), keptList(t, ben, "", "")
	in := `{"failures":{ "b.example":{"status":503} , "c.example":{},"b.example":{}},"device_keys":{}}`
	both := Request{Devices: map[id.UserID][]id.DeviceID{bob: nil, ben: nil, carol: nil}}
	if out, _ := overlaid(t, in, both, bobs, bens); !strings.HasPrefix(out, `{"failures":{ "c.example":{}},`) {
		t.Errorf("all of b.example was served: %s", out)
	}
	if out, _ := overlaid(t, in, both, bobs); !strings.HasPrefix(out, in[:strings.Index(in, `,"device_keys`)]) {
		t.Errorf("only half of b.example was served: %s", out)
	}
	for _, in := range []string{`{"device_keys":{"@bob:b.example":{}},"failures":null}`, `{"device_keys":{"@bob:b.example":{}},"failures":[]}`} {
		if out, _ := overlaid(t, in, ask(bob), bobs); out != in {
			t.Errorf("%s became %s", in, out)
		}
	}
}

// Once the homeserver is right again it must be believed again, and not before.
func TestHealed(t *testing.T) {
	t.Parallel()
	list := keptList(t, bob, `{"device_id":"A","keys":{"user_id":"@bob:b.example","keys":{"k":"1"},"signatures":{"@bob:b.example":{"s":"1"}}},"device_display_name":"phone"}`,
		`,"master_key":{"user_id":"@bob:b.example","usage":["master"],"keys":{"ed25519:m":"m"}}`)
	device := `{"keys":{"\u006b":"1"},"unsigned":{"x":1}, "signatures":{"@bob:b.example":{"s":"1"}},"user_id":"@bob:b.example"}`
	master := `{"usage":["master"],"keys":{"ed25519:m":"m"},"signatures":{"@alice:a.example":{"u":"s"}},"user_id":"@bob:b.example"}`
	good := `{"device_keys":{"@bob:b.example":{"A":` + device + `}},"master_keys":{"@bob:b.example":` + master + `}}`
	for _, c := range []struct {
		name   string
		in     string
		req    Request
		healed bool
	}{
		{"the same", good, ask(bob), true},
		{"self-signing key null", strings.Replace(good, `"master_keys"`, `"self_signing_keys":{"@bob:b.example":null},"master_keys"`, 1), ask(bob), true},
		{"named devices cannot tell", good, ask(bob, "A"), false},
		{"another key", strings.Replace(good, `:"1"}`, `:"2"}`, 1), ask(bob), false},
		{"a device more", strings.Replace(good, `"A":{`, `"B":{},"A":{`, 1), ask(bob), false},
		{"another device", strings.Replace(good, `"A":{`, `"B":{`, 1), ask(bob), false},
		{"another master key", strings.Replace(good, `"ed25519:m":"m"`, `"ed25519:m":"n"`, 1), ask(bob), false},
		{"a signature of another user's on the master key", strings.Replace(good, `"@alice:`, `"@dave:`, 1), ask(bob), true},
		{"another signature of his own on the master key", strings.Replace(good, `"@alice:a.example`, `"@bob:b.example`, 1), ask(bob), false},
		{"no master key", `{"device_keys":{"@bob:b.example":{"A":` + device + `}}}`, ask(bob), false},
		{"a self-signing key", strings.Replace(good, `"master_keys"`, `"self_signing_keys":{"@bob:b.example":{}},"master_keys"`, 1), ask(bob), false},
		{"the server is down", strings.Replace(good, `{`, `{"failures":{"b.example":{}},`, 1), ask(bob), false},
		{"nothing said", `{}`, ask(bob), false},
	} {
		_, healed := overlaid(t, c.in, c.req, list)
		if got := slices.Contains(healed, bob); got != c.healed {
			t.Errorf("%s: healed is %v", c.name, got)
		}
	}
}

// An answer that is not understood goes to the client as it was.
func TestOverlayRefuses(t *testing.T) {
	t.Parallel()
	kept := map[id.UserID]*freshen.DeviceList{bob: keptList(t, bob, "", "")}
	for _, in := range []string{``, `null`, `[]`, `{"device_keys":{}`, `{"device_keys":[]}`, `{"device_keys":{},"master_keys":1}`, `{} x`} {
		if out, _, err := Overlay([]byte(in), ask(bob), alice, kept); err == nil {
			t.Errorf("%q became %q", in, out)
		}
	}
}
