package freshen

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"
)

// Limits of what a destination may answer with.
const (
	// MaxDeviceListBytes bounds the body of GET /user/devices, after decompression.
	MaxDeviceListBytes = 16 << 20
	// MaxDevices bounds the number of devices in one list.
	MaxDevices = 10_000
	// maxDeviceIDLength bounds a device ID; the specification names no limit, homeservers store at most this much.
	maxDeviceIDLength = 255
	// maxDisplayNameLength bounds a device's display name; a longer one is absent.
	maxDisplayNameLength = 1024
	// maxKeyDepth bounds the nesting of one device or key. Real ones have four levels; some clients' parsers give up
	// the whole answer at 128, and with it the keys of everybody else in it.
	maxKeyDepth = 32
	// maxKeyBytes bounds one device or key. Real ones have about 1 KiB; to look for names that stand twice, and to sort
	// them for the hash, costs seconds where there are hundreds of thousands.
	maxKeyBytes = 64 << 10
)

// DeviceList is the device list of one user as their own server told it (GET /_matrix/federation/v1/user/devices),
// checked by [ParseDeviceList]. Keys are kept as the bytes that came, since re-encoding would break signatures over
// fields that we do not know.
type DeviceList struct {
	UserID id.UserID `json:"user_id"`
	// StreamID is what the server said, or nil where that was no integer. It may go backwards and orders nothing: a
	// change is told by [DeviceList.Hash].
	StreamID *int64   `json:"stream_id"`
	Devices  []Device `json:"devices"`
	// MasterKey and SelfSigningKey are the user's public cross-signing keys, nil where absent.
	MasterKey      json.RawMessage `json:"master_key,omitempty"`
	SelfSigningKey json.RawMessage `json:"self_signing_key,omitempty"`
	// Dropped counts what was left out, by reason. It is not part of the list.
	Dropped map[DropReason]int `json:"-"`
}

// Device is one device of a [DeviceList]. Keys is the JSON object of its device keys; DisplayName is empty where absent.
type Device struct {
	ID          id.DeviceID     `json:"device_id"`
	Keys        json.RawMessage `json:"keys"`
	DisplayName string          `json:"device_display_name,omitempty"`
}

// DropReason says why a part of an otherwise good list was left out.
type DropReason string

const (
	DropNoObject    DropReason = "no_object"    // a device, or its keys, is no JSON object that every client can read
	DropBadID       DropReason = "bad_id"       // the device ID is missing, no string, empty or too long
	DropDuplicate   DropReason = "duplicate"    // the device ID stands twice: every one with that ID goes
	DropOtherID     DropReason = "other_id"     // the inner user_id or device_id is another's
	DropCrossSigner DropReason = "cross_signer" // a cross-signing key of another user, of another usage, or no such object
)

// ParseDeviceList reads the body of GET /user/devices/{target}, leniently part by part and strictly as a whole: a
// device that does not match is dropped and counted; a body that is no device list of target is an error, and so is one
// of whose devices none is left. body must not be longer than [MaxDeviceListBytes]; the list shares no memory with it.
func ParseDeviceList(body []byte, target id.UserID) (*DeviceList, error) {
	if len(body) > MaxDeviceListBytes {
		return nil, fmt.Errorf("device list of %d bytes is over the limit of %d", len(body), MaxDeviceListBytes)
	}
	var wire struct {
		UserID         *string        `json:"user_id"`
		StreamID       jsontext.Value `json:"stream_id"`
		Devices        deviceValues   `json:"devices"`
		MasterKey      jsontext.Value `json:"master_key"`
		SelfSigningKey jsontext.Value `json:"self_signing_key"`
	}
	// Lenient here, strict in readObject: one device with a name twice or bytes that are no UTF-8 must not cost the rest.
	lenient := jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := jsonv2.Unmarshal(body, &wire, lenient); err != nil {
		return nil, fmt.Errorf("no device list: %w", err)
	}
	switch {
	case wire.UserID == nil:
		return nil, errors.New("no device list: it has no user_id")
	case *wire.UserID != string(target):
		return nil, errors.New("the device list is another user's")
	case wire.Devices == nil:
		return nil, errors.New("no device list: it has no devices")
	}
	list := &DeviceList{UserID: target, Dropped: map[DropReason]int{}}
	if n, err := strconv.ParseInt(string(wire.StreamID), 10, 64); err == nil {
		list.StreamID = &n
	}
	list.readDevices(wire.Devices)
	if len(list.Devices) == 0 && len(wire.Devices) > 0 {
		// An empty list means that all devices were deleted, and clients act on it.
		return nil, fmt.Errorf("none of the %d devices in the list can be used", len(wire.Devices))
	}
	list.MasterKey = list.readCrossSigningKey(wire.MasterKey, "master")
	list.SelfSigningKey = list.readCrossSigningKey(wire.SelfSigningKey, "self_signing")
	return list, nil
}

