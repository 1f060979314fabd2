package overlay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strconv"
)

// decode undoes the encoding of an answer that is to be edited. Upstream was asked for none; one that gzips all the
// same is understood, any other passes as it came, and so does what is no gzip: then ok is false.
func decode(resp *http.Response) (ok bool) {
	switch resp.Header.Get("Content-Encoding") {
	case "", "identity":
		return true
	case "gzip":
	default:
		return false
	}
	buffered := bufio.NewReaderSize(resp.Body, 32<<10)
	body := &readCloser{buffered, resp.Body}
	resp.Body = body
	// The plainest header alone (RFC 1952, no flags), which cannot fail later: nothing may be consumed in vain.
	if head, err := buffered.Peek(10); err != nil || !bytes.Equal(head[:4], []byte{0x1f, 0x8b, 8, 0}) {
		return false
	}
	plain, err := gzip.NewReader(buffered)
	if err != nil {
		return false
	}
	body.Reader = plain
	resp.Header.Del("Content-Encoding")
	resp.Uncompressed = true
	return true
}

type readCloser struct {
	io.Reader
	io.Closer
}

// changedLength adapts the headers to a body that was edited. -1 means that its length is not known yet.
func changedLength(resp *http.Response, n int64) {
	resp.ContentLength = n
	resp.Header.Del("Etag")
	if n < 0 {
		resp.Header.Del("Content-Length")
		return
	}
	resp.Header.Set("Content-Length", strconv.FormatInt(n, 10))
}

// take reads a body of at most limit bytes. If it is longer or breaks off, ok is false, and the reader that it returns
// gives everything, the error included.
func take(body io.ReadCloser, limit int64) (whole []byte, all io.ReadCloser, ok bool) {
	read, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(read)) <= limit {
		return read, &readCloser{bytes.NewReader(read), body}, true
	}
	return nil, &readCloser{io.MultiReader(bytes.NewReader(read), rest{body, err}), body}, false
}

// rest goes on with a body, or repeats the error that it broke off with.
type rest struct {
	body io.Reader
	err  error
}

func (r rest) Read(p []byte) (int, error) {
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return 0, r.err
	}
	return r.body.Read(p)
}
