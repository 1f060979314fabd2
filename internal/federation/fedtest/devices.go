package fedtest

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"
)

// Object is a JSON object.
type Object = map[string]any

// Signer is an ed25519 key and its name, what follows "ed25519:" in its ID.
type Signer struct {
	Name string
	key  ed25519.PrivateKey
}

// NewSigner makes the key of a number, always the same. It is called name, or after itself if that is empty.
func NewSigner(name string, number int) Signer {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint64(seed, uint64(number))
	s := Signer{Name: name, key: ed25519.NewKeyFromSeed(seed)}
	if name == "" {
		s.Name = s.Public()
	}
	return s
}

// Public is the public key in unpadded base64.
func (s Signer) Public() string {
	return base64.RawStdEncoding.EncodeToString(s.key[ed25519.SeedSize:])
}

// Sign adds user's signature by this key over the object as it stands, without its signatures and what is unsigned
// (Matrix appendices, "Signing JSON").
func (s Signer) Sign(object Object, user id.UserID) {
	bare := Object{}
	for name, value := range object {
		if name != "signatures" && name != "unsigned" {
			bare[name] = value
		}
	}
	canonical := jsontext.Value(mustJSON(bare))
	if err := canonical.Canonicalize(); err != nil {
		panic(err)
	}
	all, _ := object["signatures"].(Object)
	if all == nil {
		all = Object{}
		object["signatures"] = all
	}
	of, _ := all[string(user)].(Object)
	if of == nil {
		of = Object{}
		all[string(user)] = of
	}
	of["ed25519:"+s.Name] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(s.key, canonical))
}

// Person is a user whose clients sign as they should.
type Person struct {
	UserID              id.UserID
	Master, SelfSigning Signer
}

// NewPerson makes somebody with cross-signing keys.
func NewPerson(user id.UserID) Person {
	return Person{UserID: user, Master: NewSigner("", -1), SelfSigning: NewSigner("", -2)}
}

// DeviceKeys are the keys of the person's device of that ID, by number always the same, signed by itself and by the
// self-signing key.
func (p Person) DeviceKeys(device id.DeviceID, number int) Object {
	own := NewSigner(string(device), number)
	keys := Object{
		"user_id": p.UserID, "device_id": device,
		"algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys":       Object{"ed25519:" + own.Name: own.Public(), "curve25519:" + own.Name: NewSigner("", number+1<<32).Public()},
	}
	own.Sign(keys, p.UserID)
	p.SelfSigning.Sign(keys, p.UserID)
	return keys
}

// CrossSigningKey is a key of the person's for the usage.
func (p Person) CrossSigningKey(usage string, key Signer) Object {
	return Object{"user_id": p.UserID, "usage": []string{usage}, "keys": Object{"ed25519:" + key.Name: key.Public()}}
}

// List is the body of GET /user/devices with so many devices whose signatures all hold. version is in the devices'
// names.
func (p Person) List(devices, version int) []byte {
	list := make([]Object, devices)
	for i := range list {
		device := id.DeviceID(fmt.Sprintf("DEVICE%04d", i))
		list[i] = Object{"device_id": device, "device_display_name": fmt.Sprintf("Phone %d", version), "keys": p.DeviceKeys(device, i)}
	}
	master, selfSigning := p.CrossSigningKey("master", p.Master), p.CrossSigningKey("self_signing", p.SelfSigning)
	p.Master.Sign(selfSigning, p.UserID)
	return mustJSON(Object{
		"user_id": p.UserID, "stream_id": version, "devices": list, "master_key": master, "self_signing_key": selfSigning,
	})
}

func mustJSON(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}
