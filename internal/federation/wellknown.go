package federation

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"freshen"
	"freshen/internal/federation/dial"
)

// Limits of /.well-known/matrix/server. The specification asks for at most 48 hours and proposes 24 where the answer
// says nothing (server-server API, "Resolving server names").
const (
	wellKnownMaxBytes    = 64 << 10
	wellKnownRedirects   = 5
	wellKnownLongest     = 48 * time.Hour
	wellKnownDefault     = 24 * time.Hour
	wellKnownShortest    = 5 * time.Minute
	wellKnownErrAnswered = 10 * time.Minute // somebody answered, but with nothing usable: mostly a 404
	wellKnownErrSilent   = 30 * time.Second // nobody answered: that passes, and the delegation is then wanted at once
)

// delegation is what the well-known of a host said: a server name, or why there is none.
type delegation struct {
	server  string
	why     string // in words, see explainWellKnown
	expires time.Time
}

// wellKnownAnswerError is an answer that delegates nothing, as opposed to no answer.
type wellKnownAnswerError struct{ why string }

func (e *wellKnownAnswerError) Error() string { return e.why }

// delegate returns what the well-known of host says, from the cache or the network, where it may take at most so long.
// It fails, and nothing is cached, where the failure says nothing about the host: with dial.ErrBusy, or once ctx is
// done.
func (r *router) delegate(ctx context.Context, host string, most time.Duration) (delegation, error) {
	key := strings.ToLower(host)
	if known, ok := r.delegations.get(key, r.now()); ok {
		return known, nil
	}
	limited, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	began := time.Now()
	server, lifetime, err := r.fetchWellKnown(limited, host)
	switch {
	case ctx.Err() != nil:
		return delegation{}, ctx.Err()
	case isBusy(err):
		return delegation{}, dial.ErrBusy
	}
	told := delegation{server: server}
	if err != nil {
		lifetime = wellKnownErrSilent
		if _, answered := errors.AsType[*wellKnownAnswerError](err); answered {
			lifetime = wellKnownErrAnswered
		}
		told.why = explainWellKnown(err, time.Since(began), r.now())
	}
	told.expires = r.now().Add(lifetime)
	r.delegations.put(key, told, len(told.server)+len(told.why), told.expires)
	return told, nil
}

func (r *router) fetchWellKnown(ctx context.Context, host string) (string, time.Duration, error) {
	target := url.URL{Scheme: "https", Host: host, Path: "/.well-known/matrix/server"}
	req, err := http.NewRequestWithContext(withDialContext(ctx), http.MethodGet, target.String(), nil)
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("User-Agent", r.userAgent)
	resp, err := r.wellKnown.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return "", 0, &wellKnownAnswerError{fmt.Sprintf("it answers %d", resp.StatusCode)}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, wellKnownMaxBytes+1))
	if err == nil {
		err = ctx.Err() // a body without a length also ends where we hang up, and then nobody knows whether that was all
	}
	if err != nil {
		return "", 0, err
	}
	server, err := parseWellKnown(body)
	if err != nil {
		return "", 0, err
	}
	return server, wellKnownLifetime(resp.Header, r.now()), nil
}

// parseWellKnown reads the body of /.well-known/matrix/server; the server name that it returns is one in the
// specification's grammar, fit for a Host header.
func parseWellKnown(body []byte) (string, error) {
	if len(body) > wellKnownMaxBytes {
		return "", &wellKnownAnswerError{fmt.Sprintf("it is over the limit of %d bytes", wellKnownMaxBytes)}
	}
	var wire struct {
		Server string `json:"m.server"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		return "", &wellKnownAnswerError{"it is no JSON object with a string m.server"}
	}
	if _, err := parseName(wire.Server); err != nil || !freshen.ValidServerName(wire.Server) {
		return "", &wellKnownAnswerError{"its m.server is no server name"}
	}
	return wire.Server, nil
}

// wellKnownLifetime is how long an answer with these headers may be used (RFC 9111 §5.2, §5.3), within our bounds.
func wellKnownLifetime(header http.Header, now time.Time) time.Duration {
	lifetime, said := wellKnownDefault, false
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return wellKnownShortest
		case "max-age":
			if seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32); err == nil {
				age, _ := strconv.ParseInt(header.Get("Age"), 10, 32)
				lifetime, said = time.Duration(seconds-max(age, 0))*time.Second, true
			}
		}
	}
	if expires := header.Get("Expires"); expires != "" && !said {
		// A date that is none, "0" above all, means that it has expired (RFC 9111 §5.3).
		at, err := http.ParseTime(expires)
		if err != nil {
			return wellKnownShortest
		}
		lifetime = at.Sub(now)
	}
	return min(max(lifetime, wellKnownShortest), wellKnownLongest)
}

// newWellKnownClient follows a few redirects, to https only, each through our own dialler. It keeps no connection: it is
// used about once a day for a host.
func newWellKnownClient(cfg *Config, dialer *dial.Dialer) *http.Client {
	config := &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}
	transport := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, port, err := splitHostPort(addr)
			if err != nil {
				return nil, err
			}
			ctx = dialContext(ctx)
			ctx, cancel := context.WithTimeout(ctx, before(ctx, discoveryMostTime))
			defer cancel()
			conn, err := dialer.Dial(ctx, host, port, handshake(config, host, discoveryMostTime))
			if err != nil {
				return nil, &targetError{target: target{host, port}, err: err}
			}
			return conn, nil
		},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return &http.Client{
		Transport: transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case len(via) > wellKnownRedirects:
				return &wellKnownAnswerError{fmt.Sprintf("it redirects more than %d times", wellKnownRedirects)}
			case req.URL.Scheme != "https":
				return &wellKnownAnswerError{"it redirects to something other than https"}
			}
			return nil
		},
	}
}

func splitHostPort(addr string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q is none: %w", port, err)
	}
	return host, uint16(number), nil
}
