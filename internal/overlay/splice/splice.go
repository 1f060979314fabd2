// Package splice merges strings into one array of a JSON object while the object streams past: the user IDs that a
// device is owed, into device_lists.changed of the homeserver's answer to /sync. It knows nothing of HTTP.
//
// It is no validator. What cannot matter to the edit (every value off the path) is skipped by counting brackets outside
// strings, whatever else it holds, and leaves as it came. The rules, all of them so that a /sync never breaks:
//
//   - Every byte outside the insertions is the source's, in its order, also where the source is no JSON at all.
//   - A syntax error on the path, nesting beyond 10,000 levels or the end of the source in mid-object ends the editing,
//     never the copying.
//   - An array on the path gets what it lacks, at its end. A missing member is made, at the end of its object. A null
//     is replaced. A value of any other type is left alone, and nothing is edited after it.
//   - A key that stands twice is edited in each place, since parsers differ in which they take.
//   - Nothing is held back but the first letters of a null that may be replaced.
package splice

import (
	"errors"
	"io"
	"sync"
)

const (
	// maxToken bounds the strings that are looked at (keys on the path, entries of the list, the token), quotes and
	// escapes included. A longer one equals none that is looked for.
	maxToken = 4 << 10
	// MaxSeen bounds [Result.Seen].
	MaxSeen = 10_000
	// bufferSize is how much is read from the source at a time: as much as the proxy writes at a time.
	bufferSize = 128 << 10
	// maxEmptyReads is how often in a row a source may answer with neither bytes nor an error.
	maxEmptyReads = 100
)

// Edit says what is merged where, and what is looked for on the way.
type Edit struct {
	// Path names the array by the keys that lead to it from the top, such as "device_lists", "changed". All but the
	// last name objects. Empty, it names nothing.
	Path []string
	// Add holds what the array must hold in the end. Empty, every byte passes as it came and the array is only watched.
	Add []string
	// Token is the key of the top-level string that the result reports: "next_batch", or "pos" for sliding sync. Empty,
	// none is.
	Token string
	// Watch picks the entries of the source's own array that the result reports; nil picks none. It is shown the decoded
	// strings of at most 4 KiB that are UTF-8, and must not keep its argument.
	Watch func(entry []byte) bool
}

// Result is what one pass has found.
type Result struct {
	// Complete says that the source ended after one whole object (and nothing but white space), and that its array now
	// holds every entry of Add in each place where the path leads.
	Complete bool
	// Token is the decoded value of the top-level member [Edit.Token], the last one if there are several. HasToken is
	// false where there is none, and where it is no valid string or longer than 4 KiB.
	Token    string
	HasToken bool
	// Depth is how many names of the path the source's own object had, one inside the other, at the most.
	Depth int
	// Seen holds the entries that the source's own array held and [Edit.Watch] picked, as often as they stood there, at
	// most [MaxSeen]; SeenMore says that there were more.
	Seen     []string
	SeenMore bool
}

var errClosed = errors.New("the JSON splicer was read after it was closed")

// buffers is what a reader borrows while it works, so that its own allocations do not grow with the body.
type buffers struct {
	chunk   [bufferSize]byte
	token   [maxToken]byte // a string that stands in two chunks
	scratch [maxToken]byte // a string with its escapes undone
	insert  []byte
}

var pool = sync.Pool{New: func() any { return new(buffers) }}

// maxPooledInsert is the most that a pooled insertion buffer may keep.
const maxPooledInsert = 64 << 10

// Reader reads the edited object. It must be closed, is not safe for concurrent use, and fails only where its source
// does.
type Reader struct {
	src     io.Reader
	scan    scanner
	bufs    *buffers
	pending []byte // read and not yet scanned, part of bufs.chunk
	out     []byte // decided and not yet handed out
	err     error  // what the source ended with
}

// NewReader returns a reader of src with e merged in. It reads nothing yet.
func NewReader(src io.Reader, e Edit) *Reader {
	r := &Reader{src: src, bufs: pool.Get().(*buffers)}
	r.scan.init(e, r.bufs)
	return r
}

// Close gives the buffers back. It does not close the source. The result stays valid.
func (r *Reader) Close() error {
	if r.bufs == nil {
		return nil
	}
	if cap(r.bufs.insert) > maxPooledInsert {
		r.bufs.insert = nil
	}
	pool.Put(r.bufs)
	r.bufs, r.pending, r.out = nil, nil, nil
	r.scan.release()
	return nil
}

// Result says what was found. It is final once Read has returned the source's last error or WriteTo has returned.
func (r *Reader) Result() Result {
	result := r.scan.result
	result.Complete = errors.Is(r.err, io.EOF) && r.scan.complete()
	return result
}

// Read returns as soon as the source has given anything that is decided. Its error is the source's.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.advance(); err != nil {
		return 0, err
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// WriteTo writes everything to w, in one Write for each read of the source apart from those that an insertion splits.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if err := r.advance(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(r.out)
		total += int64(n)
		r.out = r.out[n:]
		if err != nil {
			return total, err
		}
		if len(r.out) > 0 {
			return total, io.ErrShortWrite
		}
	}
}

// advance makes out non-empty or returns the source's error.
func (r *Reader) advance() error {
	if r.bufs == nil {
		return errClosed
	}
	for len(r.out) == 0 {
		switch {
		case len(r.scan.insert) > 0:
			r.out, r.scan.insert = r.scan.insert, nil
		case len(r.pending) > 0:
			emit, consumed := r.scan.scan(r.pending)
			r.out, r.pending = r.pending[:emit], r.pending[consumed:]
		case r.err != nil:
			if r.scan.flushHeld(); len(r.scan.insert) == 0 {
				return r.err
			}
		default:
			r.fill()
		}
	}
	return nil
}

func (r *Reader) fill() {
	for range maxEmptyReads {
		n, err := r.src.Read(r.bufs.chunk[:])
		r.pending, r.err = r.bufs.chunk[:n], err
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}
