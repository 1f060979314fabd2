package freshen

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"
)

var (
	// lenient takes what the JSON grammar takes. One device with a name twice or bytes that are no UTF-8 must not cost
	// the rest of the list.
	lenient = jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	// strict takes what every client can read: no name twice, all UTF-8. Names count with their case, as clients see
	// them: an inner user_id could else be hidden behind a "User_ID".
	strict = jsonv2.JoinOptions(jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
)

// ParseDeviceList reads the body of GET /user/devices/{target}, leniently part by part and strictly as a whole: a
// device that does not match is dropped and counted; a body that is no device list of target is an error, and so is one
// of whose devices none is left. body must not be longer than [MaxDeviceListBytes]; the list shares no memory with it.
func ParseDeviceList(body []byte, target id.UserID) (*DeviceList, error) {
	if len(body) > MaxDeviceListBytes {
		return nil, fmt.Errorf("device list of %d bytes is over the limit of %d", len(body), MaxDeviceListBytes)
	}
	wire, err := splitList(body)
	switch {
	case err != nil:
		return nil, err
	case wire.userID == nil:
		return nil, errors.New("no device list: it has no user_id")
	case *wire.userID != string(target):
		return nil, errors.New("the device list is another user's")
	case wire.devices == nil:
		return nil, errors.New("no device list: it has no devices")
	}
	list := &DeviceList{UserID: target, Dropped: map[DropReason]int{}}
	if n, err := strconv.ParseInt(string(wire.streamID), 10, 64); err == nil {
		list.StreamID = &n
	}
	in := newScanner(nil, strict)
	list.readDevices(in, wire.devices)
	if len(list.Devices) == 0 && len(wire.devices) > 0 {
		// An empty list means that all devices were deleted, and clients act on it.
		return nil, fmt.Errorf("none of the %d devices in the list can be used", len(wire.devices))
	}
	list.MasterKey = list.readCrossSigningKey(in, wire.masterKey, "master")
	list.SelfSigningKey = list.readCrossSigningKey(in, wire.selfSigningKey, "self_signing")
	return list, nil
}

// wireList is the parts of a list as they stand in the body, unchecked but for the JSON grammar.
type wireList struct {
	userID                    *string
	streamID                  []byte
	devices                   [][]byte // nil where absent or null
	masterKey, selfSigningKey []byte
}

func splitList(body []byte) (list wireList, err error) {
	in := newScanner(body, lenient)
	member := func(name []byte) error {
		if string(name) == "devices" {
			list.devices, err = in.devices()
			return err
		}
		value, err := in.value()
		if err != nil {
			return err
		}
		switch string(name) {
		case "user_id":
			list.userID = nil
			if user, ok := readString(value); ok {
				list.userID = &user
			} else if string(value) != "null" {
				return errors.New("its user_id is no string")
			}
		case "stream_id":
			list.streamID = value
		case "master_key":
			list.masterKey = value
		case "self_signing_key":
			list.selfSigningKey = value
		}
		return nil
	}
	if in.dec.PeekKind() == 'n' { // null is an object without members, as elsewhere in such an answer
		_, err = in.value()
	} else {
		_, err = in.object(member)
	}
	if err == nil {
		err = in.end()
	}
	if err != nil {
		return wireList{}, fmt.Errorf("no device list: %w", err)
	}
	return list, nil
}

func (l *DeviceList) readDevices(in *scanner, raw [][]byte) {
	l.Devices = make([]Device, 0, len(raw))
	seen := make(map[id.DeviceID]int, len(raw))
	for _, r := range raw {
		device, reason := in.device(r, l.UserID)
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

func (l *DeviceList) readCrossSigningKey(in *scanner, raw []byte, usage string) json.RawMessage {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if !in.isCrossSigningKey(raw, l.UserID, usage) {
		l.Dropped[DropCrossSigner]++
		return nil
	}
	return bytes.Clone(raw)
}

// scanner goes through JSON without making anything of it: values are parts of what it scans.
type scanner struct {
	raw     []byte
	options jsontext.Options
	buffer  bytes.Buffer // of raw, for dec
	dec     jsontext.Decoder
}

func newScanner(raw []byte, options jsontext.Options) *scanner {
	s := &scanner{options: options}
	s.reset(raw)
	return s
}

func (s *scanner) reset(raw []byte) {
	s.raw = raw
	s.buffer = *bytes.NewBuffer(raw)
	s.dec.Reset(&s.buffer, s.options)
}

// value returns the next value, or the name of a member in its quotes.
func (s *scanner) value() ([]byte, error) {
	read, err := s.dec.ReadValue()
	if err != nil {
		return nil, err
	}
	end := int(s.dec.InputOffset())
	return s.raw[end-len(read) : end], nil
}

// object scans the next value, which must be an object, and returns it. member is called behind each name and must scan
// the value.
func (s *scanner) object(member func(name []byte) error) ([]byte, error) {
	if s.dec.PeekKind() != '{' {
		return nil, errors.New("it is no JSON object")
	}
	if _, err := s.dec.ReadToken(); err != nil {
		return nil, err
	}
	start := s.dec.InputOffset() - 1
	for s.dec.PeekKind() != '}' {
		name, err := s.value()
		if err != nil {
			return nil, err
		}
		if err := member(unquote(name)); err != nil {
			return nil, err
		}
	}
	_, err := s.dec.ReadToken()
	return s.raw[start:s.dec.InputOffset()], err
}

// end fails if anything follows.
func (s *scanner) end() error {
	switch _, err := s.dec.ReadToken(); {
	case err == nil:
		return errors.New("something follows it")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// devices scans the next value, an array, or null for none.
func (s *scanner) devices() ([][]byte, error) {
	if s.dec.PeekKind() == 'n' {
		_, err := s.value()
		return nil, err
	}
	devices := [][]byte{}
	err := s.array(func() error {
		if len(devices) == MaxDevices {
			return fmt.Errorf("it is over the limit of %d devices", MaxDevices)
		}
		one, err := s.value()
		devices = append(devices, one)
		return err
	})
	return devices, err
}

// array scans the next value, which must be an array. element must scan the value before which it is called.
func (s *scanner) array(element func() error) error {
	if s.dec.PeekKind() != '[' {
		return errors.New("it is no JSON array where one belongs")
	}
	if _, err := s.dec.ReadToken(); err != nil {
		return err
	}
	for s.dec.PeekKind() != ']' {
		if err := element(); err != nil {
			return err
		}
	}
	_, err := s.dec.ReadToken()
	return err
}

// device reads one device in a pass over it. It returns the device's ID even where the device must be dropped, so that
// a duplicate of it is seen.
func (s *scanner) device(raw []byte, owner id.UserID) (Device, DropReason) {
	if len(raw) > maxKeyBytes || tooDeep(raw) {
		return Device{}, DropNoObject
	}
	s.reset(raw)
	var rawID, rawName, keys, innerUser, innerDevice []byte
	inner := func(name []byte) (err error) {
		switch string(name) {
		case "user_id":
			innerUser, err = s.value()
		case "device_id":
			innerDevice, err = s.value()
		default:
			err = s.dec.SkipValue()
		}
		return err
	}
	_, err := s.object(func(name []byte) (err error) {
		switch {
		case string(name) == "device_id":
			rawID, err = s.value()
		case string(name) == "device_display_name":
			rawName, err = s.value()
		case string(name) == "keys" && s.dec.PeekKind() == '{':
			keys, err = s.object(inner)
		default:
			err = s.dec.SkipValue()
		}
		return err
	})
	if err != nil {
		return Device{}, DropNoObject
	}
	deviceID, ok := readString(rawID)
	if !ok || deviceID == "" || len(deviceID) > maxDeviceIDLength {
		return Device{}, DropBadID
	}
	device := Device{ID: id.DeviceID(deviceID)}
	if keys == nil {
		return device, DropNoObject
	}
	if !absentOr(innerUser, string(owner)) || !absentOr(innerDevice, deviceID) {
		return device, DropOtherID
	}
	if name, ok := readString(rawName); ok && len(name) <= maxDisplayNameLength {
		device.DisplayName = name
	}
	device.Keys = bytes.Clone(keys)
	return device, ""
}

// isCrossSigningKey says whether raw is owner's key for usage, a single one, in an object that every client can read.
func (s *scanner) isCrossSigningKey(raw []byte, owner id.UserID, usage string) bool {
	if len(raw) > maxKeyBytes || tooDeep(raw) {
		return false
	}
	s.reset(raw)
	var user string
	isFor, keys := false, 0
	text := func() (string, error) {
		value, err := s.value()
		said, ok := readString(value)
		if err == nil && !ok {
			err = errors.New("it is no string")
		}
		return said, err
	}
	_, err := s.object(func(name []byte) (err error) {
		switch string(name) {
		case "user_id":
			user, err = text()
		case "usage":
			err = s.array(func() error {
				one, err := text()
				isFor = isFor || one == usage
				return err
			})
		case "keys":
			_, err = s.object(func([]byte) error {
				keys++
				_, err := text()
				return err
			})
		default:
			err = s.dec.SkipValue()
		}
		return err
	})
	return err == nil && user == string(owner) && isFor && keys == 1
}

// tooDeep says whether raw, which must be valid JSON, is nested more than maxKeyDepth levels.
func tooDeep(raw []byte) bool {
	// Nothing is nested more deeply than it has brackets, and real devices have a handful.
	if bytes.Count(raw, []byte{'{'})+bytes.Count(raw, []byte{'['}) <= maxKeyDepth {
		return false
	}
	now, inString := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{', c == '[':
			if now++; now > maxKeyDepth {
				return true
			}
		case c == '}', c == ']':
			now--
		}
	}
	return false
}

// readString reads a JSON string; it fails for anything else and for nil.
func readString(raw []byte) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	return string(unquote(raw)), true
}

// unquote returns what a JSON string says. What is no UTF-8 stays or becomes U+FFFD.
func unquote(raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	said, _ := jsontext.AppendUnquote(nil, raw)
	return said
}

func absentOr(raw []byte, want string) bool {
	if len(raw) == 0 {
		return true
	}
	got, ok := readString(raw)
	return ok && got == want
}
