package federation_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// The corpus: servers that misbehave, one table for each layer (corpus_*_test.go), and how each is to be told to the
// user and to the retries. TestHostileServers asks them all through one client.

// row is one misbehaving server. "@bob" on it is asked for.
type row struct {
	name   string
	server fedtest.Server
	want   outcome
}

// outcome is what has to become of a request: a failure, or a list where reason is "".
type outcome struct {
	reason freshen.Reason
	status int
	blame  freshen.Blame
	says   string // in the sentence

	devices int
	dropped map[freshen.DropReason]int

	or    *outcome // as good: chance decides
	waits bool     // until a limit of the request
	// unclean: what was sent too much may, by chance, be taken for the server's next answer, see TestSecondAnswer.
	unclean bool
	most    uint64 // that is allocated on the way, both ends together, in MiB; 0 means mostMiB
}

const (
	// mostMiB is what a row may allocate that sends no large body.
	mostMiB = 4
	// mostLargeMiB is what a row may allocate whose server sends the largest body or more. io.ReadAll grows by a quarter
	// at a time and so allocates about five times what it returns.
	mostLargeMiB = 10 * freshen.MaxDeviceListBytes >> 20
	// patience is the limit of a request whose server never comes to an end. It must leave time for a handshake on a busy
	// machine; all such rows wait together.
	patience = 3 * time.Second
	// mostDialed is how often one request may connect to one server.
	mostDialed = 4
	// mostHeldMiB is what all of the corpus may leave behind in memory. net/http holds on to a closed HTTP/2 connection
	// until its idle timer rings, with about 25 KiB for both ends; the servers that behave speak HTTP/1.1 therefore.
	mostHeldMiB = 8
)

func connects(says string) outcome {
	return outcome{reason: freshen.ReasonConnect, blame: freshen.BlameDestination, says: says}
}

func shakes(says string) outcome {
	return outcome{reason: freshen.ReasonTLS, blame: freshen.BlameDestination, says: says}
}

func timesOut(says string) outcome {
	return outcome{reason: freshen.ReasonTimeout, blame: freshen.BlameDestination, says: says, waits: true}
}

// answers is a status other than 200; bad is 200 with something that is no list.
func answers(status int, blame freshen.Blame, says string) outcome {
	return outcome{reason: freshen.ReasonHTTP, status: status, blame: blame, says: says}
}

func bad(says string) outcome {
	return outcome{reason: freshen.ReasonBadResponse, status: 200, blame: freshen.BlameUser, says: says}
}

// lists is a list with devices, from which others were dropped.
func lists(devices int, dropped ...freshen.DropReason) outcome {
	o := outcome{devices: devices, dropped: map[freshen.DropReason]int{}}
	for _, reason := range dropped {
		o.dropped[reason]++
	}
	return o
}

func (o outcome) otherwise(other outcome) outcome { o.or = &other; return o }

func (o outcome) slowly() outcome { o.waits = true; return o }

func (o outcome) uncleanly() outcome { o.unclean = true; return o }

// allocates lets a row allocate more than mostMiB.
func (o outcome) allocates(mib uint64) outcome { o.most = mib; return o }

// large lets a row allocate what reading the largest body does.
func (o outcome) large() outcome { return o.allocates(mostLargeMiB) }

// layers are the tables. named puts the servers of a layer at DNS names in place of IP literals.
var layers = []struct {
	name  string
	named bool
	rows  []row
}{
	{"TCP", false, hostileTCP},
	{"TLS", false, hostileTLS},
	{"certificates", true, hostileCertificates},
	{"HTTP1", false, hostileHTTP1},
	{"status", false, hostileStatus},
	{"compression", false, hostileCompression},
	{"HTTP2", false, hostileHTTP2},
	{"JSON", false, hostileJSON},
	{"lists", false, hostileLists},
}

// corpus is one client, a good server, and where the misbehaving ones stand.
type corpus struct {
	*world
	goodOne *fedtest.Homeserver
	goods   int // requests to the good server
	next    int
}

const goodServer = "127.1.255.1:1"

