package rawjson

import (
	"errors"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// Bytes outside the edit carry signatures and other people's keys: none may change.
func TestRewrite(t *testing.T) {
	t.Parallel()
	set, gone := Set([]byte(`9`)), Set(nil)
	for _, c := range []struct {
		name, in, out string
		edits         []Edit
	}{
		{"nothing", ` {"a" : 1e0} `, ` {"a" : 1e0} `, nil},
		{"replace", `{"a": 1 , "b":{"a":1}}`, `{"a": 9 , "b":{"a":1}}`, []Edit{{"a", set}}},
		{"replace, escaped name", `{"\u0061":[1]}`, `{"\u0061":9}`, []Edit{{"a", set}}},
		{"replace both", `{"a":1,"a":2}`, `{"a":9,"a":9}`, []Edit{{"a", set}}},
		{"add", `{"b":1 }`, `{"b":1,"a":9 }`, []Edit{{"a", set}}},
		{"add to nothing", ` { } `, ` {"a":9 } `, []Edit{{"a", set}}},
		{"add two", `{}`, `{"a":9,"\"":9}`, []Edit{{"a", set}, {`"`, set}}},
		{"remove the first", `{ "a":1 , "b":2}`, `{ "b":2}`, []Edit{{"a", gone}}},
		{"remove the last", `{"b":2 , "a":1 }`, `{"b":2 }`, []Edit{{"a", gone}}},
		{"remove between", `{"b":2, "a":1,"c":3}`, `{"b":2,"c":3}`, []Edit{{"a", gone}}},
		{"remove all", `{ "a":1, "b":2 }`, `{  }`, []Edit{{"a", gone}, {"b", gone}}},
		{"remove the first two", `{"a":1, "b":2, "c":3}`, `{"c":3}`, []Edit{{"a", gone}, {"b", gone}}},
		{"remove all and add", `{"a":1}`, `{"c":9}`, []Edit{{"a", gone}, {"c", set}}},
		{"remove what is not there", `{"b":1}`, `{"b":1}`, []Edit{{"a", gone}}},
		{"inside, made", `{}`, `{"a":{"b":9}}`, []Edit{{"a", RewriteMember([]Edit{{"b", set}})}}},
		{"inside, null", `{"a":null}`, `{"a":{"b":9}}`, []Edit{{"a", RewriteMember([]Edit{{"b", set}})}}},
		{"inside, nothing to make", `{"a":null}`, `{"a":null}`, []Edit{{"a", RewriteMember([]Edit{{"b", gone}})}}},
		{"inside, there", `{"a":{"c":"\u00e9"}}`, `{"a":{"c":"\u00e9","b":9}}`, []Edit{{"a", RewriteMember([]Edit{{"b", set}})}}},
		{"invalid UTF-8", "{\"\xff\":\"\xc3\",\"a\":1}", "{\"\xff\":\"\xc3\",\"a\":9}", []Edit{{"a", set}}},
	} {
		out, err := Rewrite([]byte(c.in), c.edits)
		if err != nil || string(out) != c.out {
			t.Errorf("%s: %v\n got %s\nwant %s", c.name, err, out, c.out)
		}
	}
}

// What is no object is nobody's to edit.
func TestRewriteRefuses(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, in := range []string{``, ` `, `null`, `[]`, `"{}"`, `{`, `{"a"`, `{"a":}`, `{"a":1,}`, `{"a":1}x`, `{}{}`, `{"a":[}`, `<html>`} {
		if out, err := Rewrite([]byte(in), []Edit{{"z", Set([]byte("1"))}}); err == nil {
			t.Errorf("%q became %q", in, out)
		}
	}
	fails := []Edit{{"a", func([]byte) ([]byte, error) { return nil, broken }}}
	for _, in := range []string{`{}`, `{"a":1}`} {
		if _, err := Rewrite([]byte(in), fails); !errors.Is(err, broken) {
			t.Errorf("%s: %v", in, err)
		}
	}
	if _, err := Rewrite([]byte(`{"a":[]}`), []Edit{{"a", RewriteMember(nil)}}); err == nil {
		t.Error("an array was rewritten as an object")
	}
}

// An edit of foreign bytes must never panic, and JSON stays JSON.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{`{"a":1,"b":{"a":null}}`, `{ }`, `{"\u0061":"\ud800" , "b":[{}]}`, `{"b":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		edits := []Edit{{"a", Set(nil)}, {"b", Set([]byte(`9`))}, {"c", Set([]byte(`"x"`))}}
		out, err := Rewrite(in, edits)
		if err != nil {
			return
		}
		members, err := Members(out)
		if err != nil {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
		found := map[string]string{}
		for _, m := range members {
			found[m.Name] = string(out[m.Value:m.To])
		}
		if _, there := found["a"]; there || found["b"] != "9" || found["c"] != `"x"` {
			t.Fatalf("%q became %q", in, out)
		}
		if valid := jsontext.Value(in).IsValid(); valid && !jsontext.Value(out).IsValid() {
			t.Fatalf("%q was valid, %q is not", in, out)
		}
	})
}
