package fedtest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server on loopback.
type DNS struct {
	addr string

	mu      sync.Mutex
	records map[dnsmessage.Question][]dnsmessage.ResourceBody
	broken  map[string]bool
	asked   map[string]int
}

// NewDNS starts a name server that knows no name. It stops with the test.
func NewDNS(tb testing.TB) *DNS {
	tb.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	d := &DNS{
		addr:    socket.LocalAddr().String(),
		records: map[dnsmessage.Question][]dnsmessage.ResourceBody{}, broken: map[string]bool{}, asked: map[string]int{},
	}
	var serving sync.WaitGroup
	serving.Go(func() { d.serve(tb, socket) })
	tb.Cleanup(func() { _ = socket.Close(); serving.Wait() })
	return d
}

// Resolver asks this name server alone.
func (d *DNS) Resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "udp4", d.addr)
		},
	}
}

// Host gives name addresses, in place of those that it had.
func (d *DNS) Host(name string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	four, six := question(name, dnsmessage.TypeA), question(name, dnsmessage.TypeAAAA)
	d.records[four], d.records[six] = nil, nil
	for _, text := range addrs {
		if addr := netip.MustParseAddr(text); addr.Is4() {
			d.records[four] = append(d.records[four], &dnsmessage.AResource{A: addr.As4()})
		} else {
			d.records[six] = append(d.records[six], &dnsmessage.AAAAResource{AAAA: addr.As16()})
		}
	}
}

// SRV gives _service._tcp.name its records, in place of those that it had.
func (d *DNS) SRV(service, name string, targets ...net.SRV) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := question("_"+service+"._tcp."+name, dnsmessage.TypeSRV)
	d.records[q] = nil
	for _, t := range targets {
		d.records[q] = append(d.records[q], &dnsmessage.SRVResource{
			Priority: t.Priority, Weight: t.Weight, Port: t.Port, Target: dnsmessage.MustNewName(absolute(t.Target)),
		})
	}
}

// Break makes the name server fail (SERVFAIL) on all questions about name and what lies below it.
func (d *DNS) Break(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken[absolute(name)] = true
}

// Asked says how often anything was asked about name.
func (d *DNS) Asked(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[absolute(name)]
}

func absolute(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") + "." }

func question(name string, kind dnsmessage.Type) dnsmessage.Question {
	return dnsmessage.Question{Name: dnsmessage.MustNewName(absolute(name)), Type: kind, Class: dnsmessage.ClassINET}
}

func (d *DNS) serve(tb testing.TB, socket *net.UDPConn) {
	buffer := make([]byte, 4096)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		var query dnsmessage.Message
		if err := query.Unpack(buffer[:n]); err != nil || len(query.Questions) != 1 {
			continue
		}
		answer := d.answer(query)
		packed, err := answer.Pack()
		if err != nil {
			tb.Errorf("the test's name server cannot pack its answer: %v", err)
			return
		}
		_, _ = socket.WriteToUDPAddrPort(packed, from)
	}
}

func (d *DNS) answer(query dnsmessage.Message) dnsmessage.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	asked := query.Questions[0]
	name := absolute(asked.Name.String())
	d.asked[name]++
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true, RecursionAvailable: true},
		Questions: query.Questions,
	}
	for broken := range d.broken {
		if name == broken || strings.HasSuffix(name, "."+broken) {
			answer.RCode = dnsmessage.RCodeServerFailure
			return answer
		}
	}
	known := false
	for q, bodies := range d.records {
		known = known || q.Name.String() == name
		if q.Name.String() != name || q.Type != asked.Type {
			continue
		}
		for _, body := range bodies {
			answer.Answers = append(answer.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: asked.Name, Type: asked.Type, Class: dnsmessage.ClassINET, TTL: 60},
				Body:   body,
			})
		}
	}
	if !known {
		answer.RCode = dnsmessage.RCodeNameError
	}
	return answer
}
