package splice

import (
	"bytes"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// state is where the scanner stands between two bytes. The ways between them:
//
//	start ─{─▶ keyOrEnd ─"─▶ inKey ─▶ colon ─▶ value ─▶ member's end ─,─▶ key ─"─▶ inKey …
//	                                            │            └─}─▶ member's end of the object around it, or done
//	                                            ├─ on the path: an object (keyOrEnd again, one level deeper),
//	                                            │  the array (elementOrEnd … elementEnd), or inNull
//	                                            ├─ the token: inToken
//	                                            └─ anything else: skipping, skippingString, skippingScalar
//
// Whatever does not fit leads to copying, where it stays.
type state uint8

const (
	start state = iota
	keyOrEnd
	key
	inKey
	colon
	value
	memberEnd
	elementOrEnd
	element
	inElement
	elementEnd
	inToken
	inNull
	skipping
	skippingString
	skippingScalar
	done
	copying
)

// maxDepth is how deep a skipped value may nest; jsontext draws the line at the same depth.
const maxDepth = 10_000

// frame is one object on the path.
type frame struct {
	members bool // it has one
	found   bool // it has the one that the path names
}

type scanner struct {
	edit  Edit
	index map[string]int // of edit.Add

	state  state
	frames []frame // the objects on the path that are open
	kind   kind    // of the value that the last key announces

	present  []bool // which of edit.Add stand in the open array
	elements bool   // the open array has one

	back    state // where a skipped value leads
	depth   int   // brackets open in it
	escaped bool  // the last byte of the open string was a backslash that escapes the next

	token   []byte // the part of the open string that earlier chunks held
	tooLong bool   // there was more than fits

	held     int  // letters of a null that wait for the rest
	closing  bool // the insertion before the bracket at hand is made
	failed   bool // the edit is not, or not everywhere, in the output
	insert   []byte
	bufs     *buffers
	result   Result
	observed func(insert []byte, replaced int) // tests look on here
}

type kind uint8

const (
	other kind = iota
	onPath
	isToken
)

func (s *scanner) init(e Edit, bufs *buffers) {
	s.bufs = bufs
	s.token = bufs.token[:0]
	s.index = make(map[string]int, len(e.Add))
	unique := e.Add[:0:0]
	for _, entry := range e.Add {
		if _, twice := s.index[entry]; !twice {
			s.index[entry] = len(unique)
			unique = append(unique, entry)
		}
	}
	e.Add = unique
	s.edit = e
	s.present = make([]bool, len(unique))
	s.frames = make([]frame, 0, len(e.Path)+1)
	s.failed = len(e.Path) == 0 && len(e.Add) > 0
}

func (s *scanner) release() { s.bufs, s.token, s.insert = nil, nil, nil }

func (s *scanner) complete() bool { return s.state == done && !s.failed }

// editing says whether insertions are still made.
func (s *scanner) editing() bool { return !s.failed && len(s.edit.Add) > 0 }

func (s *scanner) giveUp() {
	s.state, s.failed = copying, true
}

// scan looks at b until its end or an insertion. b[:emit] goes out, then s.insert; b[emit:consumed] does not, and
// b[consumed:] is to be scanned next.
func (s *scanner) scan(b []byte) (emit, consumed int) {
	i := 0
	for i < len(b) && len(s.insert) == 0 {
		switch s.state {
		case copying:
			return len(b), len(b)
		case skipping:
			i = s.skip(b, i)
		case skippingString:
			i = s.skipString(b, i)
		case skippingScalar:
			i = s.skipScalar(b, i)
		case inKey, inElement, inToken:
			i = s.readString(b, i)
		case inNull:
			if i > 0 {
				return i, i
			}
			return 0, s.readNull(b)
		default:
			if c := b[i]; c == ' ' || c == '\n' || c == '\t' || c == '\r' {
				i++
			} else {
				i = s.structure(c, i)
			}
		}
	}
	return i, i
}

// structure takes the byte c at i, outside strings and scalars, and returns where to go on: at i itself where c begins
// something that another state reads, or where something must be inserted before it.
func (s *scanner) structure(c byte, i int) int {
	switch {
	case s.state == value:
		return s.beginValue(c, i)
	case s.state == colon && c == ':':
		s.state = value
	case (s.state == keyOrEnd || s.state == key) && c == '"':
		s.frames[len(s.frames)-1].members = true
		s.beginString(inKey)
		return i
	case s.state == memberEnd && c == ',':
		s.state = key
	case (s.state == keyOrEnd || s.state == memberEnd) && c == '}':
		return s.endObject(i)
	case (s.state == elementOrEnd || s.state == elementEnd) && c == ']':
		return s.endArray(i)
	case s.state == elementEnd && c == ',':
		s.state = element
	case s.state == elementOrEnd || s.state == element:
		s.elements = true
		if c == '"' {
			s.beginString(inElement)
			return i
		}
		return s.beginSkip(c, i, elementEnd)
	case s.state == start && c == '{':
		s.frames = append(s.frames, frame{})
		s.state = keyOrEnd
	default:
		s.giveUp()
		return i
	}
	return i + 1
}

// beginValue takes the first byte of a member's value in an object on the path.
func (s *scanner) beginValue(c byte, i int) int {
	switch s.kind {
	case isToken:
		s.result.Token, s.result.HasToken = "", false
		if c == '"' {
			s.beginString(inToken)
			return i
		}
	case onPath:
		s.frames[len(s.frames)-1].found = true
		s.result.Depth = max(s.result.Depth, len(s.frames))
		last := len(s.frames) == len(s.edit.Path)
		switch {
		case last && c == '[':
			clear(s.present)
			s.elements, s.state = false, elementOrEnd
			return i + 1
		case !last && c == '{':
			s.frames = append(s.frames, frame{})
			s.state = keyOrEnd
			return i + 1
		case c == 'n' && s.editing():
			s.state, s.held = inNull, 0
			return i
		case len(s.edit.Add) > 0:
			s.failed = true
		}
	}
	return s.beginSkip(c, i, memberEnd)
}

func (s *scanner) endObject(i int) int {
	level := len(s.frames) - 1
	f := s.frames[level]
	if !f.found && s.editing() && !s.closing {
		text := s.bufs.insert[:0]
		if f.members {
			text = append(text, ',')
		}
		text = appendQuoted(text, s.edit.Path[level])
		text = append(text, ':')
		s.put(s.appendValue(text, level+1), 0)
		s.closing = true
		return i
	}
	s.closing = false
	s.frames = s.frames[:level]
	s.state = memberEnd
	if level == 0 {
		s.state = done
	}
	return i + 1
}

func (s *scanner) endArray(i int) int {
	if s.editing() && !s.closing {
		if text := s.appendMissing(s.bufs.insert[:0], s.elements); len(text) > 0 {
			s.put(text, 0)
			s.closing = true
			return i
		}
	}
	s.closing = false
	s.state = memberEnd
	return i + 1
}

// put makes text the next insertion; replaced bytes of the source give way to it.
func (s *scanner) put(text []byte, replaced int) {
	s.bufs.insert, s.insert = text, text
	if s.observed != nil {
		s.observed(text, replaced)
	}
}

// appendValue appends the array with all entries, inside the objects that path[level:] names.
func (s *scanner) appendValue(dst []byte, level int) []byte {
	inner := s.edit.Path[level:]
	for _, name := range inner {
		dst = append(dst, '{')
		dst = appendQuoted(dst, name)
		dst = append(dst, ':')
	}
	clear(s.present)
	dst = append(dst, '[')
	dst = s.appendMissing(dst, false)
	dst = append(dst, ']')
	for range inner {
		dst = append(dst, '}')
	}
	return dst
}

func (s *scanner) appendMissing(dst []byte, comma bool) []byte {
	for i, entry := range s.edit.Add {
		if s.present[i] {
			continue
		}
		if comma {
			dst = append(dst, ',')
		}
		dst = appendQuoted(dst, entry)
		comma = true
	}
	return dst
}

// appendQuoted appends s as a JSON string. Invalid UTF-8 becomes U+FFFD, which is all that can go wrong.
func appendQuoted(dst []byte, s string) []byte {
	quoted, _ := jsontext.AppendQuote(dst, s)
	return quoted
}

// readNull takes b from where a value on the path began with "n", and returns how much of it is decided: "null" gives
// way to what is added, anything else was held in vain.
func (s *scanner) readNull(b []byte) int {
	const null = "null"
	for i, c := range b {
		if c != null[s.held] {
			s.failed = true
			s.flushHeld()
			s.state, s.back = skippingScalar, memberEnd
			return i
		}
		if s.held++; s.held == len(null) {
			s.held = 0
			s.put(s.appendValue(s.bufs.insert[:0], len(s.frames)), len(null))
			s.state = memberEnd
			return i + 1
		}
	}
	return len(b)
}

// flushHeld lets the held letters of a null go as they came.
func (s *scanner) flushHeld() {
	if s.held > 0 {
		s.bufs.insert = append(s.bufs.insert[:0], "null"[:s.held]...)
		s.insert = s.bufs.insert
		s.held = 0
	}
}

// stringRead acts on a string that is wholly read; raw has its quotes, and is nil if the string was too long.
func (s *scanner) stringRead(raw []byte) {
	switch s.state {
	case inKey:
		s.state = colon
		s.kind = other
		name, ok := s.unquote(raw)
		level := len(s.frames) - 1
		switch {
		case !ok:
		case level < len(s.edit.Path) && string(name) == s.edit.Path[level]:
			s.kind = onPath
		case level == 0 && s.edit.Token != "" && string(name) == s.edit.Token:
			s.kind = isToken
		}
	case inToken:
		s.state = memberEnd
		if raw == nil {
			return
		}
		if text, err := jsontext.AppendUnquote(nil, raw); err == nil {
			s.result.Token, s.result.HasToken = string(text), true
		}
	case inElement:
		s.state = elementEnd
		if entry, ok := s.unquote(raw); ok {
			s.sawEntry(entry)
		}
	}
}

func (s *scanner) sawEntry(entry []byte) {
	if at, ok := s.index[string(entry)]; ok {
		s.present[at] = true
	}
	if s.edit.Watch == nil || !s.edit.Watch(entry) {
		return
	}
	if len(s.result.Seen) >= MaxSeen {
		s.result.SeenMore = true
		return
	}
	s.result.Seen = append(s.result.Seen, string(entry))
}

// unquote decodes raw; what is no UTF-8 equals nothing that is looked for. A string without a backslash stands for itself.
func (s *scanner) unquote(raw []byte) ([]byte, bool) {
	switch {
	case raw == nil:
		return nil, false
	case bytes.IndexByte(raw, '\\') < 0:
		return raw[1 : len(raw)-1], utf8.Valid(raw)
	}
	text, err := jsontext.AppendUnquote(s.bufs.scratch[:0], raw)
	return text, err == nil
}
