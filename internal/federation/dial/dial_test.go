package dial_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"freshen/internal/federation/dial"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is a resolver of fixed answers.
type names map[string][]netip.Addr

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if addrs, ok := n[host]; ok {
		return addrs, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (n names) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errors.New("unused")
}

func addrs(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// connector is a network in which each address opens after a time or fails.
type connector struct {
	mu     sync.Mutex
	dialed []string
	opens  map[string]time.Duration // absent: fails at once; negative: never
	closed int
}

type conn struct {
	net.Conn
	addr  string
	owner *connector
}

func (c *conn) Close() error {
	c.owner.mu.Lock()
	defer c.owner.mu.Unlock()
	c.owner.closed++
	return nil
}

func (c *connector) connect(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	c.mu.Lock()
	c.dialed = append(c.dialed, addr.Addr().String())
	wait, ok := c.opens[addr.Addr().String()]
	c.mu.Unlock()
	if !ok {
		return nil, errors.New("refused")
	}
	if wait < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(wait) // within a synctest bubble; deliberately deaf to ctx
	return &conn{addr: addr.Addr().String(), owner: c}, nil
}

// TestRefusedNetworks: each of these in a user's request would reach into the site's own network or to nowhere.
func TestRefusedNetworks(t *testing.T) {
	for _, literal := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.169.254",
		"172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "100:0:0:1::1",
		"2001::1", "2001:0:4136:e378::", "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1",
		"fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1", "9999::1", "2606:4700::1%eth0",
	} {
		network := &connector{opens: map[string]time.Duration{literal: 0}}
		d := &dial.Dialer{Connect: network.connect}
		_, err := d.Dial(t.Context(), literal, 8448, nil)
		if denied, ok := errors.AsType[*dial.DeniedError](err); !ok || denied.Network.What == "" || len(network.dialed) != 0 {
			t.Errorf("%s: error %v, dialled %v", literal, err, network.dialed)
		}
	}
	for _, literal := range []string{
		"1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "172.15.255.255", "172.32.0.0",
		"192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2000::1", "2001:200::1", "2003::1", "2606:4700::1111", "2a00::1", "3ffe::1",
	} {
		network := &connector{opens: map[string]time.Duration{literal: 0}}
		d := &dial.Dialer{Connect: network.connect}
		if _, err := d.Dial(t.Context(), literal, 8448, nil); err != nil {
			t.Errorf("%s is public, but: %v", literal, err)
		}
	}
}

