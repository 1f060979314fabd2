package federation_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http tells it of each frame and byte that it did not expect
	// Most tests wait for a limit and need no processor meanwhile. -parallel on the command line is heeded.
	_ = flag.Set("test.parallel", "8")
	goleak.VerifyTestMain(m)
}

const ourName = "us.test"

// open are the networks that stand for the public internet in these tests; the rest of loopback stays refused.
var open = []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}

// world is a client and what it can reach.
type world struct {
	*testing.T
	ca     *fedtest.CA
	dns    *fedtest.DNS
	net    *fedtest.Network
	key    *mxfed.SigningKey
	client *federation.Client
	clock  *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	key := fedtest.NewKey()
	w := newWorldWith(t, federation.NewSigningKey(key))
	w.key = key
	return w
}

// newWorldWith is newWorld with a client that signs with key.
func newWorldWith(t *testing.T, key *federation.SigningKey) *world {
	t.Helper()
	w := &world{
		T: t, ca: fedtest.NewCA(t), dns: fedtest.NewDNS(t), net: fedtest.NewNetwork(t), clock: &clock{now: time.Now()},
	}
	client, err := federation.New(federation.Config{
		ServerName: ourName, Key: key, Roots: w.ca.Pool(), AllowNetworks: open,
		UserAgent: "freshen/test (+us.test)", Resolver: w.dns.Resolver(), Now: w.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	client.SetConnect(w.net.Connect)
	t.Cleanup(client.Close)
	w.client = client
	return w
}

// homeserver puts a well-behaved server called name at addr, with a certificate for certName.
func (w *world) homeserver(name, addr, certName string) *fedtest.Homeserver {
	w.Helper()
	server := fedtest.NewHomeserver(name, ourName, w.key)
	fedtest.ServeTLS(w, w.net.Listen(addr), w.ca.Issue(certName), server)
	return server
}

// wellKnown serves /.well-known/matrix/server of host at addr, port 443.
func (w *world) wellKnown(host, addr string, handler http.HandlerFunc) {
	w.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/matrix/server", handler)
	fedtest.ServeTLS(w, w.net.Listen(addr+":443"), w.ca.Issue(host), mux)
}

// delegation answers a well-known request with server.
func delegation(server string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = rw.Write([]byte(`{"m.server": "` + server + `"}`))
	}
}

// script puts a misbehaving server at addr, with a certificate for name.
func (w *world) script(name, addr string, script fedtest.Script) {
	w.Helper()
	fedtest.ServeScript(w, w.net.Listen(addr), w.ca.Issue(name), script)
}

func (w *world) raw(addr string, serve func(context.Context, net.Conn)) {
	w.Helper()
	fedtest.ServeRaw(w, w.net.Listen(addr), serve)
}

func (w *world) serveWith(addr string, cert tls.Certificate) {
	w.Helper()
	fedtest.ServeTLS(w, w.net.Listen(addr), cert, http.NotFoundHandler())
}

// fetch asks within limit.
func (w *world) fetch(user id.UserID, limit time.Duration) (*freshen.DeviceList, *freshen.Failure) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), limit)
	defer cancel()
	return w.fetchCtx(ctx, user)
}

func (w *world) fetchCtx(ctx context.Context, user id.UserID) (*freshen.DeviceList, *freshen.Failure) {
	w.Helper()
	list, err := w.client.FetchDeviceList(ctx, user)
	if err == nil {
		return list, nil
	}
	var failure *freshen.Failure
	if !errors.As(err, &failure) || list != nil {
		w.Fatalf("FetchDeviceList returned %v and the error %v, which is no *freshen.Failure alone", list, err)
	}
	return nil, failure
}

// good fetches and expects a list.
func (w *world) good(user id.UserID) *freshen.DeviceList {
	w.Helper()
	list, failure := w.fetch(user, 10*time.Second)
	if failure != nil {
		w.Fatalf("fetching the list of %s: %v", user, failure)
	}
	return list
}
