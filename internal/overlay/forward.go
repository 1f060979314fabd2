package overlay

import (
	"errors"
	"io"
	"iter"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"

	"freshen/internal/overlay/wire"
)

// hopByHop are the header fields that end at a proxy (RFC 9110, section 7.6.1, and the older ones that are still sent),
// besides those that Connection names.
var hopByHop = map[string]bool{
	"Connection": true, "Proxy-Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// named are the header fields that Connection names besides, mostly none.
func named(connection []string) (names []string) {
	for _, value := range connection {
		for name := range strings.SplitSeq(value, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if name != "" && !hopByHop[name] && name != "Close" {
				names = append(names, name)
			}
		}
	}
	return names
}

// forwardable says whether a request is one that [Proxy.forward] passes on: one that can be asked again if a kept
// connection turns out to be closed, without leaving HTTP, and without a body that is not at hand.
func (p *Proxy) forwardable(r *http.Request, x exchange) bool {
	if p.wire == nil || len(r.Header["Upgrade"]) > 0 || len(r.Header["Expect"]) > 0 || len(r.Trailer) > 0 ||
		!strings.HasPrefix(r.RequestURI, "/") || strings.HasPrefix(p.prefix+r.RequestURI, "//") {
		return false
	}
	if s, ok := x.(*syncExchange); ok && s.sliding != nil {
		return true
	}
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.ContentLength == 0
}

// forward has the homeserver answer over package wire. It does what httputil.ReverseProxy does, for less: there is no copy
// of the request and its headers to make, no timer to flush by, and no goroutine besides the one that serves.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, x exchange) {
	resp, err := p.ask(w, r, x)
	if err != nil {
		p.failed(w, r, err)
		return
	}
	source := resp.Body // of which an edit may make another
	if x != nil {
		if err := x.edit(resp); err != nil {
			_ = resp.Body.Close()
			p.failed(w, r, err)
			return
		}
	}
	untyped(w)
	header := w.Header()
	ends := named(resp.Header["Connection"])
	for name, values := range resp.Header {
		if !hopByHop[name] && !slices.Contains(ends, name) {
			header[name] = values
		}
	}
	announced := len(resp.Trailer)
	for name := range resp.Trailer {
		header.Add("Trailer", name)
	}
	w.WriteHeader(resp.StatusCode)
	err = p.copyBody(w, resp.Body, source)
	// Before the client can tell that it was the last: this is what records that an answer went out whole.
	_ = resp.Body.Close()
	if err != nil {
		panic(http.ErrAbortHandler) // what the client has is not whole, and must not look so
	}
	if flusher, ok := w.(http.Flusher); ok && len(resp.Trailer) > 0 {
		flusher.Flush() // so that it is sent in chunks, which trailers need
	}
	for name, values := range resp.Trailer {
		if len(resp.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		header[name] = values
	}
}

// ask sends the request, over again without waiting if it is to be hurried.
func (p *Proxy) ask(w http.ResponseWriter, r *http.Request, x exchange) (*http.Response, error) {
	out := wire.Request{
		Method: r.Method, Target: p.prefix + r.RequestURI, Host: r.Host, Header: fields(r, x),
		Interim: func(status int, header http.Header) { interim(w, status, header) },
	}
	poll, ok := x.(*syncExchange)
	if !ok {
		return p.wire.RoundTrip(r.Context(), &out)
	}
	if poll.sliding != nil {
		out.Body = poll.sliding.body
	}
	if !poll.waits {
		return p.wire.RoundTrip(r.Context(), &out)
	}
	out.Wait = waiting{poll}
	out.Again = func() {
		path, query, queried := strings.Cut(r.RequestURI, "?")
		query, out.Body = poll.withoutWaiting(query)
		if queried {
			out.Target = p.prefix + path + "?" + query
		}
	}
	defer p.hurried.done(poll)
	return p.wire.RoundTrip(r.Context(), &out)
}

// waiting lets a poll be abandoned.
type waiting struct{ x *syncExchange }

func (w waiting) Begin(abandon func()) bool { return w.x.arm(abandon) }
func (w waiting) Over() bool                { return w.x.disarm() }

// interim passes a 1xx answer on.
func interim(w http.ResponseWriter, status int, header http.Header) {
	ours := w.Header()
	before := ours.Clone()
	maps.Copy(ours, header)
	w.WriteHeader(status)
	clear(ours) // net/http keeps them for the answer proper
	maps.Copy(ours, before)
}

// fields are the header fields of the request as it goes to the homeserver.
func fields(r *http.Request, x exchange) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		ends := named(r.Header["Connection"])
		for name, values := range r.Header {
			switch {
			case hopByHop[name], slices.Contains(ends, name), name == "X-Forwarded-For", name == "Content-Length", x != nil && name == "Accept-Encoding":
				continue
			}
			for _, value := range values {
				if !yield(name, value) {
					return
				}
			}
		}
		if slices.ContainsFunc(r.Header["Te"], func(value string) bool { return strings.Contains(strings.ToLower(value), "trailers") }) && !yield("Te", "trailers") {
			return
		}
		if x != nil && !yield("Accept-Encoding", "identity") {
			return
		}
		// What the proxy in front of us says of the client's connection is truer than what we see of its own. Over a unix
		// socket it has no address, and nothing is to be added.
		hops := r.Header["X-Forwarded-For"]
		if client, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			hops = append(slices.Clip(hops), client)
		}
		if len(hops) > 0 && !yield("X-Forwarded-For", strings.Join(hops, ", ")) {
			return
		}
		if len(r.Header["X-Forwarded-Host"]) == 0 && !yield("X-Forwarded-Host", r.Host) {
			return
		}
		if len(r.Header["X-Forwarded-Proto"]) == 0 {
			yield("X-Forwarded-Proto", "http")
		}
	}
}

// copyBody passes the body on as it comes. What the homeserver has said, the client hears before we wait for more.
func (p *Proxy) copyBody(w http.ResponseWriter, body, source io.Reader) error {
	if body == http.NoBody {
		return nil
	}
	flusher, _ := w.(http.Flusher)
	flush := func() {
		if flusher != nil && !ready(source) {
			flusher.Flush()
		}
	}
	buffer := p.buffers.Get()
	defer p.buffers.Put(buffer)
	flush()
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		flush()
	}
}

// ready says that the next read of the homeserver's answer does not wait for it.
func ready(source io.Reader) bool {
	switch body := source.(type) {
	case *wire.Body:
		return body.Ready()
	case *cancelOnClose:
		return body.ready()
	}
	return source == http.NoBody
}
