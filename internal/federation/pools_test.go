package federation_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// deadServer is one of 60,000 addresses at which nobody is.
func deadServer(i int) id.UserID { return id.UserID(fmt.Sprintf("@bob:127.1.%d.%d:9", i/250, 1+i%250)) }

// TestDeadNamesLeaveNothing: a user who names one invented server after another must not make freshen grow.
func TestDeadNamesLeaveNothing(t *testing.T) { // not parallel: it measures
	w := newWorld(t)
	w.client.ShrinkCaches(10)
	name := func(from, to int) {
		for i := from; i < to; i++ {
			if _, failure := w.fetch(deadServer(i), time.Minute); failure == nil || failure.Reason != freshen.ReasonConnect {
				t.Fatalf("got %v, want a refused connection", failure)
			}
		}
	}
	const names = 1500
	name(0, 200)
	before := held()
	name(200, 200+names)
	if grown := int64(held()) - int64(before); grown > 100*names {
		t.Errorf("%d B are held for each name, want less than 100", grown/names)
	}
	if pools := w.client.Pools(); pools != 0 {
		t.Errorf("there are %d pools of connections, and no connection", pools)
	}
}

// TestDeadNamesSpareTheLiving: while somebody names dead servers, the connection to a living one is still kept.
func TestDeadNamesSpareTheLiving(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.homeserver("127.1.255.1:1", "127.1.255.1:1", "127.1.255.1")
	w.good("@bob:127.1.255.1:1")
	const names = 300
	for i := range names {
		w.fetch(deadServer(i), time.Minute)
	}
	w.good("@bob:127.1.255.1:1")
	if dialed := len(w.net.Dialed()); dialed != names+1 {
		t.Errorf("%d connections were dialled, want %d and one that is kept", dialed, names)
	}
}

// TestKeptConnectionsAreBounded: however many servers answer, only so many connections stay open, those that were used
// last; servers that keep none do not add up either.
func TestKeptConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const servers, most = 140, 128
	var names []string
	for i := range servers {
		names = append(names, fmt.Sprintf("b%d.test", i))
		w.dns.Host(names[i], "127.1.0.1")
	}
	cert := w.ca.Issue(names...)
	fedtest.ServeTLS1(w, w.net.Listen("127.1.0.1:1"), cert, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		user, _ := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/user/devices/")
		_, _ = rw.Write(listOf(id.UserID(user)))
	}))
	fedtest.ServeScript(w, w.net.Listen("127.1.0.1:2"), cert, fedtest.Answer(200, "Connection: close", goodList))
	ask := func(name string, port int) { w.good(id.UserID(fmt.Sprintf("@bob:%s:%d", name, port))) }
	for _, name := range names {
		ask(name, 1)
	}
	if open := w.client.OpenSockets(); open != most {
		t.Errorf("%d connections are open, want %d", open, most)
	}
	before := len(w.net.Dialed())
	ask(names[servers-most], 1)
	if again := len(w.net.Dialed()) - before; again != 0 {
		t.Error("a connection that was used lately was not kept")
	}
	for _, name := range names {
		ask(name, 2)
	}
	if pools := w.client.Pools(); pools != most {
		t.Errorf("there are %d pools, want %d", pools, most)
	}
}
