package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
)

const (
	warmFetches  = 3000
	coldFetches  = 300
	oneCoreFor   = 500 * time.Millisecond
	oneCoreTurns = 7
	destinations = 10_000
)

// asker asks one server for bob's list, as freshen does and as little as possible: a signed GET, read to its end.
type asker struct {
	ctx  context.Context
	ca   *fedtest.CA
	key  *mxfed.SigningKey
	name string // of the server
	h2   bool
}

func (a *asker) client(resolver federation.Resolver) (*federation.Client, error) {
	return federation.New(federation.Config{
		ServerName: serverName, Key: federation.NewSigningKey(a.key), Roots: a.ca.Pool(), UserAgent: "freshen (bench)", Resolver: resolver,
		AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
}

func (a *asker) fetch(client *federation.Client) error {
	list, err := client.FetchDeviceList(a.ctx, bobAt(a.name))
	if err == nil && len(list.Devices) != 5 {
		err = fmt.Errorf("a list of %d devices came", len(list.Devices))
	}
	return err
}

// plain returns what a GET without freshen goes through; the caller closes its connections.
func (a *asker) plain() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.ca.Pool(), MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: a.h2}
}

func (a *asker) get(over *http.Transport) error {
	signed := &mxfed.Client{HTTP: &http.Client{Transport: overTLS{over}}, ServerName: serverName, Key: a.key, ResponseSizeLimit: 16 << 20}
	_, _, err := signed.MakeFullRequest(a.ctx, mxfed.RequestParams{ //nolint:bodyclose // it reads and closes the body itself
		ServerName: a.name, Method: http.MethodGet, Path: mxfed.URLPath{"v1", "user", "devices", bobAt(a.name)}, Authenticate: true,
	})
	return err
}

// federating measures the federation part of a refresh alone. The other server is a process of its own that does next to
// nothing, so that what differs is the client's.
func federating(b *bench) error {
	ca, key := fedtest.NewCA(b), fedtest.NewKey()
	for _, proto := range []struct {
		name string
		args []string
	}{{"HTTP/1.1", nil}, {"HTTP/2", []string{"-h2"}}} {
		remote, err := b.startRemote(ca, proto.args...)
		if err != nil {
			return err
		}
		a := &asker{ctx: b.ctx, ca: ca, key: key, name: remote.addr, h2: len(proto.args) > 0}
		if err := a.warm(b.out, proto.name); err != nil {
			return err
		}
		if a.h2 {
			continue
		}
		if err := errors.Join(a.cold(b.out), a.oneCore(b.out)); err != nil {
			return err
		}
	}
	return errors.Join(signatures(b.out, 5), signatures(b.out, 500), cached(b, ca, key, 1), cached(b, ca, key, 8))
}

// signatures measures the check of a list's signatures, which is made once for a list, when those who wait have their
// answer.
func signatures(out *table, devices int) error {
	bob := bobAt("remote.test")
	list, err := freshen.ParseDeviceList(fedtest.NewPerson(bob).List(devices, 1), bob)
	if err != nil {
		return err
	}
	var took []time.Duration
	for range 50 {
		began := time.Now()
		list.Oddities()
		took = append(took, time.Since(began))
	}
	out.add(row{name: fmt.Sprintf("signatures of a new list of %d devices, checked beside its answer: p50", devices), freshen: ms(median(took))})
	return nil
}

// turns measures both in turns, after a few that do not count.
func turns(times int, fetch, get func() error) (fetching, getting []time.Duration, err error) {
	for i := range times + times/10 + 1 {
		for _, part := range []struct {
			into *[]time.Duration
			do   func() error
		}{{&fetching, fetch}, {&getting, get}} {
			began := time.Now()
			if err := part.do(); err != nil {
				return nil, nil, err
			}
			if i > times/10 {
				*part.into = append(*part.into, time.Since(began))
			}
		}
	}
	return fetching, getting, nil
}

func (a *asker) warm(out *table, proto string) error {
	client, err := a.client(nil)
	if err != nil {
		return err
	}
	defer client.Close()
	over := a.plain()
	defer over.CloseIdleConnections()
	fetching, getting, err := turns(warmFetches, func() error { return a.fetch(client) }, func() error { return a.get(over) })
	if err != nil {
		return err
	}
	f, g := median(fetching), median(getting)
	ratio := float64(f) / float64(g)
	r := row{name: fmt.Sprintf("fetch of 5 devices, kept %s connection, beside a signed GET: p50", proto), direct: ms(g), freshen: ms(f), ratio: times(ratio)}
	if !a.h2 {
		r.target, r.met = "≤ 1.3×", ratio <= 1.3
	}
	out.add(r)
	return nil
}

