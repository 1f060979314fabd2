package federation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"freshen"
	"freshen/internal/federation/dial"
)

// clause says why there is no connection to a place, in the two forms that sentences need.
type clause struct {
	reason freshen.Reason
	place  string // "b.org:8448"
	alone  string // a sentence without its full stop: "b.org:8448 refused the connection"
	which  string // what follows the place and a comma: "which refused the connection"
}

// explain says why to could not be connected to; err is what [dial.Dialer.Dial] said.
func explain(to target, err error, now time.Time) clause {
	host, place := clean(to.host, maxRemoteError), clean(to.String(), maxRemoteError)
	server := func(reason freshen.Reason, text string) clause {
		return clause{reason, place, place + " " + text, "which " + text}
	}
	name := func(text string) clause {
		return clause{freshen.ReasonDNS, place, "the name " + host + " " + text, "a name that " + text}
	}
	if _, denied := errors.AsType[*dial.DeniedError](err); denied {
		const networks = "private or reserved networks, which freshen does not dial; federation.allow_networks opens some"
		if _, err := netip.ParseAddr(to.host); err == nil {
			return clause{freshen.ReasonDenied, place, place + " lies in " + networks, "an address in " + networks}
		}
		return clause{freshen.ReasonDenied, place, "all addresses of " + place + " lie in " + networks, "whose addresses all lie in " + networks}
	}
	if dnsErr, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case dnsErr.IsNotFound:
			return name("has no address")
		case isTimeout(err):
			return name("could not be looked up: its name server did not answer in time")
		}
		return name("could not be looked up: its name server does not answer as it should")
	}
	failed, ok := errors.AsType[*dial.Error](err)
	if !ok || isBusy(err) {
		if isBusy(err) {
			return server(freshen.ReasonTimeout, "was not connected to in time: freshen has as many connections open as it may have")
		}
		return server(freshen.ReasonConnect, "could not be connected to")
	}
	addr := mostTelling(failed.Addrs)
	if addr.Stage == dial.StageHandshake && len(failed.Addrs) > 1 {
		place = fmt.Sprintf("%s (at %s)", place, addr.Addr)
	}
	switch took := humanDuration(addr.Took); {
	case isTimeout(addr.Err) && addr.Stage == dial.StageHandshake:
		return server(freshen.ReasonTimeout, "did not finish the TLS handshake within "+took)
	case addr.Stage == dial.StageHandshake:
		return explainTLS(place, addr.Err, now)
	case isTimeout(addr.Err):
		return server(freshen.ReasonTimeout, "could not be connected to within "+took)
	case errors.Is(addr.Err, syscall.ECONNREFUSED):
		return server(freshen.ReasonConnect, "refused the connection")
	case isUnreachable(addr.Err):
		return server(freshen.ReasonConnect, "cannot be reached: there is no way to its network")
	}
	return server(freshen.ReasonConnect, "could not be connected to")
}

// mostTelling picks the address whose failure helps most: one where somebody is says more than one where nobody is, and
// that says more than that we have no way there at all (many sites have no IPv6).
func mostTelling(addrs []dial.AddrError) dial.AddrError {
	rank := func(a dial.AddrError) int {
		switch {
		case a.Stage == dial.StageHandshake && !isTimeout(a.Err):
			return 5
		case a.Stage == dial.StageHandshake:
			return 4
		case errors.Is(a.Err, syscall.ECONNREFUSED):
			return 3
		case isTimeout(a.Err):
			return 2
		case !isUnreachable(a.Err):
			return 1
		}
		return 0
	}
	best := addrs[0]
	for _, addr := range addrs[1:] {
		if rank(addr) > rank(best) {
			best = addr
		}
	}
	return best
}

// explainWellKnown says in words why a request for a well-known that took so long delegates nothing; they stand for
// whole sentences in the cache, since errors hold on to certificates and more, whose size strangers choose.
func explainWellKnown(err error, took time.Duration, now time.Time) string {
	if answer, ok := errors.AsType[*wellKnownAnswerError](err); ok {
		return answer.why
	}
	if failed, ok := errors.AsType[*targetError](err); ok {
		return explain(failed.target, failed.err, now).alone
	}
	switch {
	case isTimeout(err):
		return "its web server did not answer within " + humanDuration(took)
	case isBroken(err):
		return "its web server broke the connection"
	}
	return "its web server gave an answer that is no usable HTTP"
}

// tell makes the sentence about a place on the route to server: what leads there, and why it could not be connected to.
func (r *route) tell(server string, c clause) string {
	host := server
	if name, err := parseName(server); err == nil {
		host = name.host
	}
	switch {
	case r.srv != "" && r.delegated != "":
		return fmt.Sprintf("The well-known of %s names %s, whose SRV record %s names %s, %s.", host, r.delegated, r.srv, c.place, c.which)
	case r.srv != "":
		return fmt.Sprintf("The SRV record %s names %s, %s.", r.srv, c.place, c.which)
	case r.delegated != "" && r.targets[0].String() == r.delegated:
		return fmt.Sprintf("The well-known of %s names %s, %s.", host, c.place, c.which)
	case r.delegated != "":
		return fmt.Sprintf("The well-known of %s leads to %s, %s.", host, c.place, c.which)
	}
	return sentence(c.alone)
}

// noHelp adds that there was no delegation, where that may be why the server was looked for in the wrong place.
func (r *route) noHelp(server string, c clause) string {
	if r == nil || r.noWellKnown == "" || r.noWellKnown == c.alone {
		return ""
	}
	return fmt.Sprintf(" The well-known of %s is no help: %s.", server, r.noWellKnown)
}

// sentence begins with a capital, unless that would change a name, and ends with a full stop.
func sentence(text string) string {
	if strings.HasPrefix(text, "the ") || strings.HasPrefix(text, "all ") {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return text + "."
}

// isBusy says whether nothing was dialled at all, because there was no free socket.
func isBusy(err error) bool {
	if failed, ok := errors.AsType[*dial.Error](err); ok {
		for _, addr := range failed.Addrs {
			if addr.Stage != dial.StageWaiting {
				return false
			}
		}
		return true
	}
	return errors.Is(err, dial.ErrBusy)
}

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		return true
	}
	netErr, ok := errors.AsType[net.Error](err)
	return ok && netErr.Timeout()
}

func isUnreachable(err error) bool {
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// isBroken says whether the other end broke the connection off before its time.
func isBroken(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	if ok && op.Op != "local error" { // which is what crypto/tls calls it when it is we who break off
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