// deviceValues stop at the limit: a body of the largest size could else hold millions of them, and cost a hundred times
// its size.
type deviceValues []jsontext.Value

// UnmarshalJSONFrom implements [jsonv2.UnmarshalerFrom].
func (v *deviceValues) UnmarshalJSONFrom(in *jsontext.Decoder) error {
	if kind := in.PeekKind(); kind != '[' {
		value, err := in.ReadValue()
		if err == nil && string(value) != "null" {
			err = errors.New("devices are no list")
		}
		return err
	}
	if _, err := in.ReadToken(); err != nil {
		return err
	}
	*v = deviceValues{}
	for in.PeekKind() != ']' {
		value, err := in.ReadValue()
		switch {
		case err != nil:
			return err
		case len(*v) == MaxDevices:
			return fmt.Errorf("its devices are over the limit of %d", MaxDevices)
		}
		*v = append(*v, value.Clone())
	}
	_, err := in.ReadToken()
	return err
}

func (l *DeviceList) readDevices(raw []jsontext.Value) {
	l.Devices = make([]Device, 0, len(raw))
	seen := make(map[id.DeviceID]int, len(raw))
	for _, r := range raw {
		device, reason := readDevice(r, l.UserID)
		if device.ID != "" {
			seen[device.ID]++
		}
		if reason != "" {
			l.Dropped[reason]++
			continue
		}
		l.Devices = append(l.Devices, device)
	}
	l.Devices = slices.DeleteFunc(l.Devices, func(d Device) bool {
		if seen[d.ID] > 1 {
			l.Dropped[DropDuplicate]++
			return true
		}
		return false
	})
}

// readDevice returns the device's ID even where it must be dropped, so that a duplicate of it is seen.
func readDevice(raw jsontext.Value, owner id.UserID) (Device, DropReason) {
	var wire struct {
		ID          jsontext.Value `json:"device_id"`
		Keys        jsontext.Value `json:"keys"`
		DisplayName jsontext.Value `json:"device_display_name"`
	}
	if !readObject(raw, &wire) {
		return Device{}, DropNoObject
	}
	deviceID, ok := readString(wire.ID)
	if !ok || deviceID == "" || len(deviceID) > maxDeviceIDLength {
		return Device{}, DropBadID
	}
	device := Device{ID: id.DeviceID(deviceID)}
	var inner struct {
		UserID   jsontext.Value `json:"user_id"`
		DeviceID jsontext.Value `json:"device_id"`
	}
	if !readObject(wire.Keys, &inner) {
		return device, DropNoObject
	}
	if !absentOr(inner.UserID, string(owner)) || !absentOr(inner.DeviceID, deviceID) {
		return device, DropOtherID
	}
	if name, ok := readString(wire.DisplayName); ok && len(name) <= maxDisplayNameLength {
		device.DisplayName = name
	}
	device.Keys = json.RawMessage(wire.Keys)
	return device, ""
}

func (l *DeviceList) readCrossSigningKey(raw jsontext.Value, usage string) json.RawMessage {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var key struct {
		UserID string            `json:"user_id"`
		Usage  []string          `json:"usage"`
		Keys   map[string]string `json:"keys"`
	}
	if !readObject(raw, &key) || key.UserID != string(l.UserID) ||
		!slices.Contains(key.Usage, usage) || len(key.Keys) != 1 {
		l.Dropped[DropCrossSigner]++
		return nil
	}
	return json.RawMessage(raw)
}

