package keyquery

import (
	"bytes"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"freshen/internal/overlay/rawjson"
)

// same says whether the homeserver's own entries equal the kept list: the same devices with the same keys, and the
// same two cross-signing keys. Not compared are unsigned (each server fills it as it likes), signatures of other users
// (each server shows those that the asking one may see), the order of members and the way that strings are escaped.
func (s *served) same() bool {
	if s.theirDevices == nil {
		return false
	}
	members, err := rawjson.Members(s.theirDevices)
	if err != nil {
		return false
	}
	theirs := make(map[id.DeviceID][]byte, len(members))
	for _, m := range members {
		theirs[id.DeviceID(m.Name)] = s.theirDevices[m.Value:m.To]
	}
	if len(theirs) != len(s.list.Devices) {
		return false
	}
	for _, d := range s.list.Devices {
		if raw, ok := theirs[d.ID]; !ok || !sameSigned(raw, d.Keys, s.user) {
			return false
		}
	}
	return sameSigned(s.theirMaster, s.list.MasterKey, s.user) &&
		sameSigned(s.theirSelf, s.list.SelfSigningKey, s.user)
}

// sameSigned compares two keys of owner's, of which either may be absent or null.
func sameSigned(a, b []byte, owner id.UserID) bool {
	if !isObject(a) && !isObject(b) {
		return true
	}
	ca, okA := compared(a, owner)
	cb, okB := compared(b, owner)
	return okA && okB && bytes.Equal(ca, cb)
}

// compared is the canonical form of what is compared of a key. Signatures that are empty without those of others are
// none.
func compared(raw []byte, owner id.UserID) ([]byte, bool) {
	edits := []rawjson.Edit{
		{Name: "unsigned", Apply: rawjson.Set(nil)},
		{Name: "signatures", Apply: func(old []byte) ([]byte, error) {
			if !isObject(old) {
				return old, nil
			}
			rest, err := rawjson.Rewrite(old, foreignSigners(old, owner))
			if err != nil {
				return nil, err
			}
			if left, err := rawjson.Members(rest); err != nil || len(left) == 0 {
				return nil, err
			}
			return rest, nil
		}},
	}
	stripped, err := rawjson.Rewrite(raw, edits)
	if err != nil {
		return nil, false
	}
	return canonical(stripped)
}

// foreignSigners takes from a signatures object those of users other than owner. What is no user (a server, say) stays.
func foreignSigners(signatures []byte, owner id.UserID) []rawjson.Edit {
	members, err := rawjson.Members(signatures)
	if err != nil {
		return nil
	}
	var edits []rawjson.Edit
	seen := map[string]bool{string(owner): true}
	for _, m := range members {
		if strings.HasPrefix(m.Name, "@") && !seen[m.Name] {
			seen[m.Name] = true
			edits = append(edits, rawjson.Edit{Name: m.Name, Apply: rawjson.Set(nil)})
		}
	}
	return edits
}

func canonical(raw []byte) ([]byte, bool) {
	v := jsontext.Value(bytes.Clone(raw))
	err := v.Canonicalize(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	return v, err == nil
}

// sameKeys says whether two cross-signing keys are the same key, whatever their signatures.
func sameKeys(a, b []byte) bool {
	keysA, okA := canonical(member(a, "keys"))
	keysB, okB := canonical(member(b, "keys"))
	return okA && okB && bytes.Equal(keysA, keysB)
}

// signaturesOf is the raw signatures object of signer on key, nil where there is none.
func signaturesOf(key []byte, signer id.UserID) []byte {
	if own := member(member(key, "signatures"), string(signer)); isObject(own) {
		return own
	}
	return nil
}

// member is the raw value of an object's last member of that name; nil if there is none.
func member(raw []byte, name string) []byte {
	var value []byte
	members, err := rawjson.Members(raw)
	if err != nil {
		return nil
	}
	for _, m := range members {
		if m.Name == name {
			value = raw[m.Value:m.To]
		}
	}
	return value
}

func isObject(raw []byte) bool { return len(raw) > 0 && raw[0] == '{' }
