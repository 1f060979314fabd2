// Package keyquery puts kept device lists over the homeserver's answer to POST /_matrix/client/*/keys/query (Matrix
// v1.16, client-server API, "Key management API"). It is pure: bytes in, bytes out.
package keyquery

import (
	"encoding/json"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"freshen/internal/overlay/rawjson"
)

const (
	// MaxRequestBytes bounds the body of a request that is looked at.
	MaxRequestBytes = 4 << 20
	// MaxAnswerBytes bounds the homeserver's answer that is edited.
	MaxAnswerBytes = 64 << 20
)

// Request is whom a client asks about: for each user the devices, none meaning all of them.
type Request struct {
	Devices map[id.UserID][]id.DeviceID
}

// Whole names the users of whom all devices are asked for. An answer about named devices does not show that there are
// others.
func (r Request) Whole() []id.UserID {
	users := make([]id.UserID, 0, len(r.Devices))
	for user, devices := range r.Devices {
		if len(devices) == 0 {
			users = append(users, user)
		}
	}
	return users
}

// ParseRequest reads the body of a request. It fails where that is over [MaxRequestBytes], is no JSON object, or has
// a device_keys that is no object of lists of strings; such a request is the homeserver's to refuse or to make sense of. A
// user without a list (null) is asked for with all devices. Of a name that stands twice the last counts, as for the
// homeservers' own parsers.
func ParseRequest(body []byte) (Request, error) {
	if len(body) > MaxRequestBytes {
		return Request{}, fmt.Errorf("a key query of %d bytes is over the limit of %d", len(body), MaxRequestBytes)
	}
	top, err := rawjson.Members(body)
	if err != nil {
		return Request{}, fmt.Errorf("the body of a key query is no JSON object: %w", err)
	}
	var asked []byte
	for _, m := range top {
		if m.Name == "device_keys" {
			asked = body[m.Value:m.To]
		}
	}
	if asked == nil {
		return Request{}, errors.New("the key query has no device_keys")
	}
	users, err := rawjson.Members(asked)
	if err != nil {
		return Request{}, fmt.Errorf("device_keys of the key query: %w", err)
	}
	req := Request{Devices: make(map[id.UserID][]id.DeviceID, len(users))}
	for _, m := range users {
		var devices []*id.DeviceID
		if err := json.Unmarshal(asked[m.Value:m.To], &devices); err != nil {
			return Request{}, fmt.Errorf("a user in device_keys of the key query has no list of device IDs: %w", err)
		}
		list := make([]id.DeviceID, 0, len(devices))
		for _, d := range devices {
			if d == nil {
				return Request{}, errors.New("a list of device IDs in the key query holds null")
			}
			list = append(list, *d)
		}
		req.Devices[id.UserID(m.Name)] = list
	}
	return req, nil
}
