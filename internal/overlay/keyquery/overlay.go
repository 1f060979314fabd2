package keyquery

import (
	"fmt"
	"maps"
	"slices"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/overlay/rawjson"
)

// Overlay puts kept over the homeserver's answer: for each user who is asked for and has a kept list, the entries in
// device_keys, master_keys and self_signing_keys become what their own server said. Everything else stays byte for byte.
//
//   - Devices are those asked for. Where devices were named and a kept list that is not empty has none of them, the
//     user has no entry at all: homeservers send an empty one, but that also says that all devices are gone, and
//     a client may act on it.
//   - A cross-signing key that the kept list lacks goes from the answer too.
//   - The signatures of the requester on a user's master key are the homeserver's to tell, as the user's own server
//     never sees them. They stay if the master key is still the same. Signatures of other users than its own on a
//     kept cross-signing key are left out.
//   - A server of which every user asked for was served is no longer among the failures.
//   - A member that the answer lacks is made where a kept entry needs it, and only there. user_signing_keys never change.
//
// healed names the served users for whom the answer said the same already: equal device by device and in both
// cross-signing keys, apart from unsigned, signatures of other users, and how the JSON is written. Only a query for
// all of a user's devices can tell, and none while the homeserver counts their server among the failures: its copy is
// then an old one.
//
// An answer over [MaxAnswerBytes], or one that is no JSON object of objects, is an error; it should then be sent as it
// was. The lists must come from [freshen.ParseDeviceList]. edited may share memory with answer and kept.
func Overlay(answer []byte, req Request, requester id.UserID, kept map[id.UserID]*freshen.DeviceList) (edited []byte, healed []id.UserID, err error) {
	if len(answer) > MaxAnswerBytes {
		return nil, nil, fmt.Errorf("the homeserver's answer to a key query has %d bytes, over the limit of %d", len(answer), MaxAnswerBytes)
	}
	o := overlay{req: req, requester: requester, failed: map[string]bool{}}
	for _, user := range slices.Sorted(maps.Keys(req.Devices)) {
		if list := kept[user]; list != nil {
			o.users = append(o.users, &served{user: user, list: list})
		}
	}
	if len(o.users) == 0 {
		return answer, nil, nil
	}
	edited, err = rawjson.Rewrite(answer, []rawjson.Edit{
		{Name: "failures", Apply: o.failures},
		{Name: "device_keys", Apply: o.section((*served).devices)},
		{Name: "master_keys", Apply: o.section((*served).masterKey)},
		{Name: "self_signing_keys", Apply: o.section((*served).selfSigningKey)},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("the homeserver's answer to a key query cannot be edited: %w", err)
	}
	for _, s := range o.users {
		if len(req.Devices[s.user]) == 0 && !o.failed[freshen.Destination(s.user)] && s.same() {
			healed = append(healed, s.user)
		}
	}
	return edited, healed, nil
}

// overlay is one call of [Overlay].
type overlay struct {
	req       Request
	requester id.UserID
	users     []*served
	failed    map[string]bool // the servers that the answer names in failures
}

// served is a user whose entries are replaced, with what the homeserver had said of them.
type served struct {
	user                                 id.UserID
	list                                 *freshen.DeviceList
	theirDevices, theirMaster, theirSelf []byte
}

// section edits one member of the answer that maps user IDs to something.
func (o *overlay) section(entry func(s *served, o *overlay, old []byte) ([]byte, error)) func([]byte) ([]byte, error) {
	edits := make([]rawjson.Edit, len(o.users))
	for i, s := range o.users {
		edits[i] = rawjson.Edit{Name: string(s.user), Apply: func(old []byte) ([]byte, error) { return entry(s, o, old) }}
	}
	return rawjson.RewriteMember(edits)
}

func (s *served) devices(o *overlay, old []byte) ([]byte, error) {
	s.theirDevices = old
	asked := make(map[id.DeviceID]bool, len(o.req.Devices[s.user]))
	for _, d := range o.req.Devices[s.user] {
		asked[d] = true
	}
	entry := []byte{'{'}
	for _, d := range s.list.Devices {
		if len(asked) > 0 && !asked[d.ID] {
			continue
		}
		keys, err := withDisplayName(d)
		if err != nil {
			return nil, fmt.Errorf("the kept keys of a device: %w", err)
		}
		if len(entry) > 1 {
			entry = append(entry, ',')
		}
		entry = rawjson.AppendString(entry, string(d.ID))
		entry = append(entry, ':')
		entry = append(entry, keys...)
	}
	if len(entry) == 1 && len(s.list.Devices) > 0 {
		return nil, nil
	}
	return append(entry, '}'), nil
}

// withDisplayName is the device in the shape of /keys/query. unsigned is outside what is signed.
func withDisplayName(d freshen.Device) ([]byte, error) {
	if d.DisplayName == "" {
		return d.Keys, nil
	}
	name := rawjson.Edit{
		Name:  "device_display_name",
		Apply: rawjson.Set(rawjson.AppendString(nil, d.DisplayName)),
	}
	return rawjson.Rewrite(d.Keys, []rawjson.Edit{{Name: "unsigned", Apply: func(old []byte) ([]byte, error) {
		if !isObject(old) {
			old = nil
		}
		return rawjson.RewriteMember([]rawjson.Edit{name})(old)
	}}})
}

func (s *served) masterKey(o *overlay, old []byte) ([]byte, error) {
	s.theirMaster = old
	key, err := s.ownSigned(s.list.MasterKey)
	own := signaturesOf(old, o.requester)
	if err != nil || own == nil || key == nil || !sameKeys(old, key) {
		return key, err
	}
	signer := rawjson.Edit{Name: string(o.requester), Apply: rawjson.Set(own)}
	return rawjson.Rewrite(key, []rawjson.Edit{{Name: "signatures", Apply: func(old []byte) ([]byte, error) {
		if !isObject(old) {
			old = nil
		}
		return rawjson.RewriteMember([]rawjson.Edit{signer})(old)
	}}})
}

func (s *served) selfSigningKey(_ *overlay, old []byte) ([]byte, error) {
	s.theirSelf = old
	return s.ownSigned(s.list.SelfSigningKey)
}

// ownSigned is a cross-signing key without the signatures that other users are said to have made: whom our own users have
// verified, their own homeserver alone tells, and nobody is to learn it of others. Nil is returned for nil.
func (s *served) ownSigned(key []byte) ([]byte, error) {
	foreign := foreignSigners(member(key, "signatures"), s.user)
	if len(foreign) == 0 {
		return key, nil
	}
	return rawjson.Rewrite(key, []rawjson.Edit{{Name: "signatures", Apply: func(old []byte) ([]byte, error) {
		return rawjson.Rewrite(old, foreign)
	}}})
}

// failures drops the servers whose users were all served.
func (o *overlay) failures(old []byte) ([]byte, error) {
	if !isObject(old) {
		return old, nil
	}
	servers := make(map[string]bool) // asked, and whether all of it was served
	for user := range o.req.Devices {
		servers[freshen.Destination(user)] = true
	}
	isServed := make(map[id.UserID]bool, len(o.users))
	for _, s := range o.users {
		isServed[s.user] = true
	}
	for user := range o.req.Devices {
		if !isServed[user] {
			servers[freshen.Destination(user)] = false
		}
	}
	var edits []rawjson.Edit
	for server, all := range servers {
		edits = append(edits, rawjson.Edit{Name: server, Apply: func(old []byte) ([]byte, error) {
			if old != nil {
				o.failed[server] = true
			}
			if all && server != "" {
				return nil, nil
			}
			return old, nil
		}})
	}
	return rawjson.Rewrite(old, edits)
}
