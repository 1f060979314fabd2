package fedtest

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Script answers one request on a connection, well or badly. Closing the connection is the caller's. gone is done when
// the other end has left or the test ends; a script that waits, waits for that.
type Script func(gone context.Context, conn net.Conn, req *http.Request)

// HTTP1 behaves well up to the end of the first request (TLS, HTTP/1.1 alone), which script answers. Then it closes.
func HTTP1(script Script) Server {
	return func(raw net.Conn, at Place) { serveHTTP1(raw, serverConfig(at.Cert, "http/1.1"), script) }
}

func serveHTTP1(raw net.Conn, config *tls.Config, script Script) {
	conn := tls.Server(raw, config)
	reader := bufio.NewReader(conn)
	req, err := http.ReadRequest(reader)
	if err != nil {
		return
	}
	gone, leave := context.WithCancel(req.Context())
	defer leave()
	var watching sync.WaitGroup
	watching.Go(func() {
		_, _ = reader.ReadByte() // the client sends nothing more: this returns when it has left
		leave()
	})
	script(gone, conn, req)
	_ = conn.Close()
	watching.Wait()
}

// emptyList is the device list of a user without devices; [List] completes it.
const emptyList = `{"user_id": "$user", "stream_id": 1, "devices": []}`

// Exactly sends text as it stands, but for $user, the user who was asked for, and $host, the request's Host header.
func Exactly(text string) Script {
	return func(_ context.Context, conn net.Conn, req *http.Request) {
		_, _ = io.WriteString(conn, filled(text, req))
	}
}

// Bytes is [Exactly] with line ends made those of HTTP in the part before the first empty line.
func Bytes(text string) Script {
	head, body, _ := strings.Cut(text, "\n\n")
	return Exactly(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body)
}

// Answer sends a whole answer with the right length. header is lines without the last line end, or empty.
func Answer(status int, header, body string) Script {
	if header != "" {
		header += "\n"
	}
	return func(gone context.Context, conn net.Conn, req *http.Request) {
		body := filled(body, req)
		Bytes(fmt.Sprintf("HTTP/1.1 %d %s\n%sContent-Length: %d\n\n%s", status, http.StatusText(status), header, len(body), body))(gone, conn, req)
	}
}

// List answers 200 with JSON.
func List(body string) Script { return Answer(http.StatusOK, "Content-Type: application/json", body) }

// Sized answers 200 with an empty device list and white space behind it, size bytes in all.
func Sized(size int) Script {
	return func(gone context.Context, conn net.Conn, req *http.Request) {
		list := filled(emptyList, req)
		Exactly(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, list))(gone, conn, req)
		Flood(" ", size-len(list))(gone, conn, req)
	}
}

// Chunked answers 200 with an empty device list, after which encoded goes on: a chunk's end and what follows.
func Chunked(encoded string) Script {
	return func(gone context.Context, conn net.Conn, req *http.Request) {
		list := filled(emptyList, req)
		Exactly(fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s%s", len(list), list, encoded))(gone, conn, req)
	}
}

// Then runs one script after the other.
func Then(scripts ...Script) Script {
	return func(gone context.Context, conn net.Conn, req *http.Request) {
		for _, script := range scripts {
			script(gone, conn, req)
		}
	}
}

func filled(text string, req *http.Request) string {
	if !strings.Contains(text, "$") {
		return text
	}
	return strings.NewReplacer("$user", userIn(req.URL.Path), "$host", req.Host).Replace(text)
}

func userIn(path string) string {
	user, _ := strings.CutPrefix(path, "/_matrix/federation/v1/user/devices/")
	return user
}

// Hang reads the request and never answers.
func Hang(gone context.Context, _ net.Conn, _ *http.Request) { <-gone.Done() }

// HangUp closes the connection in place of an answer.
func HangUp(context.Context, net.Conn, *http.Request) {}

// Half promises a longer body than it sends.
func Half(body string) Script {
	return Bytes(fmt.Sprintf("HTTP/1.1 200 OK\nContent-Length: %d\n\n%s", 2*len(body)+100, body))
}

// Huge sends a JSON string of size bytes, chunked, so that no length warns of it. It stops when the other end leaves.
func Huge(size int) Script { return HugeError(http.StatusOK, size) }

// HugeError is [Huge] with another status.
func HugeError(status, size int) Script {
	chunk := strings.Repeat("x", 64<<10)
	return Then(
		Exactly(fmt.Sprintf("HTTP/1.1 %d %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\"\r\n", status, http.StatusText(status))),
		Flood(fmt.Sprintf("%x\r\n%s\r\n", len(chunk), chunk), size/len(chunk)),
		Exactly("1\r\n\"\r\n0\r\n\r\n"),
	)
}

// Drip promises a body and sends one byte of it every pause, for ever.
func Drip(pause time.Duration) Script {
	return DripAfter("HTTP/1.1 200 OK\nContent-Length: 1000000\n\n", pause)
}

// DripAfter sends head and then one space every pause, for ever.
func DripAfter(head string, pause time.Duration) Script {
	return func(gone context.Context, conn net.Conn, req *http.Request) {
		Exactly(strings.ReplaceAll(head, "\n", "\r\n"))(gone, conn, req)
		drop := time.NewTicker(pause)
		defer drop.Stop()
		for {
			select {
			case <-gone.Done():
				return
			case <-drop.C:
				if _, err := conn.Write([]byte(" ")); err != nil {
					return
				}
			}
		}
	}
}

// Flood sends text times over, or until the other end leaves.
func Flood(text string, times int) Script {
	return func(_ context.Context, conn net.Conn, _ *http.Request) {
		batch := max(1, (64<<10)/len(text))
		many := []byte(strings.Repeat(text, batch))
		for left := times; left > 0; left -= batch {
			if _, err := conn.Write(many[:min(batch, left)*len(text)]); err != nil {
				return
			}
		}
	}
}

// Gzip compresses.
func Gzip(text string) string {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return packed.String()
}

// Deflate compresses without a frame (RFC 1951).
func Deflate(text string) string {
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return ""
	}
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return packed.String()
}
