package freshen

import (
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

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
	const around = 80 // what stands around a device
	out := make([]byte, 0, l.Size()+around*(len(l.Devices)+2)+len(l.UserID))
	out = appendQuoted(append(out, `{"user_id":`...), string(l.UserID))
	if l.StreamID != nil {
		out = strconv.AppendInt(append(out, `,"stream_id":`...), *l.StreamID, 10)
	}
	out = append(out, `,"devices":[`...)
	for i, d := range l.Devices {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendQuoted(append(out, `{"device_id":`...), string(d.ID))
		out = append(append(out, `,"keys":`...), d.Keys...)
		if d.DisplayName != "" {
			out = appendQuoted(append(out, `,"device_display_name":`...), d.DisplayName)
		}
		out = append(out, '}')
	}
	out = append(out, ']')
	if l.MasterKey != nil {
		out = append(append(out, `,"master_key":`...), l.MasterKey...)
	}
	if l.SelfSigningKey != nil {
		out = append(append(out, `,"self_signing_key":`...), l.SelfSigningKey...)
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

// appendQuoted appends s as a JSON string; what is no UTF-8 becomes U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	quoted, _ := jsontext.AppendQuote(dst, s) // it fails on invalid UTF-8 alone, having replaced it
	return quoted
}

// Hash tells whether two lists say the same, whatever the order of devices and of JSON members and whatever the
// stream_id: it is a SHA-256 over the canonical form (RFC 8785) of the devices, sorted by ID, and cross-signing keys.
func (l *DeviceList) Hash() [sha256.Size]byte {
	devices := slices.Clone(l.Devices)
	slices.SortFunc(devices, func(a, b Device) int { return strings.Compare(string(a.ID), string(b.ID)) })
	sum := sha256.New()
	var length, canonical []byte // used again for every part
	text := func(part []byte) {
		length = append(strconv.AppendInt(length[:0], int64(len(part)), 10), ':')
		sum.Write(length)
		sum.Write(part)
	}
	object := func(raw []byte) {
		canonical = append(canonical[:0], raw...)
		if err := (*jsontext.Value)(&canonical).Canonicalize(lenient); err != nil {
			canonical = append(canonical[:0], raw...)
		}
		text(canonical)
	}
	object(l.MasterKey)
	object(l.SelfSigningKey)
	for _, d := range devices {
		text([]byte(d.ID))
		text([]byte(d.DisplayName))
		object(d.Keys)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}