func newCorpus(t *testing.T) *corpus {
	w := newWorld(t)
	c := &corpus{world: w, goodOne: fedtest.NewHomeserver(goodServer, ourName, w.key)}
	fedtest.ServeTLS1(w, w.net.Listen(goodServer), w.ca.Issue("127.1.255.1"), c.goodOne)
	c.stillGood(w)
	return c
}

// on is the world with t as the test that ends it.
func (c *corpus) on(t *testing.T) *world {
	return &world{T: t, ca: c.ca, dns: c.dns, net: c.net, key: c.key, client: c.client, clock: c.clock}
}

// stillGood asks the good server.
func (c *corpus) stillGood(w *world) {
	w.Helper()
	w.good("@alice:" + goodServer)
	c.goods++
}

// asked is one server of the corpus at its place, and what came of asking it.
type asked struct {
	row
	host, addr string
	list       *freshen.DeviceList
	err        error
}

// place puts the server of a row at an address of its own.
func (c *corpus) place(w *world, r row, named bool) *asked {
	w.Helper()
	c.next++
	a := &asked{row: r, host: fmt.Sprintf("127.1.%d.%d", c.next/250, 1+c.next%250)}
	a.addr = a.host + ":1"
	if named {
		addr := a.host
		a.host = fmt.Sprintf("row%d.test", c.next)
		c.dns.Host(a.host, addr)
	}
	fedtest.Misbehave(w, c.net.Listen(a.addr), fedtest.Place{Host: a.host, CA: c.ca, Cert: c.ca.Issue(a.host)}, r.server)
	return a
}

// user is @bob on the server: at its name alone where that is to be discovered.
func (a *asked) user() id.UserID {
	if strings.HasSuffix(a.addr, ":443") {
		return id.UserID("@bob:" + a.host)
	}
	return id.UserID("@bob:" + a.host + ":1")
}

func (a *asked) fetch(c *corpus) {
	limit := 10 * time.Second
	if a.want.waits {
		limit = patience
	}
	a.fetchWithin(c, limit)
}

func (a *asked) fetchWithin(c *corpus, limit time.Duration) {
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	a.list, a.err = c.client.FetchDeviceList(ctx, a.user())
}

// check compares what came with what is wanted, and then asks again: the same server, which behaves by now, and the
// good one.
func (a *asked) check(c *corpus, w *world) {
	w.Helper()
	a.checkOutcome(w)
	dialed := 0
	for _, addr := range c.net.Dialed() {
		if addr == netip.MustParseAddrPort(a.addr) {
			dialed++
		}
	}
	if dialed > mostDialed {
		w.Errorf("the server was connected to %d times for one request", dialed)
	}
	c.behaves(w, a)
	if a.want.unclean {
		c.client.CloseIdle()
	}
	if list, failure := w.fetch(a.user(), 10*time.Second); failure != nil {
		w.Errorf("now that the server behaves: %v", failure)
	} else if len(list.Devices) != 1 || list.Devices[0].ID != "GOOD" {
		w.Errorf("now that the server behaves, the list is %+v", list)
	}
	c.stillGood(w)
}

// behaves puts a good server where a stood.
func (c *corpus) behaves(w *world, a *asked) {
	w.Helper()
	server := fedtest.NewHomeserver(a.host+":1", ourName, w.key)
	server.SetList(a.user(), listOf(a.user(), "GOOD"))
	fedtest.ServeTLS1(w, w.net.Listen(a.addr), w.ca.Issue(a.host), server)
}

func (a *asked) checkOutcome(w *world) {
	w.Helper()
	if a.err == nil && a.list.UserID != a.user() {
		w.Errorf("the list is that of %s", a.list.UserID)
	}
	wrong := a.differs(&a.want)
	if wrong != "" && a.want.or != nil && a.differs(a.want.or) == "" {
		return
	}
	if wrong != "" {
		w.Error(wrong)
	}
}

