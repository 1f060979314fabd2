//go:build goolm

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"freshen/internal/testbed"
)

// scripted starts a server of another name that answers every request for a device list as f says, with a certificate
// of the world's CA. It returns its server name.
func scripted(t *testing.T, world *testbed.World, f http.HandlerFunc) string {
	t.Helper()
	certFile, keyFile, err := world.CA.Issue(strings.ReplaceAll(t.Name(), "/", "-"), net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	server := stranger(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/user/devices/") {
			http.NotFound(w, r)
			return
		}
		f(w, r)
	})
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	return server.Listener.Addr().String()
}

// taken holds the addresses that strangers have had.
var taken sync.Map

// stranger makes a server, not started yet, at an address that no other one had before it. The tests share a freshen, which
// remembers how a destination failed, and a port that is given back may be the next one's.
func stranger(t *testing.T, f http.HandlerFunc) *httptest.Server {
	t.Helper()
	for {
		server := httptest.NewUnstartedServer(f)
		server.Config.ErrorLog = quiet
		t.Cleanup(server.Close)
		if _, known := taken.LoadOrStore(server.Listener.Addr().String(), true); !known {
			return server
		}
	}
}

// reply answers with a status and a body.
func reply(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// quiet takes what scripted servers would say about clients that hang up, which is what is tested.
var quiet = log.New(io.Discard, "", 0)

const (
	asJSON = "application/json"
	html   = "<!doctype html><title>Parked</title>"
)

// What a server can do to us, and what the user is told. A failure means that a user cannot tell why their contact's list
// is stale, that another server's words are taken for our own homeserver's, or that it can hold freshen up.
func TestDestinationsThatMisbehave(t *testing.T) {
	world, _, _, alice := setup(t)
	for _, c := range []struct {
		name    string
		answer  http.HandlerFunc
		status  int
		errcode string
		reason  string
	}{
		{"says not found", reply(404, asJSON, `{"errcode":"M_NOT_FOUND","error":"No such user"}`), 404, "M_NOT_FOUND", "http"},
		{"says not found in HTML", reply(404, "text/html", html), 502, "M_UNKNOWN", "http"},
		{"forbids", reply(403, asJSON, `{"errcode":"M_FORBIDDEN","error":"Not you"}`), 502, "M_FORBIDDEN", "http"},
		{"wants to log our user out", reply(401, asJSON, `{"errcode":"M_UNKNOWN_TOKEN","error":"Go away"}`), 502, "M_UNKNOWN", "http"},
		{"wants our user to wait", reply(429, asJSON, `{"errcode":"M_LIMIT_EXCEEDED","error":"Slow","retry_after_ms":5000}`), 502, "M_UNKNOWN", "http"},
		{"fails", reply(500, "text/plain", "oops"), 502, "M_UNKNOWN", "http"},
		{"sends HTML", reply(200, "text/html", html), 502, "M_UNKNOWN", "bad_response"},
		{"sends null", reply(200, asJSON, `null`), 502, "M_UNKNOWN", "bad_response"},
		{"sends another's list", reply(200, asJSON, `{"user_id":"@eve:example.org","stream_id":1,"devices":[]}`), 502, "M_UNKNOWN", "bad_response"},
		{"sends too much", endless, 502, "M_UNKNOWN", "bad_response"},
		{"redirects", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, world.A.URL+"/_matrix/client/versions", http.StatusFound)
		}, 502, "M_UNKNOWN", "http"},
		{"hangs up", hangUp, 502, "M_UNKNOWN", ""},
		{"sends half an answer", halfAnswer, 502, "M_UNKNOWN", ""},
		{"never answers", untilGone, 504, "M_UNKNOWN", "timeout"},
		{"never ends its answer", drip, 504, "M_UNKNOWN", "timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := turn(t)
			_, token := newUser(t, ctx, world.A, "alice")
			server := scripted(t, world, c.answer)
			requireFailure(t, ctx, alice.as(token), server, c.status, c.errcode, c.reason)
		})
	}
}

// requireFailure asks for a refresh of somebody at server and requires that the failure is told.
func requireFailure(t *testing.T, ctx context.Context, alice *caller, server string, status int, errcode, reason string) {
	t.Helper()
	started := time.Now()
	a := alice.refresh(t, ctx, "@bob:"+server)
	requireError(t, a, status, errcode)
	if took := time.Since(started); took > 15*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	e := a.matrixError(t)
	if e.Failure == nil || e.Failure.Destination != server || (reason != "" && e.Failure.Reason != reason) {
		t.Errorf("programs should be told of %s that it failed by %q: %s", server, reason, a)
	}
	if !strings.Contains(e.Error, server) {
		t.Errorf("people are not told which server failed: %q", e.Error)
	}
	requireAccepted(t, alice.refresh(t, ctx, "@somebody:"+shared.World(t).B.ServerName))
}

// untilGone answers nothing until the client has gone.
func untilGone(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func halfAnswer(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", asJSON)
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, `{"user_id":"@bob:`)
	panic(http.ErrAbortHandler)
}

// drip sends a space now and then, which is good JSON as far as it goes.
func drip(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	}
}

// endless sends 64 MiB of what might become a device list.
func endless(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", asJSON)
	if _, err := fmt.Fprintf(w, `{"user_id":"@bob:%s","stream_id":1,"devices":[`, r.Host); err != nil {
		return
	}
	chunk := strings.Repeat(" ", 1<<20)
	for range 64 {
		if _, err := io.WriteString(w, chunk); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, "]}")
}

// A failure means that freshen talks to whoever holds an address, or that a person cannot tell a wrong certificate from a
// server that is down.
func TestDestinationsThatCannotBeReached(t *testing.T) {
	world, _, _, alice := setup(t)
	t.Run("a certificate of nobody we know", func(t *testing.T) {
		ctx := turn(t)
		server := stranger(t, http.NotFound)
		server.StartTLS()
		requireFailure(t, ctx, alice, server.Listener.Addr().String(), http.StatusBadGateway, "M_UNKNOWN", "tls")
	})
	t.Run("no TLS", func(t *testing.T) {
		ctx := turn(t)
		server := stranger(t, http.NotFound)
		server.Start()
		requireFailure(t, ctx, alice, server.Listener.Addr().String(), http.StatusBadGateway, "M_UNKNOWN", "tls")
	})
	t.Run("nobody listens", func(t *testing.T) {
		ctx := turn(t)
		server := stranger(t, http.NotFound)
		server.Close()
		requireFailure(t, ctx, alice, server.Listener.Addr().String(), http.StatusBadGateway, "M_UNKNOWN", "connect")
	})
	t.Run("a network that may not be dialled", func(t *testing.T) {
		ctx := turn(t)
		_, token := newUser(t, ctx, world.A, "alice")
		a := alice.as(token).refresh(t, ctx, "@bob:10.0.0.1:8448")
		requireError(t, a, http.StatusForbidden, "M_FORBIDDEN")
		if e := a.matrixError(t); e.Failure == nil || e.Failure.Reason != "denied" {
			t.Errorf("programs should be told that it is denied: %s", a)
		}
	})
}
