package federation_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// The frames of HTTP/2 that these tests need (RFC 9113 §6).
const (
	frameData, frameHeaders, frameReset, frameSettings = 0, 1, 3, 4
	framePing, frameGoAway, frameContinuation          = 6, 7, 9
	endStream, endHeaders                              = 1, 4
)

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	head = append(head, flags)
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// frames runs a server at addr that speaks HTTP/2 as far as the first request and then runs misbehave with its stream.
// What comes after the request is read and dropped, unless deaf.
func (w *world) frames(addr string, settings []byte, deaf bool, misbehave func(send func(...[]byte) bool, stream uint32)) {
	w.Helper()
	host, _, _ := net.SplitHostPort(addr)
	config := &tls.Config{Certificates: []tls.Certificate{w.ca.Issue(host)}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	w.raw(addr, func(ending context.Context, raw net.Conn) {
		conn := tls.Server(raw, config)
		if _, err := io.CopyN(io.Discard, conn, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
			return
		}
		send := func(frames ...[]byte) bool {
			for _, f := range frames {
				if _, err := conn.Write(f); err != nil {
					return false
				}
			}
			return ending.Err() == nil
		}
		send(frame(frameSettings, 0, 0, settings))
		var head [9]byte
		for head[3] != frameHeaders {
			if _, err := io.ReadFull(conn, head[:]); err != nil {
				return
			}
			length := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
			if _, err := io.CopyN(io.Discard, conn, length); err != nil {
				return
			}
		}
		if deaf {
			misbehave(send, binary.BigEndian.Uint32(head[5:]))
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			misbehave(send, binary.BigEndian.Uint32(head[5:]))
		}()
		_, _ = io.Copy(io.Discard, conn)
		<-done
	})
}

// TestProtocolAbuse: what a server can do below and beside the answer ends the request in time with a failure that is
// the destination's, and harms neither the next request to another server nor, once that server behaves, to this one.
func TestProtocolAbuse(t *testing.T) {
	t.Parallel()
	ok := frame(frameHeaders, endHeaders, 1, []byte{0x88}) // :status 200
	forever := func(frames ...[]byte) func(func(...[]byte) bool, uint32) {
		return func(send func(...[]byte) bool, _ uint32) {
			for send(frames...) {
			}
		}
	}
	once := func(frames ...[]byte) func(func(...[]byte) bool, uint32) {
		return func(send func(...[]byte) bool, _ uint32) { send(frames...) }
	}
	flood := func(text string) fedtest.Script {
		return func(_ context.Context, conn net.Conn, _ *http.Request) {
			for range 1 << 20 {
				if _, err := io.WriteString(conn, text); err != nil {
					return
				}
			}
		}
	}
	const addr = "127.1.0.1:1"
	for _, row := range []struct {
		name  string
		setup func(w *world)
		says  string // on a fast machine, what is behind a |: the guard ends a flood before the stage does
	}{
		{"1xx without end", func(w *world) {
			w.script("127.1.0.1", addr, flood("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"))
		}, "no usable HTTP"},
		{"trailers without end", func(w *world) {
			w.script("127.1.0.1", addr, func(gone context.Context, conn net.Conn, req *http.Request) {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n2\r\n{}\r\n0\r\n")
				flood("A: "+strings.Repeat("a", 1000)+"\r\n")(gone, conn, req)
			})
		}, "in the middle of its answer"},
		{"two lengths", func(w *world) {
			w.script("127.1.0.1", addr, fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 3\n\n{} "))
		}, "no usable HTTP"},
		{"chunks that lie", func(w *world) {
			w.script("127.1.0.1", addr, fedtest.Bytes("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nffffffffffffffff\r\n{}"))
		}, "middle of its answer"},
		{"HTTP/2 GOAWAY for each request", func(w *world) {
			w.frames(addr, nil, false, once(frame(frameGoAway, 0, 0, make([]byte, 8))))
		}, "broke the connection before it answered"},
		{"HTTP/2 refuses each stream", func(w *world) {
			w.frames(addr, nil, false, once(frame(frameReset, 0, 1, []byte{0, 0, 0, 7})))
		}, "did not answer within"},
		{"HTTP/2 resets the stream in the body", func(w *world) {
			w.frames(addr, nil, false, once(ok, frame(frameData, 0, 1, []byte("{")), frame(frameReset, 0, 1, []byte{0, 0, 0, 2})))
		}, "middle of its answer"},
		{"HTTP/2 body shorter than its length", func(w *world) {
			w.frames(addr, nil, false, once(
				frame(frameHeaders, endHeaders, 1, append([]byte{0x88, 0x0f, 0x0d, 3}, "100"...)), // content-length: 100
				frame(frameData, endStream, 1, []byte("{}"))))
		}, "middle of its answer"},
		{"HTTP/2 allows no stream", func(w *world) {
			w.frames(addr, []byte{0, 3, 0, 0, 0, 0}, false, once())
		}, "did not answer within"},
		{"HTTP/2 SETTINGS without end", func(w *world) {
			w.frames(addr, nil, false, forever(frame(frameSettings, 0, 0, []byte{0, 4, 0, 1, 0, 0})))
		}, "did not answer|broke the connection"},
		{"HTTP/2 SETTINGS without end, reading nothing", func(w *world) {
			w.frames(addr, nil, true, forever(frame(frameSettings, 0, 0, nil)))
		}, "did not answer within"},
		{"HTTP/2 PING without end, reading nothing", func(w *world) {
			w.frames(addr, nil, true, forever(frame(framePing, 0, 0, make([]byte, 8))))
		}, "did not answer within"},
		{"HTTP/2 CONTINUATION without end", func(w *world) {
			w.frames(addr, nil, false, func(send func(...[]byte) bool, stream uint32) {
				field := append([]byte{0x00, 1, 'x', 0x7f, 0x81, 0x07}, make([]byte, 1024)...) // x: 1024 bytes
				send(frame(frameHeaders, 0, stream, []byte{0x88}))
				for send(frame(frameContinuation, 0, stream, field)) {
				}
			})
		}, "no usable HTTP"},
		{"HTTP/2 empty DATA without end", func(w *world) {
			w.frames(addr, nil, false, func(send func(...[]byte) bool, _ uint32) {
				send(ok)
				for send(frame(frameData, 0, 1, nil)) {
				}
			})
		}, "still sending its answer|middle of its answer"},
		{"HTTP/2 103 without end", func(w *world) {
			w.frames(addr, nil, false, forever(frame(frameHeaders, endHeaders, 1, append([]byte{0x08, 3}, "103"...))))
		}, "no usable HTTP"},
		{"HTTP/2 hangs", func(w *world) { w.frames(addr, nil, false, once()) }, "did not answer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			good := w.homeserver("127.1.0.2:1", "127.1.0.2:1", "127.1.0.2")
			row.setup(w)
			_, failure := w.fetch("@bob:127.1.0.1:1", 3*time.Second)
			if failure == nil {
				t.Fatal("there is a list")
			}
			said := false
			for says := range strings.SplitSeq(row.says, "|") {
				said = said || strings.Contains(failure.Sentence, says)
			}
			if !said || failure.Blames() != freshen.BlameDestination {
				t.Errorf("got %v, want it to say %q", failure, row.says)
			}
			w.good("@bob:127.1.0.2:1")
			w.homeserver("127.1.0.1:1", addr, "127.1.0.1") // mended: new connections come here
			if _, failure := w.fetch("@bob:127.1.0.1:1", 15*time.Second); failure != nil {
				t.Errorf("after the server was mended: %v", failure)
			}
			if len(good.Requests()) != 1 {
				t.Error("the other server was not asked")
			}
			w.client.Close()
			if open := w.client.OpenSockets(); open != 0 {
				t.Errorf("%d sockets are open after Close", open)
			}
		})
	}
}
