package federation_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// TestFloodOnKeptConnection: a server that goes on sending once it has answered is cut off, or one request a minute
// would keep a core of ours busy with the answers to its pings.
func TestFloodOnKeptConnection(t *testing.T) {
	t.Parallel()
	for name, flood := range map[string]func(h *fedtest.H2) error{
		"PING":         func(h *fedtest.H2) error { return h.WritePing(false, [8]byte{}) },
		"SETTINGS":     func(h *fedtest.H2) error { return h.WriteSettings() },
		"unknown kind": func(h *fedtest.H2) error { return h.WriteRawFrame(0xbe, 0, 0, make([]byte, 1000)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cut := make(chan struct{})
			var once sync.Once
			fedtest.Misbehave(w, w.net.Listen("127.1.0.1:1"), fedtest.Place{Cert: w.ca.Issue("127.1.0.1")},
				fedtest.HTTP2(func(_ context.Context, h *fedtest.H2) {
					h.Good()
					for flood(h) == nil {
					}
					once.Do(func() { close(cut) })
				}))
			w.good("@bob:127.1.0.1:1")
			select {
			case <-cut:
			case <-time.After(30 * time.Second): // net/http would close it as idle after 55 s
				t.Error("the flood goes on")
			}
		})
	}
}

// TestTimeoutSparesOthers: that one user's list takes too long must not break the requests for others that share the
// connection.
func TestTimeoutSparesOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := fedtest.NewHomeserver("127.1.0.1:1", ourName, w.key)
	slow, gaveUp := make(chan struct{}), make(chan struct{})
	fedtest.ServeTLS(t, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/_matrix/federation/v1/user/devices/@slow:127.1.0.1:1":
			close(slow)
			<-r.Context().Done()
			close(gaveUp)
			return
		case "/_matrix/federation/v1/user/devices/@other:127.1.0.1:1":
			<-gaveUp
		}
		server.ServeHTTP(rw, r)
	}))
	w.good("@bob:127.1.0.1:1") // the connection that all share
	var asking sync.WaitGroup
	asking.Go(func() {
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := w.client.FetchDeviceList(ctx, "@slow:127.1.0.1:1"); err == nil {
			t.Error("there is a list of the slow one")
		}
	})
	asking.Go(func() {
		<-slow
		if _, err := w.client.FetchDeviceList(w.Context(), "@other:127.1.0.1:1"); err != nil {
			t.Errorf("the other one's request broke: %v", err)
		}
	})
	asking.Wait()
}

// TestSecondAnswer: an HTTP/1.1 server that gives two answers to one request may have the second taken for its own next
// answer. What must not be is that it stands for another server, or for a user whom it does not name.
func TestSecondAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const second = `{"user_id": "@eve:127.1.0.1:1", "devices": [{"device_id": "SECOND", "keys": {}}]}`
	w.script("127.1.0.1", "127.1.0.1:1", fedtest.Then(fedtest.List(goodList), fedtest.List(second),
		func(gone context.Context, _ net.Conn, _ *http.Request) { <-gone.Done() }))
	w.dns.Host("b.test", "127.1.0.2")
	w.homeserver("b.test:1", "127.1.0.2:1", "b.test")
	var asking sync.WaitGroup
	for i := range 40 {
		asking.Go(func() {
			user := id.UserID(fmt.Sprintf("@u%d:127.1.0.1:1", i))
			list, err := w.client.FetchDeviceList(w.Context(), user)
			if err == nil && (list.UserID != user || len(list.Devices) != 0) {
				t.Errorf("%s has the list %+v", user, list)
			}
			w.onlyOwn("@bob:b.test:1")
		})
	}
	asking.Wait()
}

// onlyOwn asks a good server, from any goroutine.
func (w *world) onlyOwn(user id.UserID) {
	if list, err := w.client.FetchDeviceList(w.Context(), user); err != nil || list.UserID != user || len(list.Devices) != 0 {
		w.Errorf("%s has the list %+v and the error %v", user, list, err)
	}
}

// TestConnectsAreBounded: a server that says of every request that it was not processed is left after a few
// connections; net/http alone would connect some thousand times within one request.
func TestConnectsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	fedtest.Misbehave(w, w.net.Listen("127.1.0.1:1"), fedtest.Place{Cert: w.ca.Issue("127.1.0.1")},
		then2(func(h *fedtest.H2) { _ = h.WriteGoAway(0, 0, nil) }))
	_, failure := w.fetch("@bob:127.1.0.1:1", 10*time.Second)
	if failure == nil || failure.Reason != freshen.ReasonConnect {
		t.Errorf("got %v, want a failure to connect", failure)
	}
	if dialed := w.net.Dialed(); len(dialed) > mostDialed {
		t.Errorf("there were %d connections, want at most %d", len(dialed), mostDialed)
	}
}
