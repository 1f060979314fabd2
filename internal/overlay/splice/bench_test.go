package splice

import (
	"bytes"
	"io"
	"testing"
)

// BenchmarkSync merges one user into a 20 MB answer whose device_lists come last, beside a plain copy and the JSON
// decoder as a tap.
func BenchmarkSync(b *testing.B) {
	body := bodies()["20 MB"]
	e := syncEdit(bob)
	run := func(name string, pass func(w io.Writer, src io.Reader) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := pass(sink{}, source{bytes.NewReader(body)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	buf := make([]byte, 32<<10)
	run("copy", func(w io.Writer, src io.Reader) error {
		_, err := io.CopyBuffer(w, src, buf)
		return err
	})
	run("jsontext tap", func(w io.Writer, src io.Reader) error {
		_, err := runTap(w, src, e)
		return err
	})
	run("splice, Read", func(w io.Writer, src io.Reader) error {
		r := NewReader(src, e)
		defer func() { _ = r.Close() }()
		_, err := io.CopyBuffer(w, struct{ io.Reader }{r}, buf)
		return err
	})
	run("splice, WriteTo", func(w io.Writer, src io.Reader) error {
		r := NewReader(src, e)
		defer func() { _ = r.Close() }()
		_, err := r.WriteTo(w)
		return err
	})
}

// BenchmarkIdle is the answer that a homeserver gives most: what the edit costs where there is nearly nothing to read.
func BenchmarkIdle(b *testing.B) {
	body := bodies()["idle Dendrite"]
	b.ReportAllocs()
	for b.Loop() {
		r := NewReader(bytes.NewReader(body), syncEdit(bob))
		if _, err := r.WriteTo(sink{}); err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}

// source and sink hide WriterTo and ReaderFrom, as a proxied body and a response have none. sink reads what it is given as a
// connection does.
type source struct{ r *bytes.Reader }

func (s source) Read(p []byte) (int, error) { return s.r.Read(p) }

type sink struct{}

var sunk [64 << 10]byte

func (sink) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		rest = rest[copy(sunk[:], rest):]
	}
	return len(p), nil
}
