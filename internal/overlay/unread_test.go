package overlay

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"freshen/internal/homeserver"
)

// While the homeserver is down, nobody reads what it is sent, and the connection must stay good all the same for the next request. nginx keeps it and does not repeat a POST: its next client would get a gateway's error in place of an answer.
func TestABodyThatNobodyReadLeavesTheConnectionGood(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"the body comes with it": false, "the body comes after the answer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := &url.URL{Scheme: "http", Host: "127.0.0.1:1"}
			proxy := New(Config{Homeserver: upstream, Who: homeserver.New(upstream, nil), Log: slog.New(slog.DiscardHandler), Now: time.Now})
			defer proxy.Close()
			var complaints strings.Builder
			server := httptest.NewUnstartedServer(proxy)
			server.Config.ErrorLog = log.New(&complaints, "", 0)
			server.Start()
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			for i := range 3 {
				fmt.Fprintf(conn, "POST /_matrix/client/v3/keys/upload HTTP/1.1\r\nHost: example.org\r\nContent-Length: 2\r\n\r\n")
				if !late {
					_, _ = io.WriteString(conn, "{}")
				}
				response, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatalf("request %d: %v", i+1, err)
				}
				_, err = io.Copy(io.Discard, response.Body)
				if late {
					_, _ = io.WriteString(conn, "{}")
				}
				if err != nil || response.StatusCode != http.StatusBadGateway || response.Close {
					t.Errorf("request %d: %d, closing: %t, %v", i+1, response.StatusCode, response.Close, err)
				}
			}
			conn.Close()
			server.Close()
			if complaints.Len() > 0 {
				t.Errorf("net/http complains: %s", &complaints)
			}
		})
	}
}