// Size is about how many bytes the list takes.
func (l *DeviceList) Size() int {
	size := len(l.MasterKey) + len(l.SelfSigningKey)
	for _, d := range l.Devices {
		size += len(d.ID) + len(d.DisplayName) + len(d.Keys)
	}
	return size
}

// Encode writes the list as JSON of the same shape as it came, with the bytes of keys untouched ([json.Marshal] would
// rewrite them). [DecodeKept] reads it.
func (l *DeviceList) Encode() []byte {
	var out []byte
	member := func(name string, value []byte) {
		out = append(out, ',', '"')
		out = append(out, name...)
		out = append(out, '"', ':')
		out = append(out, value...)
	}
	out = append(out, `{"user_id":`...)
	out = append(out, quote(string(l.UserID))...)
	if l.StreamID != nil {
		member("stream_id", strconv.AppendInt(nil, *l.StreamID, 10))
	}
	member("devices", []byte{'['})
	for i, d := range l.Devices {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, `{"device_id":`...)
		out = append(out, quote(string(d.ID))...)
		member("keys", d.Keys)
		if d.DisplayName != "" {
			member("device_display_name", quote(d.DisplayName))
		}
		out = append(out, '}')
	}
	out = append(out, ']')
	if l.MasterKey != nil {
		member("master_key", l.MasterKey)
	}
	if l.SelfSigningKey != nil {
		member("self_signing_key", l.SelfSigningKey)
	}
	return append(out, '}')
}

// DecodeKept reads what [DeviceList.Encode] wrote, which was checked when it came.
func DecodeKept(raw []byte) (*DeviceList, error) {
	var l DeviceList
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, err
	}
	return &l, nil
}

func quote(s string) []byte {
	quoted, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		quoted, _ = jsontext.AppendQuote(nil, strings.ToValidUTF8(s, "\ufffd")) // it fails on invalid UTF-8 alone
	}
	return quoted
}

// Hash tells whether two lists say the same, whatever the order of devices and of JSON members and whatever the
// stream_id: it is a SHA-256 over the canonical form (RFC 8785) of the devices, sorted by ID, and cross-signing keys.
func (l *DeviceList) Hash() [sha256.Size]byte {
	devices := slices.Clone(l.Devices)
	slices.SortFunc(devices, func(a, b Device) int { return strings.Compare(string(a.ID), string(b.ID)) })
	sum := sha256.New()
	part := func(raw []byte) {
		canonical := jsontext.Value(bytes.Clone(raw))
		if err := canonical.Canonicalize(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil {
			canonical = raw
		}
		fmt.Fprintf(sum, "%d:", len(canonical))
		sum.Write(canonical)
	}
	part(l.MasterKey)
	part(l.SelfSigningKey)
	for _, d := range devices {
		part([]byte(d.ID))
		part([]byte(d.DisplayName))
		part(d.Keys)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// readObject reads one JSON object into the struct at into, and says whether it is one that every client can read: no
// name twice, all UTF-8, not nested without end. Names count with their case, as clients see them: an inner user_id
// could else be hidden behind a "User_ID".
func readObject(raw jsontext.Value, into any) bool {
	return raw.Kind() == '{' && len(raw) <= maxKeyBytes && depth(raw) <= maxKeyDepth && jsonv2.Unmarshal(raw, into) == nil
}

// depth is how deeply raw, which must be valid JSON, is nested.
func depth(raw []byte) int {
	deepest, now, inString := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{', c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}', c == ']':
			now--
		}
	}
	return deepest
}

func readString(raw jsontext.Value) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	return s, jsonv2.Unmarshal(raw, &s) == nil
}

func absentOr(raw jsontext.Value, want string) bool {
	if len(raw) == 0 {
		return true
	}
	got, ok := readString(raw)
	return ok && got == want
}
