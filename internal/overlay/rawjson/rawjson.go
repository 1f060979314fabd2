// Package rawjson changes members of a JSON object and leaves every other byte of it as it was: order, white space,
// escapes, duplicate names and invalid UTF-8 included, since signatures and clients may hang on them.
package rawjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// Edit changes the member called Name. Apply is given its raw value, or nil where the object has none, and returns
// the value to put there; nil leaves the member out. It is called for each member of that name, should there be several,
// and must not change its argument.
type Edit struct {
	Name  string
	Apply func(old []byte) ([]byte, error)
}

// Set is an [Edit.Apply] that puts value there whatever was there before; nil removes.
func Set(value []byte) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) { return value, nil }
}

// Member is one member of an object: its decoded name, and where in the object its name begins and its value lies.
type Member struct {
	Name            string
	From, Value, To int
}

// Members finds the members of the one object that raw holds. It fails if raw is anything else; the strings and
// numbers inside are checked as JSON, but for UTF-8 and duplicate names.
func Members(raw []byte) ([]Member, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if dec.PeekKind() != '{' {
		return nil, errors.New("not a JSON object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	var members []Member
	for dec.PeekKind() != '}' {
		name, err := dec.ReadValue()
		if err != nil {
			return nil, fmt.Errorf("not a whole JSON object: %w", err)
		}
		m := Member{From: int(dec.InputOffset()) - len(name)}
		// What is no UTF-8 has become U+FFFD, which is what a decoder would make of it.
		text, _ := jsontext.AppendUnquote(nil, name)
		m.Name = string(text)
		value, err := dec.ReadValue()
		if err != nil {
			return nil, fmt.Errorf("not a whole JSON object: %w", err)
		}
		m.To = int(dec.InputOffset())
		m.Value = m.To - len(value)
		members = append(members, m)
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, fmt.Errorf("not a whole JSON object: %w", err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}

// Rewrite applies edits, whose names must differ, to the object raw. Members that it lacks are added at its end, in the
// order of the edits. A member that goes takes with it the comma and white space before it, or, as the first, those
// behind it. The result may share memory with raw.
func Rewrite(raw []byte, edits []Edit) ([]byte, error) {
	members, err := Members(raw)
	if err != nil {
		return nil, err
	}
	if len(edits) == 0 {
		return raw, nil
	}
	pending := make(map[string]int, len(edits))
	for i, e := range edits {
		pending[e.Name] = i
	}
	found := make([]bool, len(edits))
	out := make([]byte, 0, len(raw)+len(raw)/8+64)
	begun := false
	end := bytes.IndexByte(raw, '{') + 1 // of what is dealt with
	for i, m := range members {
		value := raw[m.Value:m.To]
		if at, ok := pending[m.Name]; ok {
			found[at] = true
			if value, err = edits[at].Apply(value); err != nil {
				return nil, fmt.Errorf("%s: %w", edits[at].Name, err)
			}
		}
		if i == 0 {
			out = append(out, raw[:m.From]...)
		} else if begun && value != nil {
			out = append(out, raw[end:m.From]...)
		}
		if value != nil {
			out = append(out, raw[m.From:m.Value]...)
			out = append(out, value...)
			begun = true
		}
		end = m.To
	}
	if len(members) == 0 {
		out = append(out, raw[:end]...)
	}
	for i, e := range edits {
		if found[i] {
			continue
		}
		if out, begun, err = add(out, begun, e); err != nil {
			return nil, err
		}
	}
	return append(out, raw[end:]...), nil
}

// add appends the member that e makes, if it makes one; begun says whether another stands before it.
func add(out []byte, begun bool, e Edit) ([]byte, bool, error) {
	value, err := e.Apply(nil)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", e.Name, err)
	}
	if value == nil {
		return out, begun, nil
	}
	if begun {
		out = append(out, ',')
	}
	out = append(AppendString(out, e.Name), ':')
	return append(out, value...), true, nil
}

// RewriteMember is an [Edit.Apply] that rewrites an object which is itself a member. Where that is absent or null and
// the edits add something, it is made; where it is anything else but an object, it fails.
func RewriteMember(edits []Edit) func([]byte) ([]byte, error) {
	return func(old []byte) ([]byte, error) {
		if old != nil && string(old) != "null" {
			return Rewrite(old, edits)
		}
		made, err := Rewrite([]byte("{}"), edits)
		if err != nil || string(made) == "{}" {
			return old, err
		}
		return made, nil
	}
}

// AppendString appends s as a JSON string; what is no UTF-8 becomes U+FFFD.
func AppendString(dst []byte, s string) []byte {
	quoted, _ := jsontext.AppendQuote(dst, s)
	return quoted
}