// differs says how what came is not what is wanted, "" if it is.
func (a *asked) differs(want *outcome) string {
	if a.err == nil {
		switch {
		case want.reason != "":
			return fmt.Sprintf("the answer was taken for a list: %+v", a.list)
		case len(a.list.Devices) != want.devices || !maps.Equal(a.list.Dropped, want.dropped):
			return fmt.Sprintf("the list has %d devices without %v, want %d without %v", len(a.list.Devices), a.list.Dropped, want.devices, want.dropped)
		}
		return ""
	}
	failure, ok := errors.AsType[*freshen.Failure](a.err)
	switch {
	case !ok || a.list != nil:
		return fmt.Sprintf("FetchDeviceList returned %v and the error %v, which is no *freshen.Failure alone", a.list, a.err)
	case want.reason == "":
		return fmt.Sprintf("no list came: %v", failure)
	case failure.Reason != want.reason || failure.Status != want.status || failure.Blames() != want.blame:
		return fmt.Sprintf("got %q, status %d, blame %d, want %q, %d, %d: %v",
			failure.Reason, failure.Status, failure.Blames(), want.reason, want.status, want.blame, failure)
	}
	said := failure.Sentence
	if !strings.Contains(said, want.says) || !strings.Contains(said, a.host) || !strings.ContainsAny(said[len(said)-1:], ".?") {
		return fmt.Sprintf("the sentence is %q, which is not one that says %q of %s", said, want.says, a.host)
	}
	if len(said) > 1000 || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Sprintf("the sentence is not fit to be shown: %q", said)
	}
	return ""
}

// TestHostileServers: each ends with the failure that a person and the retries need, in bounded time and memory, leaves
// no goroutine and no connection behind, and leaves the client fit for the next request, to the same server as well.
// One server that does not would do for a stranger to take freshen down.
func TestHostileServers(t *testing.T) {
	c := newCorpus(t)
	c.client.CloseIdle()
	before := held()
	for _, layer := range layers {
		t.Run(layer.name, func(t *testing.T) {
			for _, r := range layer.rows {
				if r.want.waits {
					continue
				}
				left := goleak.IgnoreCurrent()
				t.Run(r.name, func(t *testing.T) { c.run(t, r, layer.named) })
				noneLeft(t, r.name, left)
			}
		})
	}
	left := goleak.IgnoreCurrent()
	t.Run("waiting", c.runWaiting)
	noneLeft(t, "those that are waited for", left)

	if got := len(c.goodOne.Requests()); got != c.goods {
		t.Errorf("the good server was asked %d times, want %d", got, c.goods)
	}
	if after := held(); after > before+mostHeldMiB<<20 {
		t.Errorf("%d MiB are held after all of them, and %d MiB were before", after>>20, before>>20)
	}
	t.Logf("%d servers misbehaved", c.next)
}

// runWaiting asks all servers at once that never come to an end.
func (c *corpus) runWaiting(t *testing.T) {
	w := c.on(t)
	var all []*asked
	var waiting sync.WaitGroup
	for _, layer := range layers {
		for _, r := range layer.rows {
			if r.want.waits {
				r.name = layer.name + "/" + r.name
				a := c.place(w, r, layer.named)
				all = append(all, a)
				waiting.Go(func() { a.fetch(c) })
			}
		}
	}
	waiting.Wait()
	for _, a := range all {
		t.Run(a.name, func(t *testing.T) { a.check(c, c.on(t)) })
	}
	c.client.CloseIdle()
}

func (c *corpus) run(t *testing.T, r row, named bool) {
	w := c.on(t)
	a := c.place(w, r, named)
	allocated := allocating()
	a.fetch(c)
	most := r.want.most
	if most == 0 {
		most = mostMiB
	}
	if got := allocated(); got > most<<20 {
		t.Errorf("%d KiB were allocated, at most %d MiB should be", got>>10, most)
	}
	a.check(c, w)
	c.client.CloseIdle()
}

// noneLeft waits until the goroutines of a row have ended; only one that never does is an error.
func noneLeft(t *testing.T, name string, before goleak.Option) {
	t.Helper()
	err := goleak.Find(before)
	for until := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(until); {
		err = goleak.Find(before)
	}
	if err != nil {
		t.Errorf("%s left goroutines: %v", name, err)
	}
}

// allocating returns a function that says how many bytes were allocated since.
func allocating() func() uint64 {
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	return func() uint64 {
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
}

// held is how many bytes are alive.
func held() uint64 {
	runtime.GC()
	runtime.GC() // what pools held goes at the second
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	return now.HeapAlloc
}
