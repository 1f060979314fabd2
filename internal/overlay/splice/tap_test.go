package splice

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// tap is the reference that the scanner is held against, in bytes and in speed: the same rules told by a whole JSON
// decoder that only finds offsets, while the bytes are copied verbatim.
type tap struct {
	edit    Edit
	dec     *jsontext.Decoder
	w       io.Writer
	pending bytes.Buffer // read by dec and not yet written
	written int64        // offset in the source of pending's first byte
	result  Result
	failed  bool
}

const tapFlush = 32 << 10

func runTap(w io.Writer, src io.Reader, e Edit) (Result, error) {
	t := &tap{edit: e, w: w, failed: len(e.Path) == 0 && len(e.Add) > 0}
	t.dec = jsontext.NewDecoder(io.TeeReader(src, &t.pending),
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	err := t.object(0)
	if err == nil {
		_, err = t.dec.ReadToken()
		t.result.Complete = errors.Is(err, io.EOF) && !t.failed
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if _, copyErr := t.pending.WriteTo(w); copyErr != nil {
		return t.result, copyErr
	}
	if _, copyErr := io.Copy(w, src); copyErr != nil {
		return t.result, copyErr
	}
	return t.result, err
}

func (t *tap) editing() bool { return !t.failed && len(t.edit.Add) > 0 }

// flush writes what lies before the offset in the source.
func (t *tap) flush(offset int64) {
	_, _ = t.w.Write(t.pending.Next(int(offset - t.written)))
	t.written = offset
}

func (t *tap) insertBefore(offset int64, text []byte) {
	t.flush(offset)
	_, _ = t.w.Write(text)
}

func (t *tap) object(level int) error {
	if k := t.dec.PeekKind(); k != '{' {
		if _, err := t.dec.ReadToken(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}
	if _, err := t.dec.ReadToken(); err != nil {
		return err
	}
	found, members := false, false
	for {
		name, err := t.dec.ReadToken()
		if err != nil {
			return err
		}
		if name.Kind() == '}' {
			break
		}
		members = true
		text := name.String()
		switch {
		case level < len(t.edit.Path) && text == t.edit.Path[level]:
			found = true
			err = t.onPath(level)
		case level == 0 && t.edit.Token != "" && text == t.edit.Token:
			err = t.token()
		default:
			err = t.skip()
		}
		if err != nil {
			return err
		}
	}
	if !found && t.editing() {
		comma := ""
		if members {
			comma = ","
		}
		quoted, _ := jsontext.AppendQuote([]byte(comma), t.edit.Path[level])
		t.insertBefore(t.dec.InputOffset()-1, append(append(quoted, ':'), t.built(level+1)...))
	}
	return nil
}

func (t *tap) onPath(level int) error {
	t.result.Depth = max(t.result.Depth, level+1)
	last := level+1 == len(t.edit.Path)
	switch k := t.dec.PeekKind(); {
	case last && k == '[':
		return t.array()
	case !last && k == '{':
		return t.object(level + 1)
	case k == 'n' && t.editing():
		if _, err := t.dec.ReadToken(); err != nil {
			return err
		}
		t.flush(t.dec.InputOffset() - 4)
		t.pending.Next(4)
		t.written += 4
		t.insertBefore(t.written, t.built(level+1))
		return nil
	}
	t.failed = t.failed || len(t.edit.Add) > 0
	return t.skip()
}

func (t *tap) array() error {
	if _, err := t.dec.ReadToken(); err != nil {
		return err
	}
	have := map[string]bool{}
	some := false
	for t.dec.PeekKind() != ']' {
		some = true
		if t.dec.PeekKind() != '"' {
			if err := t.skip(); err != nil {
				return err
			}
			continue
		}
		raw, err := t.dec.ReadValue()
		if err != nil {
			return err
		}
		unquoted, err := jsontext.AppendUnquote(nil, raw)
		if err != nil || len(raw) > maxToken {
			continue
		}
		text := string(unquoted)
		have[text] = true
		if t.edit.Watch != nil && t.edit.Watch([]byte(text)) {
			if t.result.SeenMore = len(t.result.Seen) >= MaxSeen; !t.result.SeenMore {
				t.result.Seen = append(t.result.Seen, text)
			}
		}
	}
	if _, err := t.dec.ReadToken(); err != nil {
		return err
	}
	if text := t.missing(have, some); t.editing() && len(text) > 0 {
		t.insertBefore(t.dec.InputOffset()-1, text)
	}
	return nil
}

func (t *tap) token() error {
	t.result.Token, t.result.HasToken = "", false
	if t.dec.PeekKind() != '"' {
		return t.skip()
	}
	raw, err := t.dec.ReadValue()
	if err != nil {
		return err
	}
	if text, err := jsontext.AppendUnquote(nil, raw); err == nil && len(raw) <= maxToken {
		t.result.Token, t.result.HasToken = string(text), true
	}
	return nil
}

func (t *tap) skip() error {
	depth := t.dec.StackDepth()
	for {
		if _, err := t.dec.ReadToken(); err != nil {
			return err
		}
		if t.pending.Len() > tapFlush {
			t.flush(t.dec.InputOffset())
		}
		if t.dec.StackDepth() == depth {
			return nil
		}
	}
}

func (t *tap) missing(have map[string]bool, comma bool) []byte {
	var text []byte
	for _, entry := range t.edit.Add {
		if have[entry] {
			continue
		}
		have[entry] = true
		if comma {
			text = append(text, ',')
		}
		text, _ = jsontext.AppendQuote(text, entry)
		comma = true
	}
	return text
}

func (t *tap) built(level int) []byte {
	text := append(append([]byte{'['}, t.missing(map[string]bool{}, false)...), ']')
	for i := len(t.edit.Path) - 1; i >= level; i-- {
		quoted, _ := jsontext.AppendQuote([]byte{'{'}, t.edit.Path[i])
		text = append(append(append(quoted, ':'), text...), '}')
	}
	return text
}
