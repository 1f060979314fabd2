package fedtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// H2 is the server's end of an HTTP/2 connection, written to frame by frame; what cannot be written any more is lost.
// Stream is that of the client's first request, and 0 where none was waited for.
type H2 struct {
	*http2.Framer
	Stream uint32
	User   string // who was asked for
	conn   net.Conn
	out    *bytes.Buffer // of compressed header fields
	hpack  *hpack.Encoder
}

// Script2 answers a request over HTTP/2, well or badly. gone is done when the other end has left or the test ends; a
// script that waits, waits for that. Afterwards the client is told in good order to use another connection.
type Script2 func(gone context.Context, h *H2)

// HTTP2 behaves well up to the end of the first request (TLS, HTTP/2 alone, SETTINGS), which script answers.
func HTTP2(script Script2) Server { return serveHTTP2(script, polite) }

// Deaf2 is HTTP2 with a server that reads nothing more after the first request.
func Deaf2(script Script2) Server { return serveHTTP2(script, deaf) }

// Mute2 hands the connection to script as soon as it speaks HTTP/2: no SETTINGS were sent, no request was waited for.
func Mute2(script Script2) Server { return serveHTTP2(script, mute) }

// manner is how an HTTP/2 server behaves around its script.
type manner int

const (
	polite manner = iota
	deaf
	mute
)

func serveHTTP2(script Script2, how manner) Server {
	return func(raw net.Conn, at Place) {
		conn := tls.Server(raw, serverConfig(at.Cert, "h2"))
		if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		out := &bytes.Buffer{}
		h := &H2{Framer: http2.NewFramer(conn, conn), conn: conn, out: out, hpack: hpack.NewEncoder(out)}
		h.AllowIllegalWrites = true
		h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		if how != mute && (h.WriteSettings() != nil || !h.awaitRequest()) {
			return
		}
		if how == deaf {
			gone, leave := context.WithCancel(context.Background())
			leave() // who does not read sees only that it can write no more
			script(gone, h)
			return
		}
		gone, leave := context.WithCancel(context.Background())
		defer leave()
		var reading sync.WaitGroup
		reading.Go(func() {
			defer leave()
			untilGone(conn)
		})
		script(gone, h)
		if how == polite {
			_ = h.WriteGoAway(h.Stream, http2.ErrCodeNo, nil)
		}
		reading.Wait()
	}
}

// awaitRequest reads up to the headers of the first request.
func (h *H2) awaitRequest() bool {
	for {
		frame, err := h.ReadFrame()
		if err != nil {
			return false
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() && h.WriteSettingsAck() != nil {
				return false
			}
		case *http2.MetaHeadersFrame:
			h.Stream, h.User = frame.StreamID, userIn(frame.PseudoValue("path"))
			return true
		}
	}
}

// Block compresses header fields, which come as name, value, name, value.
func (h *H2) Block(fields ...string) []byte {
	h.out.Reset()
	for pair := range slices.Chunk(fields, 2) {
		_ = h.hpack.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[len(pair)-1]})
	}
	return bytes.Clone(h.out.Bytes())
}

// Headers sends one HEADERS frame on the request's stream, with end as its END_STREAM.
func (h *H2) Headers(end bool, fields ...string) {
	h.HeadersOn(h.Stream, end, fields...)
}

// HeadersOn is Headers on another stream.
func (h *H2) HeadersOn(stream uint32, end bool, fields ...string) {
	_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.Block(fields...), EndHeaders: true, EndStream: end})
}

// Data sends text, with the user who was asked for in place of $user, in one DATA frame for each 16 KiB.
func (h *H2) Data(end bool, text string) {
	text = strings.ReplaceAll(text, "$user", h.User)
	for len(text) > 16<<10 {
		_ = h.WriteData(h.Stream, false, []byte(text[:16<<10]))
		text = text[16<<10:]
	}
	_ = h.WriteData(h.Stream, end, []byte(text))
}

// Good answers with an empty device list.
func (h *H2) Good() {
	h.Headers(false, ":status", "200", "content-type", "application/json")
	h.Data(true, emptyList)
}

// Raw sends one frame of any kind.
func (h *H2) Raw(kind http2.FrameType, flags http2.Flags, stream uint32, payload string) {
	_ = h.WriteRawFrame(kind, flags, stream, []byte(payload))
}

// HangUp closes the connection.
func (h *H2) HangUp() { _ = h.conn.Close() }

// Says2 sends an answer whose headers are fields, and body in good order.
func Says2(body string, fields ...string) Script2 {
	return func(_ context.Context, h *H2) {
		h.Headers(body == "", fields...)
		if body != "" {
			h.Data(true, body)
		}
	}
}

// Flood2 sends what frame sends, times over or until the other end leaves, and then waits for that.
func Flood2(times int, frame func(h *H2, i int) error) Script2 {
	return func(gone context.Context, h *H2) {
		for i := range times {
			if frame(h, i) != nil {
				break
			}
		}
		<-gone.Done()
	}
}

// Bomb is a header block that a few bytes make large: one field of 4,000 bytes is put into the compressor's table and
// then named times over (RFC 7541 §7.3).
func (h *H2) Bomb(times int) []byte {
	block := h.Block(":status", "200", "x-bomb", strings.Repeat("x", 3900))
	return append(block, bytes.Repeat([]byte{0x80 | 62}, times)...)
}

// Split sends a header block in a HEADERS frame and CONTINUATION frames, the last of which has END_HEADERS if end says
// so.
func (h *H2) Split(block []byte, size int, end bool) error {
	first := block[:min(size, len(block))]
	rest := block[len(first):]
	err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.Stream, BlockFragment: first, EndHeaders: end && len(rest) == 0})
	for err == nil && len(rest) > 0 {
		next := rest[:min(size, len(rest))]
		rest = rest[len(next):]
		err = h.WriteContinuation(h.Stream, end && len(rest) == 0, next)
	}
	if err != nil {
		return fmt.Errorf("sending a header block: %w", err)
	}
	return nil
}
