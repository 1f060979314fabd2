package fedtest

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// DNS is a name server on loopback that answers over UDP and, where an answer is too long for that, over TCP.
type DNS struct {
	tb       testing.TB
	udp, tcp string
	ending   context.Context

	mu      sync.Mutex
	records map[string][]dns.RR // by name
	broken  map[string]bool
	silent  map[string]bool
	slow    map[string]time.Duration
	asked   map[string]int
	overTCP int
}

// NewDNS starts a name server that knows no name. It stops with the test.
func NewDNS(tb testing.TB) *DNS {
	tb.Helper()
	var config net.ListenConfig
	packets, err := config.ListenPacket(tb.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	listener, err := config.Listen(tb.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ending, end := context.WithCancel(context.Background())
	d := &DNS{
		tb: tb, udp: packets.LocalAddr().String(), tcp: listener.Addr().String(), ending: ending,
		records: map[string][]dns.RR{}, broken: map[string]bool{}, silent: map[string]bool{}, slow: map[string]time.Duration{}, asked: map[string]int{},
	}
	var serving sync.WaitGroup
	servers := []*dns.Server{{PacketConn: packets, Handler: d}, {Listener: listener, Handler: d}}
	for _, server := range servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		serving.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				tb.Errorf("the test's name server stopped: %v", err)
			}
		})
		<-started
	}
	tb.Cleanup(func() {
		end()
		for _, server := range servers {
			_ = server.Shutdown()
		}
		serving.Wait()
	})
	return d
}

// Resolver asks this name server alone.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			if strings.HasPrefix(network, "tcp") {
				return dialer.DialContext(ctx, "tcp4", d.tcp)
			}
			return dialer.DialContext(ctx, "udp4", d.udp)
		},
	}
}

// Host gives name addresses, in place of those that it had.
func (d *DNS) Host(name string, addrs ...string) {
	var records []dns.RR
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		if addr.Is4() {
			records = append(records, &dns.A{Hdr: header(name, dns.TypeA), A: addr.AsSlice()})
		} else {
			records = append(records, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	d.set(name, records)
}

// CNAME makes name another name of target.
func (d *DNS) CNAME(name, target string) {
	d.set(name, []dns.RR{&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: absolute(target)}})
}

// SRV gives _service._tcp.name its records, in place of those that it had.
func (d *DNS) SRV(service, name string, targets ...net.SRV) {
	owner := "_" + service + "._tcp." + name
	var records []dns.RR
	for _, t := range targets {
		records = append(records, &dns.SRV{
			Hdr: header(owner, dns.TypeSRV), Priority: t.Priority, Weight: t.Weight, Port: t.Port, Target: absolute(t.Target),
		})
	}
	d.set(owner, records)
}

// Break makes the name server fail (SERVFAIL) on all questions about name and what lies below it.
func (d *DNS) Break(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken[absolute(name)] = true
}

// Silence makes the name server never answer questions about name and what lies below it.
func (d *DNS) Silence(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent[absolute(name)] = true
}

// Slow makes the name server take so long for each question about name and what lies below it.
func (d *DNS) Slow(name string, by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow[absolute(name)] = by
}

// Asked says how often anything was asked about name.
func (d *DNS) Asked(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[absolute(name)]
}

// AskedOverTCP says how many questions came over TCP.
func (d *DNS) AskedOverTCP() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.overTCP
}

func (d *DNS) set(name string, records []dns.RR) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records[absolute(name)] = records
}

func absolute(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") + "." }

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: absolute(name), Rrtype: kind, Class: dns.ClassINET, Ttl: 60}
}

// ServeDNS implements [dns.Handler].
func (d *DNS) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	answer, wait := d.answer(query, overTCP)
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-d.ending.Done():
			return
		}
	}
	if answer == nil {
		return
	}
	if !overTCP {
		size := dns.MinMsgSize
		if option := query.IsEdns0(); option != nil {
			size = int(option.UDPSize())
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer)
}

// answer is nil where there is to be none. It also says how long the asker has to wait.
func (d *DNS) answer(query *dns.Msg, overTCP bool) (*dns.Msg, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	asked := query.Question[0]
	name := absolute(asked.Name)
	d.asked[name]++
	if overTCP {
		d.overTCP++
	}
	var wait time.Duration
	for slow, by := range d.slow {
		if dns.IsSubDomain(slow, name) {
			wait = by
		}
	}
	answer := new(dns.Msg)
	for silent := range d.silent {
		if dns.IsSubDomain(silent, name) {
			return nil, 0
		}
	}
	for broken := range d.broken {
		if dns.IsSubDomain(broken, name) {
			return answer.SetRcode(query, dns.RcodeServerFailure), wait
		}
	}
	answer.SetReply(query)
	answer.Authoritative, answer.RecursionAvailable = true, true
	for range 8 { // a chain of other names
		records, known := d.records[name]
		if !known {
			answer.Rcode = dns.RcodeNameError
			break
		}
		next := ""
		for _, record := range records {
			if alias, ok := record.(*dns.CNAME); ok {
				next = alias.Target
				answer.Answer = append(answer.Answer, record)
			} else if record.Header().Rrtype == asked.Qtype {
				answer.Answer = append(answer.Answer, record)
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	return answer, wait
}
