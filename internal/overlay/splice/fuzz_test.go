package splice

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// A wrong byte in /sync makes a client lose whole rooms: whatever comes in, what goes out is the same but for the
// insertions; and where it is JSON, it is what a decoder that knows the rules makes of it.
func FuzzReader(f *testing.F) {
	for _, body := range bodies() {
		if len(body) < small {
			f.Add(body, uint16(len(body)/2), true)
			f.Add(body, uint16(len(body)/3), false)
		}
	}
	for _, s := range []string{
		`{"device_lists":{"changed":[[],{},"\\",1e9,0e0,"@bob:b.example"]},"device_lists":null}`,
		`{"\u0064evice_lists":{"changed":[]} , "next_batch":"\u00e9"} `,
		"{\"device_lists\":{\"changed\":[\"@bob:b.example\xa6\"]}}",
		`{"device_lists":{"changed":true}}`, `{"device_lists":nul`, `{"a":"\`, `[]`, `{"a":[}]}`, `{"next_batch":"\ud800"}`,
	} {
		f.Add([]byte(s), uint16(3), true)
	}
	f.Fuzz(func(t *testing.T, body []byte, cut uint16, adding bool) {
		e := syncEdit()
		if adding {
			e = syncEdit(bob, "@c:c")
		}
		e.Watch = func(entry []byte) bool { return bytes.HasPrefix(entry, []byte("@b")) }
		at := min(int(cut), len(body))
		src := &halves{body[:at], body[at:]}
		out, result := edited(t, src, string(body), e)
		slowOut, slowResult := edited(t, iotest.OneByteReader(bytes.NewReader(body)), string(body), e)
		if out != slowOut || !cmp.Equal(result, slowResult) {
			t.Fatalf("byte by byte it is %q %+v\n  cut at %d it is %q %+v", slowOut, slowResult, at, out, result)
		}
		if !adding && out != string(body) {
			t.Fatalf("nothing to add, and the bytes differ: %q", out)
		}
		var want bytes.Buffer
		wantResult, err := runTap(&want, bytes.NewReader(body), e)
		if err != nil {
			return
		}
		if out != want.String() {
			t.Fatalf("got  %q\nwant %q", out, &want)
		}
		if diff := cmp.Diff(wantResult, result); diff != "" {
			t.Fatal(diff)
		}
		if result.Complete && adding {
			sameValue(t, body, []byte(out), e)
		}
	})
}

// sameValue decodes both, makes the edit on the decoded source, and compares; where keys stand twice, the last counts
// on both sides.
func sameValue(t *testing.T, body, out []byte, e Edit) {
	t.Helper()
	var want, got map[string]json.RawMessage
	if json.Unmarshal(body, &want) != nil {
		return // encoding/json is stricter in places
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("the source decodes, the output does not: %v", err)
	}
	lists := map[string]json.RawMessage{}
	_ = json.Unmarshal(want["device_lists"], &lists)
	if lists == nil {
		lists = map[string]json.RawMessage{}
	}
	var changed []json.RawMessage // raw, so that numbers stay as they are
	_ = json.Unmarshal(lists["changed"], &changed)
	for _, entry := range e.Add {
		if !holds(changed, entry) {
			quoted, _ := json.Marshal(entry)
			changed = append(changed, quoted)
		}
	}
	lists["changed"], _ = json.Marshal(changed)
	want["device_lists"], _ = json.Marshal(lists)
	if diff := cmp.Diff(decoded(t, want), decoded(t, got)); diff != "" {
		t.Fatalf("decoded, the output is not the edited source: %s", diff)
	}
}

func holds(list []json.RawMessage, entry string) bool {
	return slices.ContainsFunc(list, func(raw json.RawMessage) bool {
		var s *string
		return json.Unmarshal(raw, &s) == nil && s != nil && *s == entry
	})
}

func decoded(t *testing.T, m map[string]json.RawMessage) any {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// halves gives each of its parts in one read.
type halves [2][]byte

func (h *halves) Read(p []byte) (int, error) {
	for i := range h {
		if len(h[i]) > 0 {
			n := copy(p, h[i])
			h[i] = h[i][n:]
			return n, nil
		}
	}
	return bytes.NewReader(nil).Read(p)
}
