package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// terse is a homeserver that spends next to nothing on a sync: what it spends is taken from the cores that freshen needs. One that
// may wait waits until its client leaves, any other is answered at once. What is no sync, it has rest answer.
type terse struct {
	rest    *url.URL
	waiting chan<- struct{} // gets one for each sync that has come to wait
}

// serve answers what comes on the listener until that is closed.
func (t *terse) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go t.converse(conn)
	}
}

var syncLine = []byte("GET " + pathSync + "?")

func (t *terse) converse(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, smallAnswer)
	var out []byte
	for {
		begins, err := in.Peek(len(syncLine))
		if err != nil {
			return
		}
		if !bytes.Equal(begins, syncLine) {
			if t.other(in, conn) != nil {
				return
			}
			continue
		}
		since, waits, err := readSync(in)
		if err != nil {
			return
		}
		if waits {
			t.waiting <- struct{}{}
			continue // with the end, as nothing else comes
		}
		out = append(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "...)
		body := syncAnswer(since)
		out = strconv.AppendInt(out, int64(len(body)), 10)
		out = append(append(out, "\r\n\r\n"...), body...)
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

// readSync reads the head of a request for a sync, which has no body.
func readSync(in *bufio.Reader) (since int, waits bool, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	waits = !bytes.Contains(line, []byte("timeout=0&"))
	_, after, _ := bytes.Cut(line, []byte("since="))
	number, _, _ := bytes.Cut(after, []byte(" "))
	if since, err = strconv.Atoi(string(number)); err != nil {
		return 0, false, err
	}
	for len(line) > len("\r\n") {
		if line, err = in.ReadSlice('\n'); err != nil {
			return 0, false, err
		}
	}
	return since, waits, nil
}

// syncAnswer is what follows on the sync with this token.
func syncAnswer(since int) []byte {
	return fmt.Appendf(nil, `{"device_one_time_keys_count":{"signed_curve25519":50},"next_batch":"%d"}`, since+1)
}

// other passes a request on.
func (t *terse) other(in *bufio.Reader, conn net.Conn) error {
	req, err := http.ReadRequest(in)
	if err != nil {
		return err
	}
	req.URL.Scheme, req.URL.Host, req.RequestURI = t.rest.Scheme, t.rest.Host, ""
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return resp.Write(conn)
}
