package freshen

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// Bounds of [DeviceList.Oddities]: an ed25519 signature costs up to 0.1 ms to check.
const (
	maxSignatureChecks = 500
	maxCheckedBytes    = 2 << 20
)

// Oddity is something about a list that costs it nothing: what is odd is kept as it came. Homeservers check none of
// these signatures either, so a list without the odd devices would not be the one that the target's server tells, and
// clients, who check them all, are told nothing by leaving them out that they do not see for themselves.
type Oddity string

const (
	// OddNoSigningKey: a device without a usable ed25519 key under its own ID. Clients ignore the device.
	OddNoSigningKey Oddity = "no_signing_key"
	// OddUnsigned: a device that has not signed its keys. Clients ignore the device.
	OddUnsigned Oddity = "unsigned"
	// OddBadSignature: a device whose own signature does not hold: it is over other data, by another key, or none.
	// Clients ignore the device.
	OddBadSignature Oddity = "bad_signature"
	// OddSharedIdentity: a device with the same curve25519 identity key as another.
	OddSharedIdentity Oddity = "shared_identity_key"
	// OddNotCrossSigned: a device that the user's self-signing key has not signed, where there is a good one. Clients
	// show it as not verified by its owner, and some do not encrypt for it.
	OddNotCrossSigned Oddity = "not_cross_signed"
	// OddCrossSigningKey: a master or self-signing key that is no ed25519 key under its own name. Dendrite leaves such
	// a key out, Synapse keeps it.
	OddCrossSigningKey Oddity = "bad_cross_signing_key"
	// OddSelfSigningKey: a self-signing key that the master key has not signed. Clients ignore the user's
	// cross-signing.
	OddSelfSigningKey Oddity = "self_signing_key_not_signed"
	// OddUnchecked: a device beyond the bounds of what is checked.
	OddUnchecked Oddity = "unchecked"
)

// Oddities counts what is odd about the list, by kind. It checks at most 500 signatures and 2 MiB of devices, which
// takes about 40 ms at the most; the devices beyond that count as unchecked.
func (l *DeviceList) Oddities() map[Oddity]int {
	c := checker{owner: l.UserID, left: maxSignatureChecks, odd: map[Oddity]int{}}
	selfSigning := c.selfSigningKey(l.MasterKey, l.SelfSigningKey)
	identities := map[string]int{}
	bytes := 0
	for i, d := range l.Devices {
		if bytes += len(d.Keys); bytes > maxCheckedBytes || c.left < 2 {
			c.odd[OddUnchecked] += len(l.Devices) - i
			break
		}
		c.device(d, selfSigning, identities)
	}
	for _, devices := range identities {
		if devices > 1 {
			c.odd[OddSharedIdentity] += devices
		}
	}
	return c.odd
}

// checker checks the signatures of one list.
type checker struct {
	owner id.UserID
	left  int // how many more signatures may be checked
	odd   map[Oddity]int
}

// signingKey is an ed25519 key; the zero value is none.
type signingKey struct {
	name  string // what follows "ed25519:" in its ID
	value id.Ed25519
}

func (c *checker) device(d Device, selfSigning signingKey, identities map[string]int) {
	keys := keysOf(d.Keys)
	if identity := keys["curve25519:"+string(d.ID)]; identity != "" {
		identities[identity]++
	}
	own := signingKey{string(d.ID), id.Ed25519(keys["ed25519:"+string(d.ID)])}
	if !own.usable() {
		c.odd[OddNoSigningKey]++
		return
	}
	if odd := c.signed(d.Keys, own); odd != "" {
		c.odd[odd]++
	}
	if selfSigning.usable() && c.signed(d.Keys, selfSigning) != "" {
		c.odd[OddNotCrossSigned]++
	}
}

// selfSigningKey returns the self-signing key if the master key has signed it.
func (c *checker) selfSigningKey(rawMaster, rawSelfSigning json.RawMessage) signingKey {
	master, selfSigning := c.crossSigningKey(rawMaster), c.crossSigningKey(rawSelfSigning)
	switch {
	case rawSelfSigning == nil:
		return signingKey{}
	case selfSigning.usable() && master.usable() && c.signed(rawSelfSigning, master) == "":
		return selfSigning
	}
	c.odd[OddSelfSigningKey]++
	return signingKey{}
}

func (c *checker) crossSigningKey(raw json.RawMessage) signingKey {
	if raw == nil {
		return signingKey{}
	}
	for keyID, value := range keysOf(raw) { // there is one, see readCrossSigningKey
		name, isEd25519 := strings.CutPrefix(keyID, "ed25519:")
		if key := (signingKey{name, id.Ed25519(value)}); isEd25519 && name == value && key.usable() {
			return key
		}
	}
	c.odd[OddCrossSigningKey]++
	return signingKey{}
}

// signed checks the signature by key over the object, and returns "" if it holds.
func (c *checker) signed(object json.RawMessage, key signingKey) Oddity {
	c.left--
	ok, err := signatures.VerifySignatureJSON(object, c.owner, key.name, key.value)
	switch {
	case ok:
		return ""
	case errors.Is(err, signatures.ErrSignatureNotFound):
		return OddUnsigned
	}
	return OddBadSignature
}

// usable says whether the key is one: 32 bytes in unpadded base64.
func (k signingKey) usable() bool {
	decoded, err := base64.RawStdEncoding.DecodeString(string(k.value))
	return err == nil && len(decoded) == 32
}

// keysOf returns the member "keys" of device keys or of a cross-signing key; nil where it holds anything but strings.
func keysOf(raw json.RawMessage) map[string]string {
	var wire struct {
		Keys map[string]string `json:"keys"`
	}
	if err := jsonv2.Unmarshal(raw, &wire, lenient); err != nil {
		return nil
	}
	return wire.Keys
}