// cold has each fetch and each GET open a connection of its own.
func (a *asker) cold(out *table) error {
	fetching, getting, err := turns(coldFetches, func() error {
		client, err := a.client(nil)
		if err != nil {
			return err
		}
		defer client.Close()
		return a.fetch(client)
	}, func() error {
		over := a.plain()
		defer over.CloseIdleConnections()
		return a.get(over)
	})
	if err != nil {
		return err
	}
	f, g := median(fetching), median(getting)
	out.add(row{name: "fetch of 5 devices, new connection, beside a TLS handshake and a GET: p50", direct: ms(g), freshen: ms(f), ratio: times(float64(f) / float64(g))})
	return nil
}

// oneCore counts what this process does on one core, the other server having the rest of the machine.
func (a *asker) oneCore(out *table) error {
	client, err := a.client(nil)
	if err != nil {
		return err
	}
	defer client.Close()
	over := a.plain()
	defer over.CloseIdleConnections()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var fetches, gets, fetchCPU, getCPU []float64
	for turn := range oneCoreTurns {
		for _, part := range []struct {
			rate, cpu *[]float64
			do        func() error
		}{
			{&fetches, &fetchCPU, func() error { return a.fetch(client) }},
			{&gets, &getCPU, func() error { return a.get(over) }},
		} {
			done, took, cpu, err := busy(oneCoreFor, part.do)
			if err != nil {
				return err
			}
			if turn > 0 {
				*part.rate = append(*part.rate, float64(done)/took.Seconds())
				*part.cpu = append(*part.cpu, float64(cpu)/float64(done))
			}
		}
	}
	out.add(row{
		name: "fetches of 5 devices on one core, beside signed GETs: a second", direct: fmt.Sprintf("%.0f", median(gets)),
		freshen: fmt.Sprintf("%.0f", median(fetches)), ratio: times(median(ratios(fetches, gets))),
	})
	out.add(row{
		name: "CPU of each, the other server's not counted", direct: us(time.Duration(median(getCPU))),
		freshen: us(time.Duration(median(fetchCPU))), ratio: times(median(ratios(fetchCPU, getCPU))),
	})
	return nil
}

// busy does it from four goroutines for a while, and says how often, and how much CPU this process took.
func busy(atLeast time.Duration, do func() error) (done int, took, cpu time.Duration, err error) {
	began, before := time.Now(), ownCPU()
	type ended struct {
		times int
		err   error
	}
	ends := make(chan ended)
	for range 4 {
		go func() {
			var e ended
			for time.Since(began) < atLeast && e.err == nil {
				e.err = do()
				e.times++
			}
			ends <- e
		}()
	}
	for range 4 {
		e := <-ends
		done += e.times
		err = errors.Join(err, e.err)
	}
	return done, time.Since(began), ownCPU() - before, err
}

// ownCPU is what this process has used so far.
func ownCPU() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// phoneBook leads every name to an address where nobody listens, after so many SRV targets.
type phoneBook struct{ targets int }

func (phoneBook) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 99, 99, 99})}, nil
}

func (p phoneBook) LookupSRV(_ context.Context, _, _, name string) (string, []*net.SRV, error) {
	targets := make([]*net.SRV, p.targets)
	for i := range targets {
		targets[i] = &net.SRV{Target: fmt.Sprintf("federation-%d.%s", i, name), Port: 9}
	}
	return name, targets, nil
}

// cached fills the caches with what is known of 10,000 servers: that their well-known could not be fetched, why, and
// their SRV targets. Then it names as many again, which must not add to it.
func cached(b *bench, ca *fedtest.CA, key *mxfed.SigningKey, targets int) error {
	a := &asker{ctx: b.ctx, ca: ca, key: key}
	client, err := a.client(phoneBook{targets})
	if err != nil {
		return err
	}
	defer client.Close()
	ask := func(from, to int) error {
		for i := from; i < to; i++ {
			user := id.UserID(fmt.Sprintf("@bob:matrix-%05d.example.org", i))
			_, err := client.FetchDeviceList(b.ctx, user)
			if failure, ok := errors.AsType[*freshen.Failure](err); !ok || failure.Reason != freshen.ReasonConnect {
				return fmt.Errorf("the server of %s should refuse the connection: %w", user, err)
			}
		}
		return nil
	}
	if err := ask(0, 100); err != nil {
		return err
	}
	before := heap()
	if err := ask(100, destinations); err != nil {
		return err
	}
	full := heap()
	if err := ask(destinations, 2*destinations); err != nil {
		return err
	}
	more := heap()
	grown := float64(more-before) / float64(full-before)
	b.out.add(row{
		name:    fmt.Sprintf("memory for %d destinations in the caches, %d SRV targets each: all, each", destinations, targets),
		freshen: fmt.Sprintf("%.1f MB, %.0f B", float64(full-before)/1e6, float64(full-before)/(destinations-100)),
	})
	b.out.add(row{
		name: fmt.Sprintf("the same, when %d others were named", destinations), freshen: fmt.Sprintf("%.1f MB", float64(more-before)/1e6),
		ratio: times(grown), target: "does not grow", met: grown < 1.15,
	})
	return nil
}

// heap is what is in use after two collections, the second of which empties the pools.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
