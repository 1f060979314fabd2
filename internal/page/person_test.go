package page_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"maps"

	"maunium.net/go/mautrix/crypto/canonicaljson"
)

// person is a user with keys that are really signed.
type person struct {
	id, displayName     string
	devices             map[string]any
	master, selfSigning any
}

func newPerson(id, displayName string) *person {
	return &person{id: id, displayName: displayName, devices: map[string]any{}}
}

// key is that of a person for a purpose, the same in each run.
func (p *person) key(purpose string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(p.id + purpose))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(key ed25519.PrivateKey) string {
	return base64.RawStdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
}

// sign adds a signature to an object.
func (p *person) sign(object map[string]any, name string, key ed25519.PrivateKey) {
	bare := maps.Clone(object)
	delete(bare, "signatures")
	delete(bare, "unsigned")
	data, err := canonicaljson.Marshal(bare)
	if err != nil {
		panic(err)
	}
	signature := ed25519.Sign(key, data)
	signatures, ok := object["signatures"].(map[string]any)
	if !ok {
		signatures = map[string]any{p.id: map[string]any{}}
		object["signatures"] = signatures
	}
	signatures[p.id].(map[string]any)["ed25519:"+name] = base64.RawStdEncoding.EncodeToString(signature)
}

// crossSigns gives the person a master and a self-signing key.
func (p *person) crossSigns() *person {
	master, selfSigning := public(p.key("master")), public(p.key("self-signing"))
	m := map[string]any{"user_id": p.id, "usage": []string{"master"}, "keys": map[string]any{"ed25519:" + master: master}}
	s := map[string]any{"user_id": p.id, "usage": []string{"self_signing"}, "keys": map[string]any{"ed25519:" + selfSigning: selfSigning}}
	p.sign(s, master, p.key("master"))
	p.master, p.selfSigning = m, s
	return p
}

// has adds a device, which signs its own keys, and whose owner signs them too if vouched says so. The odd members are part of
// what is signed: their names' order by code points is not that by UTF-16.
func (p *person) has(device, name string, vouched bool) *person {
	key := public(p.key(device))
	object := map[string]any{
		"user_id": p.id, "device_id": device, "algorithms": []string{"m.megolm.v1.aes-sha2"},
		"keys":        map[string]any{"ed25519:" + device: key, "curve25519:" + device: public(p.key("curve " + device))},
		"org.example": map[string]any{"\U00010000": "a\"b\\c\u2028", "\uffee": []any{1, true, nil, map[string]any{}}, "ä": -5, "": "\u0001\n"},
	}
	p.sign(object, device, p.key(device))
	if vouched {
		p.sign(object, public(p.key("self-signing")), p.key("self-signing"))
	}
	if name != "" {
		object["unsigned"] = map[string]any{"device_display_name": name}
	}
	p.devices[device] = object
	return p
}

// tampered changes a device's keys after they were signed.
func (p *person) tampered(device string) *person {
	object := maps.Clone(p.devices[device].(map[string]any))
	object["algorithms"] = []string{"m.none"}
	p.devices[device] = object
	return p
}
