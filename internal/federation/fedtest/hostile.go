package fedtest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// Script answers one request on a connection, well or badly. Closing the connection is the caller's. gone is done when
// the other end has left or the test ends; a script that waits, waits for that.
type Script func(gone context.Context, conn net.Conn, req *http.Request)

// ServeScript serves connections on listener until the test ends: each gets a TLS handshake (HTTP/1.1 only), one request
// is read, the script runs, the connection is closed.
func ServeScript(tb testing.TB, listener net.Listener, cert tls.Certificate, script Script) {
	tb.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
	ServeRaw(tb, listener, func(ending context.Context, raw net.Conn) {
		conn := tls.Server(raw, config)
		reader := bufio.NewReader(conn)
		req, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		gone, leave := context.WithCancel(ending)
		defer leave()
		var watching sync.WaitGroup
		watching.Go(func() {
			_, _ = reader.ReadByte() // the client sends nothing more: this returns when it has left
			leave()
		})
		script(gone, conn, req)
		_ = conn.Close()
		watching.Wait()
	})
}

// ServeRaw hands each connection to serve, and closes it afterwards. ending is done when the test ends.
func ServeRaw(tb testing.TB, listener net.Listener, serve func(ending context.Context, conn net.Conn)) {
	tb.Helper()
	ending, end := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				stop := context.AfterFunc(ending, func() { _ = conn.Close() })
				defer stop()
				serve(ending, conn)
				_ = conn.Close()
			})
		}
	})
	tb.Cleanup(func() { end(); _ = listener.Close(); serving.Wait() })
}

// Bytes sends text as it stands, with its line ends made those of HTTP in the part before the first empty line.
func Bytes(text string) Script {
	head, body, _ := strings.Cut(text, "\n\n")
	sent := []byte(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body)
	return func(_ context.Context, conn net.Conn, _ *http.Request) { _, _ = conn.Write(sent) }
}

// Answer sends a whole answer with the right length. header is lines without the last line end, or empty.
func Answer(status int, header, body string) Script {
	if header != "" {
		header += "\n"
	}
	return Bytes(fmt.Sprintf("HTTP/1.1 %d %s\n%sContent-Length: %d\n\n%s", status, http.StatusText(status), header, len(body), body))
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
func Huge(size int) Script {
	return func(_ context.Context, conn net.Conn, _ *http.Request) {
		chunk := bytes.Repeat([]byte("x"), 64<<10)
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\"\r\n")
		for range size / len(chunk) {
			if _, err := fmt.Fprintf(conn, "%x\r\n%s\r\n", len(chunk), chunk); err != nil {
				return
			}
		}
		_, _ = fmt.Fprint(conn, "1\r\n\"\r\n0\r\n\r\n")
	}
}

// Drip promises a body and sends one byte of it every pause, for ever.
func Drip(pause time.Duration) Script {
	return func(gone context.Context, conn net.Conn, _ *http.Request) {
		_, _ = fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
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

// HeaderFlood sends header lines until the other end leaves, at most 64 MiB.
func HeaderFlood(_ context.Context, conn net.Conn, _ *http.Request) {
	_, _ = fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n")
	lines := strings.Repeat("X-Flood: "+strings.Repeat("x", 1000)+"\r\n", 64)
	for range 1000 {
		if _, err := conn.Write([]byte(lines)); err != nil {
			return
		}
	}
}
