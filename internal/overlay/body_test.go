package overlay

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

// A poll that is asked again without waiting must otherwise be the same poll: another filter is another answer.
func TestOnlyTheTimeoutChanges(t *testing.T) {
	for query, want := range map[string]string{
		"":                                   "",
		"since=s":                            "since=s",
		"timeout=30000":                      "timeout=0",
		"since=a%2Bb+c&timeout=1&filter=%7B": "since=a%2Bb+c&timeout=0&filter=%7B",
		"t%69meout=5&x":                      "timeout=0&x",
		"timeout":                            "timeout=0",
		"timeout=1&timeout=2":                "timeout=0&timeout=0",
		"Timeout=1&timeouts=2&%zz=3&a;b":     "Timeout=1&timeouts=2&%zz=3&a;b",
	} {
		if got := withoutTimeout(query); got != want {
			t.Errorf("%q became %q, want %q", query, got, want)
		}
	}
}

func zipped(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text))
	_ = z.Close()
	return b.Bytes()
}

// What cannot be decoded must pass as it came, to the last byte.
func TestDecode(t *testing.T) {
	whole := zipped("hello")
	for name, c := range map[string]struct {
		encoding string
		body     []byte
		ok       bool
		want     string
	}{
		"none":       {"", []byte("x"), true, "x"},
		"identity":   {"identity", []byte("x"), true, "x"},
		"gzip":       {"gzip", whole, true, "hello"},
		"brotli":     {"br", []byte("x"), false, "x"},
		"several":    {"gzip, gzip", whole, false, string(whole)},
		"no gzip":    {"gzip", []byte("plain text that is long enough"), false, "plain text that is long enough"},
		"too short":  {"gzip", whole[:5], false, string(whole[:5])},
		"empty":      {"gzip", nil, false, ""},
		"with flags": {"gzip", append([]byte{0x1f, 0x8b, 8, 8}, whole[4:]...), false, string(append([]byte{0x1f, 0x8b, 8, 8}, whole[4:]...))},
	} {
		resp := &http.Response{Header: http.Header{"Content-Encoding": {c.encoding}}, Body: io.NopCloser(iotest.OneByteReader(bytes.NewReader(c.body)))}
		ok := decode(resp)
		got, err := io.ReadAll(resp.Body)
		if ok != c.ok || err != nil || string(got) != c.want {
			t.Errorf("%s: %v %q %v, want %v %q", name, ok, got, err, c.ok, c.want)
		}
		if ok && c.encoding == "gzip" && resp.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: Content-Encoding is %q", name, resp.Header.Get("Content-Encoding"))
		}
	}
}

// A body that is too long to be looked at, or breaks off, must still reach its reader whole, or broken where it broke.
func TestTake(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		body io.Reader
		ok   bool
		want string
		err  error
	}{
		"short":  {strings.NewReader("1234"), true, "1234", nil},
		"exact":  {strings.NewReader("12345"), true, "12345", nil},
		"long":   {strings.NewReader("123456789"), false, "123456789", nil},
		"broken": {io.MultiReader(strings.NewReader("123"), iotest.ErrReader(broken)), false, "123", broken},
		"late":   {io.MultiReader(strings.NewReader("1234567"), iotest.ErrReader(broken)), false, "1234567", broken},
	} {
		whole, all, ok := take(io.NopCloser(c.body), 5)
		got, err := io.ReadAll(all)
		if ok != c.ok || string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %v %q %v, want %v %q %v", name, ok, got, err, c.ok, c.want, c.err)
		}
		if ok && string(whole) != c.want {
			t.Errorf("%s: took %q", name, whole)
		}
	}
}

// What is read of a query must be what net/url reads of it: the homeserver acts on that.
func FuzzValueOf(f *testing.F) {
	for _, query := range []string{"since=s1&timeout=30000", "since=&since=x", "%73ince=a%20b+c", "since=%zz&since=y", "a;since=1&since=2", "since", "&&=&since=a=b"} {
		f.Add(query, "since")
	}
	f.Fuzz(func(t *testing.T, query, name string) {
		parsed, _ := url.ParseQuery(query)
		if got, want := valueOf(query, name), parsed.Get(name); got != want {
			t.Errorf("%q of %q is %q, want %q", name, query, got, want)
		}
	})
}
