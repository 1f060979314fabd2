package overlay

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Whom an answer tells about is acknowledged, so nobody may be among them of whom it says nothing.
func FuzzAnswered(f *testing.F) {
	const bob, carol = id.UserID("@bob:b.example"), id.UserID("@carol:c.example")
	f.Add([]byte(`{"device_keys":{"@bob:b.example":{}},"failures":{"c.example":{}}}`))
	f.Add([]byte(`{"device_keys":{"@bob:b.example":null,"@carol:c.example":{}},"failures":{"c.example":1},"failures":{}}`))
	f.Add([]byte(`{"device_keys":null,"failures":[]}`))
	f.Add([]byte(`{"Device_Keys":{"@bob:b.example":{}}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		targets := []id.UserID{bob, carol}
		got := answered(answer, targets)
		if len(got) > 0 && !json.Valid(answer) {
			t.Fatalf("%q is no JSON, and tells about %v", answer, got)
		}
		for _, user := range got {
			// However it is escaped, the ID takes at least its own length.
			if !slices.Contains(targets, user) || len(answer) < len(user) {
				t.Fatalf("%q tells about %s", answer, user)
			}
		}
		if !slices.Equal(targets, []id.UserID{bob, carol}) {
			t.Fatal("the targets were changed")
		}
	})
}

// What a homeserver calls compressed may be anything. Nothing of it may be lost: where it cannot be read as what it says,
// it passes as it came, or breaks off as it came.
func FuzzDecodeAndTake(f *testing.F) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write([]byte(`{"device_keys":{}}`))
	_ = w.Close()
	f.Add(zipped.Bytes(), "gzip", int64(1<<10))
	f.Add(zipped.Bytes()[:zipped.Len()/2], "gzip", int64(1<<10))
	f.Add(zipped.Bytes(), "gzip", int64(3))
	f.Add([]byte("plain"), "gzip", int64(3))
	f.Add([]byte("plain"), "", int64(3))
	f.Add([]byte("plain"), "br", int64(30))
	f.Fuzz(func(t *testing.T, body []byte, encoding string, limit int64) {
		limit = max(0, min(limit, 1<<16))
		resp := &http.Response{Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body))}
		resp.Header.Set("Content-Encoding", encoding)
		ok := decode(resp)
		if !ok {
			all, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(all, body) {
				t.Fatalf("%q became %q (%v)", body, all, err)
			}
			return
		}
		whole, all, taken := take(resp.Body, limit)
		if int64(len(whole)) > limit {
			t.Fatalf("%d bytes were taken, the limit is %d", len(whole), limit)
		}
		// A few bytes of gzip may be a thousand times as many.
		read, err := io.ReadAll(io.LimitReader(all, 1<<20))
		if taken && (err != nil || !bytes.Equal(read, whole)) {
			t.Fatalf("%q was taken, and %q is passed on (%v)", whole, read, err)
		}
		if !taken && err == nil && int64(len(read)) <= limit {
			t.Fatalf("%q is whole and within the limit of %d, and was not taken", read, limit)
		}
		if resp.Header.Get("Content-Encoding") == "" && encoding != "gzip" && !bytes.Equal(read, body) && len(read) < 1<<20 {
			t.Fatalf("%q became %q", body, read)
		}
	})
}
