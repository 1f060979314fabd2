// Package homeserver asks the homeserver behind freshen, over its client-server API, always with the credentials of the
// client on whose behalf it asks: freshen has no account of its own. Answers are bounded in time and size, and a
// redirect is never followed, since it could carry a token elsewhere.
package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"
)

// Bounds of one question.
const (
	whoAmITimeout  = 10 * time.Second
	listTimeout    = 30 * time.Second
	maxWhoAmIBytes = 64 << 10
	maxRoomsBytes  = 8 << 20
	// maxMembersBytes holds about 300,000 members with names and avatars.
	maxMembersBytes = 64 << 20
	// maxErrorBytes is as much of a refusal as is kept.
	maxErrorBytes = 64 << 10
)

// maxIdentities bounds the cache of who is who: 64 Ki tokens, about 16 MiB.
const maxIdentities = 64 << 10

// Client asks one homeserver. It is safe for concurrent use and has no goroutines beyond those of running questions.
type Client struct {
	base  *url.URL
	http  *http.Client
	known *otter.Cache[cacheKey, knownIdentity]
	asked singleflight.Group
	paths mutualPaths
}

// New returns a client of the homeserver at base, the URL before /_matrix. A nil transport is replaced by one of the
// client's own with limits that suit a homeserver nearby.
func New(base *url.URL, transport http.RoundTripper) *Client {
	if transport == nil {
		transport = NewTransport()
	}
	clone := *base
	return &Client{
		base: &clone,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		known: otter.Must(&otter.Options[cacheKey, knownIdentity]{MaximumSize: maxIdentities}),
	}
}

// NewTransport returns one with limits that suit a homeserver nearby. It has no proxy: one from the environment would see tokens.
func NewTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 32,
		MaxConnsPerHost:     128,
		// Below the 30 s and more that homeservers keep an idle connection.
		IdleConnTimeout: 25 * time.Second,
	}
}

// CloseIdleConnections closes the connections that are not in use.
func (c *Client) CloseIdleConnections() { c.http.CloseIdleConnections() }

// Answers asks for /versions. The error is a [*DownError] where nobody answers, or with an error of a server's own.
func (c *Client) Answers(ctx context.Context) error {
	const asked = "whether it is there"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base.JoinPath("/_matrix/client/versions").String(), http.NoBody)
	if err != nil {
		return &DownError{Asked: asked, Err: WithoutURL(err)}
	}
	response, err := c.http.Do(request)
	if err != nil {
		return &DownError{Asked: asked, Err: WithoutURL(err)}
	}
	_, _ = readAtMost(response.Body, maxErrorBytes) // so that the connection can be used again
	_ = response.Body.Close()
	if response.StatusCode >= http.StatusInternalServerError {
		return &DownError{Asked: asked, Status: response.StatusCode, Err: fmt.Errorf("it answered /versions with HTTP status %d", response.StatusCode)}
	}
	return nil
}

// question is one GET.
type question struct {
	asked    string // for people
	path     string // escaped, below base
	query    url.Values
	timeout  time.Duration
	maxBytes int64
}

// ask puts a question and decodes its 200 into answer. Errors: [*AnswerError], [ErrUnrecognized] (wrapped in one),
// [*DownError], or the caller's own context's.
func (c *Client) ask(ctx context.Context, cred Credentials, q question, answer any) error {
	asking, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(asking, http.MethodGet, c.base.JoinPath(q.path).String(), nil)
	if err != nil {
		return &DownError{Asked: q.asked, Err: WithoutURL(err)}
	}
	request.URL.RawQuery = q.query.Encode()
	cred.apply(request)
	response, err := c.http.Do(request)
	if err != nil {
		return q.broke(ctx, 0, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return q.refused(ctx, response)
	}
	body, err := readAtMost(response.Body, q.maxBytes)
	if err != nil {
		return q.broke(ctx, response.StatusCode, err)
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return &DownError{Asked: q.asked, Status: response.StatusCode, Err: fmt.Errorf("its answer is not the JSON that it should be: %w", err)}
	}
	return nil
}

// broke tells a caller who has gone from a homeserver that did not answer.
func (q question) broke(ctx context.Context, status int, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it did not answer within %v: %w", q.timeout, context.DeadlineExceeded)
	}
	return &DownError{Asked: q.asked, Status: status, Err: WithoutURL(err)}
}

// refused reads an answer other than 200. Only a 4xx with a Matrix error is the homeserver's own word: anything else may
// come from a proxy in between, or from a homeserver that is not well.
func (q question) refused(ctx context.Context, response *http.Response) error {
	down := &DownError{Asked: q.asked, Status: response.StatusCode, Err: fmt.Errorf("it answered with HTTP status %d", response.StatusCode)}
	if response.StatusCode < 400 || response.StatusCode > 499 {
		return down
	}
	body, err := readAtMost(response.Body, maxErrorBytes)
	if err != nil {
		return q.broke(ctx, response.StatusCode, err)
	}
	errcode := errcodeOf(body)
	if errcode == "" {
		down.Err = fmt.Errorf("it answered with HTTP status %d and no Matrix error", response.StatusCode)
		return down
	}
	header := http.Header{}
	for _, name := range []string{"Content-Type", "Retry-After"} {
		if value := response.Header.Get(name); value != "" {
			header.Set(name, value)
		}
	}
	refusal := &AnswerError{Asked: q.asked, Status: response.StatusCode, Header: header, Body: body, ErrCode: errcode}
	if errcode == "M_UNRECOGNIZED" {
		return fmt.Errorf("%w: %w", ErrUnrecognized, refusal)
	}
	return refusal
}

func readAtMost(body io.Reader, limit int64) ([]byte, error) {
	read, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("its answer broke off: %w", err)
	}
	if int64(len(read)) > limit {
		return nil, fmt.Errorf("its answer is longer than %d bytes", limit)
	}
	return read, nil
}

// WithoutURL strips what net/http wraps around an error: the URL, whose query may hold a token.
func WithoutURL(err error) error {
	for {
		wrapped, ok := errors.AsType[*url.Error](err)
		if !ok {
			return err
		}
		err = wrapped.Err
	}
}