// TestAllow: an intranet can be opened by its range, and only that range.
func TestAllow(t *testing.T) {
	network := &connector{opens: map[string]time.Duration{"10.1.2.3": 0, "10.2.0.1": 0}}
	d := &dial.Dialer{Connect: network.connect, Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	if _, err := d.Dial(t.Context(), "10.1.2.3", 1, nil); err != nil {
		t.Error(err)
	}
	if _, err := d.Dial(t.Context(), "10.2.0.1", 1, nil); err == nil {
		t.Error("10.2.0.1 was dialled although 10.1.0.0/16 alone is open")
	}
}

// TestMixedAddresses: a name with a public and private addresses is dialled at the public one only, and addresses of A
// records count as IPv4 however the resolver writes them.
func TestMixedAddresses(t *testing.T) {
	network := &connector{opens: map[string]time.Duration{"1.1.1.1": 0}}
	d := &dial.Dialer{Connect: network.connect, Resolver: names{
		"mixed.test.": addrs("10.0.0.1", "::1", "::ffff:192.168.0.1", "::ffff:1.1.1.1"),
		"inner.test.": addrs("::ffff:10.0.0.1"),
		"empty.test.": nil,
	}}
	if _, err := d.Dial(t.Context(), "mixed.test", 1, nil); err != nil || !slices.Equal(network.dialed, []string{"1.1.1.1"}) {
		t.Errorf("error %v, dialled %v", err, network.dialed)
	}
	_, err := d.Dial(t.Context(), "inner.test", 1, nil)
	if denied, ok := errors.AsType[*dial.DeniedError](err); !ok || denied.Addr.String() != "10.0.0.1" {
		t.Errorf("inner.test: %v", err)
	}
	_, err = d.Dial(t.Context(), "empty.test", 1, nil)
	if dnsErr, ok := errors.AsType[*net.DNSError](err); !ok || !dnsErr.IsNotFound {
		t.Errorf("empty.test: %v", err)
	}
}

// TestRace: a server with one dead address is reached at the other without a wait that a person would notice, and no
// connection that lost the race stays open.
func TestRace(t *testing.T) {
	const never = -1
	for _, row := range []struct {
		name   string
		answer []netip.Addr
		opens  map[string]time.Duration
		want   string
		took   time.Duration
		dialed []string
	}{
		{
			"the first opens", addrs("2a00::1", "1.1.1.1"), map[string]time.Duration{"2a00::1": 100 * time.Millisecond, "1.1.1.1": 0},
			"2a00::1", 100 * time.Millisecond, []string{"2a00::1"},
		},
		{
			"the first fails", addrs("2a00::1", "1.1.1.1"), map[string]time.Duration{"1.1.1.1": 0},
			"1.1.1.1", 0, []string{"2a00::1", "1.1.1.1"},
		},
		{
			"the first is silent", addrs("2a00::1", "1.1.1.1"), map[string]time.Duration{"2a00::1": never, "1.1.1.1": time.Millisecond},
			"1.1.1.1", 251 * time.Millisecond, []string{"2a00::1", "1.1.1.1"},
		},
		{
			"families take turns", addrs("2a00::1", "2a00::2", "1.1.1.1", "1.1.1.2"), map[string]time.Duration{"1.1.1.2": 0},
			"1.1.1.2", 0, []string{"2a00::1", "1.1.1.1", "2a00::2", "1.1.1.2"},
		},
		{
			"a slow one still wins", addrs("1.1.1.1", "1.1.1.2"), map[string]time.Duration{"1.1.1.1": time.Second, "1.1.1.2": 10 * time.Second},
			"1.1.1.1", time.Second, []string{"1.1.1.1", "1.1.1.2"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &connector{opens: row.opens}
				d := &dial.Dialer{Connect: network.connect, Resolver: names{"b.test.": row.answer}}
				start := time.Now()
				won, err := d.Dial(t.Context(), "b.test", 1, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got := won.(*dial.Socket).Conn.(*conn).addr; got != row.want || time.Since(start) != row.took {
					t.Errorf("%s won after %s, want %s after %s", got, time.Since(start), row.want, row.took)
				}
				time.Sleep(time.Minute)
				network.mu.Lock()
				defer network.mu.Unlock()
				opened := 0
				for _, addr := range network.dialed {
					if wait, ok := row.opens[addr]; ok && wait >= 0 {
						opened++
					}
				}
				if !slices.Equal(network.dialed, row.dialed) || network.closed != opened-1 {
					t.Errorf("dialled %v, closed %d of %d; want %v and all but one closed", network.dialed, network.closed, opened, row.dialed)
				}
			})
		})
	}
}

// TestAllFail: the error tells of every address, and one name cannot make us dial hundreds.
func TestAllFail(t *testing.T) {
	var many []netip.Addr
	for i := range 200 {
		many = append(many, netip.AddrFrom4([4]byte{1, 1, 1, byte(i)}))
	}
	network := &connector{}
	d := &dial.Dialer{Connect: network.connect, Resolver: names{"b.test.": many}}
	if _, err := d.Dial(t.Context(), "b.test", 1, nil); err == nil || len(network.dialed) != 8 {
		t.Errorf("error %v after %d addresses, want 8", err, len(network.dialed))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	network = &connector{opens: map[string]time.Duration{"1.1.1.1": -1}}
	d = &dial.Dialer{Connect: network.connect}
	if _, err := d.Dial(ctx, "1.1.1.1", 1, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent address ended with %v", err)
	}
}

// TestAbsolute: names are not completed with this machine's search domains, where they would be another's.
func TestAbsolute(t *testing.T) {
	for name, want := range map[string]string{"b.org": "b.org.", "b.org.": "b.org.", "synapse": "synapse"} {
		if got := dial.Absolute(name); got != want {
			t.Errorf("%q became %q, want %q", name, got, want)
		}
	}
}

// TestRealConnection: without a stand-in the dialler opens real connections.
func TestRealConnection(t *testing.T) {
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	at := netip.MustParseAddrPort(listener.Addr().String())
	d := &dial.Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	opened, err := d.Dial(t.Context(), "127.0.0.1", at.Port(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = opened.Close()
}

// TestRaceIsOverTheHandshake: a name whose IPv6 address belongs to another site (its certificate is wrong there, or its
// TLS hangs) is reached at the IPv4 address, and quickly.
func TestRaceIsOverTheHandshake(t *testing.T) {
	const never = -1
	refused := errors.New("wrong certificate")
	for _, row := range []struct {
		name  string
		opens map[string]time.Duration
		shake map[string]time.Duration // absent: fails at once; negative: never
		want  string                   // "": all fail
		took  time.Duration
	}{
		{
			"the first fails", map[string]time.Duration{"2a00::1": 0, "1.1.1.1": 0}, map[string]time.Duration{"1.1.1.1": 0},
			"1.1.1.1", 0,
		},
		{
			"the first hangs", map[string]time.Duration{"2a00::1": 0, "1.1.1.1": 0}, map[string]time.Duration{"2a00::1": never, "1.1.1.1": 0},
			"1.1.1.1", time.Second,
		},
		{
			"the first is far away", map[string]time.Duration{"2a00::1": 200 * time.Millisecond, "1.1.1.1": 0}, map[string]time.Duration{"2a00::1": 600 * time.Millisecond, "1.1.1.1": 0},
			"2a00::1", 800 * time.Millisecond,
		},
		{
			"the second is silent, the first slow", map[string]time.Duration{"2a00::1": 0, "1.1.1.1": never}, map[string]time.Duration{"2a00::1": 3 * time.Second},
			"2a00::1", 3 * time.Second,
		},
		{
			"both fail", map[string]time.Duration{"2a00::1": 0, "1.1.1.1": 0}, nil,
			"", 0,
		},
		{
			"both hang", map[string]time.Duration{"2a00::1": 0, "1.1.1.1": 0}, map[string]time.Duration{"2a00::1": never, "1.1.1.1": never},
			"", 5 * time.Second,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &connector{opens: row.opens}
				sockets := dial.NewSockets(10, func() { t.Error("there was no free socket") })
				d := &dial.Dialer{Connect: network.connect, Sockets: sockets, Resolver: names{"b.test.": addrs("2a00::1", "1.1.1.1")}}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				start := time.Now()
				won, err := d.Dial(ctx, "b.test", 1, func(ctx context.Context, raw net.Conn) (net.Conn, error) {
					wait, ok := row.shake[raw.(*dial.Socket).Conn.(*conn).addr]
					if !ok {
						return nil, refused
					}
					if wait < 0 {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					time.Sleep(wait) // within the bubble
					return raw, nil
				})
				if took := time.Since(start); took != row.took {
					t.Errorf("it took %s, want %s", took, row.took)
				}
				if row.want == "" {
					failed, ok := errors.AsType[*dial.Error](err)
					if !ok || len(failed.Addrs) != 2 || failed.Addrs[0].Stage != dial.StageHandshake || failed.Addrs[1].Stage != dial.StageHandshake {
						t.Fatalf("the error is %v, want one that tells of two handshakes", err)
					}
				} else {
					if err != nil {
						t.Fatal(err)
					}
					if got := won.(*dial.Socket).Conn.(*conn).addr; got != row.want {
						t.Errorf("%s won, want %s", got, row.want)
					}
					_ = won.Close()
					_ = won.Close()
				}
				time.Sleep(time.Minute)
				if open := sockets.Open(); open != 0 {
					t.Errorf("%d sockets are held after the end", open)
				}
			})
		})
	}
}

// TestSocketsAreBounded: a flood of requests to hosts that swallow connections opens as many sockets as it may and no
// more; the others wait, are told so, and go on when there is room.
func TestSocketsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &connector{opens: map[string]time.Duration{"1.1.1.1": -1, "1.1.1.2": 0}}
		var wanted atomic.Int32
		sockets := dial.NewSockets(3, func() { wanted.Add(1) })
		d := &dial.Dialer{Connect: network.connect, Sockets: sockets, Resolver: names{"b.test.": addrs("1.1.1.2")}}
		var flood sync.WaitGroup
		for range 3 {
			flood.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := d.Dial(ctx, "1.1.1.1", 1, nil); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a silent address ended with %v", err)
				}
			})
		}
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := d.Dial(short, "1.1.1.2", 1, nil)
		if failed, ok := errors.AsType[*dial.Error](err); !ok || failed.Addrs[0].Stage != dial.StageWaiting {
			t.Errorf("without a free socket the error is %v", err)
		}
		short, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := d.Dial(short, "b.test", 1, nil); !errors.Is(err, dial.ErrBusy) {
			t.Errorf("without a free socket for the lookup the error is %v", err)
		}
		synctest.Wait()
		if wanted.Load() != 2 || len(network.dialed) != 3 {
			t.Errorf("kept connections were asked for %d times and %d were dialled, want 2 and 3", wanted.Load(), len(network.dialed))
		}
		late, err := d.Dial(t.Context(), "b.test", 1, nil)
		if err != nil {
			t.Fatalf("with a socket that came free: %v", err)
		}
		flood.Wait()
		sockets.Close()
		after, err := d.Dial(t.Context(), "b.test", 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if network.closed != 2 || sockets.Open() != 0 {
			t.Errorf("%d connections are closed and %d held after Close, want 2 and 0", network.closed, sockets.Open())
		}
		_, _ = late.Close(), after.Close()
	})
}
