package homeserver

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// masquerading are the query parameters by which an application service names whom it acts for (client-server API,
// "Identity assertion"; MSC3202 and MSC4326 for the device).
var masquerading = []string{"user_id", "device_id", "org.matrix.msc3202.device_id"}

const accessToken = "access_token"

// Credentials are what a client's request proves itself with, kept ready for a question of our own on that client's
// behalf. They are opaque, never print what they hold, and may be copied. The zero value proves nothing.
//
// They hold a token: keep them no longer than the request that they came with.
type Credentials struct {
	// Behind two pointers: fmt calls no methods on what lies in another struct's unexported field, and for a verb that does
	// not fit it follows one pointer, but never two.
	hidden **carried
}

func (c Credentials) carried() *carried {
	if c.hidden == nil {
		return &carried{}
	}
	return *c.hidden
}

type carried struct {
	authorization []string
	query         url.Values // access_token and the masquerading parameters
	key           cacheKey
	// The homeserver's logs and device lists shall name the client, not us.
	forwardedFor, forwardedProto, userAgent string
}

// cacheKey stands for a token and the masquerading parameters, so that neither has to be kept.
type cacheKey [sha256.Size]byte

// CredentialsOf takes the credentials out of a client's request as it came to freshen: the Authorization header or
// ?access_token=, the masquerading parameters, and for the homeserver's records the User-Agent and X-Forwarded-For, to
// which it appends the peer's address as a proxy does. What came twice is kept twice: the homeserver judges it.
func CredentialsOf(r *http.Request) Credentials {
	c := &carried{
		authorization: slices.Clone(r.Header.Values("Authorization")),
		forwardedFor:  forwardedFor(r),
		userAgent:     r.Header.Get("User-Agent"),
	}
	c.forwardedProto = r.Header.Get("X-Forwarded-Proto")
	if c.forwardedProto == "" {
		c.forwardedProto = "http"
		if r.TLS != nil {
			c.forwardedProto = "https"
		}
	}
	if mayCarry(r.URL.RawQuery) {
		c.query = r.URL.Query()
		maps.DeleteFunc(c.query, func(name string, _ []string) bool { return !carries(name) })
	}
	c.key = c.fingerprint()
	return Credentials{&c}
}

func carries(name string) bool { return name == accessToken || slices.Contains(masquerading, name) }

// mayCarry is false for a query in which nothing of what credentials are made of can stand, as mostly nothing does.
func mayCarry(rawQuery string) bool {
	for part := range strings.SplitSeq(rawQuery, "&") {
		if name, _, _ := strings.Cut(part, "="); carries(name) || strings.ContainsAny(name, "%+") {
			return true
		}
	}
	return false
}

func forwardedFor(r *http.Request) string {
	hops := slices.Clone(r.Header.Values("X-Forwarded-For"))
	if peer, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		hops = append(hops, peer)
	}
	return strings.Join(hops, ", ")
}

// fingerprint writes each part with its length, so that no two different sets of parts hash alike.
func (c *carried) fingerprint() cacheKey {
	parts := make([]byte, 0, 512)
	part := func(values []string) {
		parts = binary.AppendUvarint(parts, uint64(len(values)))
		for _, v := range values {
			parts = binary.AppendUvarint(parts, uint64(len(v)))
			parts = append(parts, v...)
		}
	}
	part(c.authorization)
	part(c.query[accessToken])
	for _, name := range masquerading {
		part(c.query[name])
	}
	return sha256.Sum256(parts)
}

// IsZero says whether there is no token at all, good or bad.
func (c Credentials) IsZero() bool {
	nonEmpty := func(s string) bool { return s != "" }
	return !slices.ContainsFunc(c.carried().authorization, nonEmpty) &&
		!slices.ContainsFunc(c.carried().query[accessToken], nonEmpty)
}

// masquerades says whether the query is taken by an assertion of identity, whose user_id is not free for our own use.
func (c Credentials) masquerades() bool {
	return slices.ContainsFunc(masquerading, c.carried().query.Has)
}

// apply puts the credentials on a question of our own. What the question's own query holds stays.
func (c Credentials) apply(r *http.Request) {
	carried := c.carried()
	if len(carried.authorization) > 0 {
		r.Header["Authorization"] = slices.Clone(carried.authorization)
	}
	if len(carried.query) > 0 {
		query := r.URL.Query()
		for name, values := range carried.query {
			query[name] = append(query[name], values...)
		}
		r.URL.RawQuery = query.Encode()
	}
	for name, value := range map[string]string{
		"X-Forwarded-For":   carried.forwardedFor,
		"X-Forwarded-Proto": carried.forwardedProto,
	} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	// An empty one keeps net/http from naming itself.
	r.Header.Set("User-Agent", carried.userAgent)
}

// String never shows what the credentials hold.
func (c Credentials) String() string {
	if c.IsZero() {
		return "no credentials"
	}
	return "credentials (not shown)"
}

// Format is [Credentials.String] for every verb, so that none reaches behind it.
func (c Credentials) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, c.String()) // as fmt does, which has nowhere to report it
}

// LogValue is [Credentials.String].
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }
