package homeserver

import (
	"context"
	"errors"
	"net/http"
	"time"

	"freshen"

	"maunium.net/go/mautrix/id"
)

// How old an answer of whoami may be.
const (
	// freshFor is for our own endpoints: a token that was logged out is refused after at most this long.
	freshFor = time.Minute
	// knownFor is for routes that the homeserver itself authenticates: whom a token stands for never changes.
	knownFor = time.Hour
)

// Identity is whom credentials stand for. DeviceID is empty where the homeserver knows none.
type Identity struct {
	UserID   id.UserID
	DeviceID id.DeviceID
	Guest    bool
}

type knownIdentity struct {
	Identity
	at time.Time // with its monotonic reading
}

// WhoAmI says whom the credentials stand for, and that they were good at most a minute ago. For freshen's own endpoints.
//
// Callers with the same credentials share one request; a caller whose context ends gets its error and fails no other.
// Errors: [*AnswerError] if the homeserver refuses the credentials, [*DownError] if it gave no usable answer.
func (c *Client) WhoAmI(ctx context.Context, cred Credentials) (Identity, error) {
	return c.identity(ctx, cred, freshFor)
}

// Identify is [Client.WhoAmI] for routes where the homeserver itself refuses bad credentials, and only *who* matters:
// its answer is at most an hour old.
func (c *Client) Identify(ctx context.Context, cred Credentials) (Identity, error) {
	return c.identity(ctx, cred, knownFor)
}

// Known is [Client.Identify] from what is known already: it never asks, and costs one look-up.
func (c *Client) Known(cred Credentials) (Identity, bool) {
	return c.cached(cred, knownFor)
}

func (c *Client) cached(cred Credentials, age time.Duration) (Identity, bool) {
	known, ok := c.known.GetIfPresent(cred.carried().key)
	if !ok || time.Since(known.at) >= age {
		return Identity{}, false
	}
	return known.Identity, true
}

func (c *Client) identity(ctx context.Context, cred Credentials, age time.Duration) (Identity, error) {
	if known, ok := c.cached(cred, age); ok {
		return known, nil
	}
	key := cred.carried().key
	// The request belongs to all who wait for it, so it outlives the one who happened to come first.
	shared := context.WithoutCancel(ctx)
	answer := c.asked.DoChan(string(key[:]), func() (any, error) {
		// A flight may have landed between the look above and this one's start.
		if known, ok := c.cached(cred, age); ok {
			return known, nil
		}
		return c.askWhoAmI(shared, cred)
	})
	select {
	case <-ctx.Done():
		return Identity{}, ctx.Err()
	case result := <-answer:
		if result.Err != nil {
			return Identity{}, result.Err
		}
		return result.Val.(Identity), nil
	}
}

func (c *Client) askWhoAmI(ctx context.Context, cred Credentials) (Identity, error) {
	q := question{
		asked:    "whoami",
		path:     "/_matrix/client/v3/account/whoami",
		timeout:  whoAmITimeout,
		maxBytes: maxWhoAmIBytes,
	}
	// Before the question, since the answer is as old as that.
	at := time.Now()
	var wire struct {
		UserID   string `json:"user_id"`
		DeviceID string `json:"device_id"`
		Guest    bool   `json:"is_guest"`
	}
	if err := c.ask(ctx, cred, q, &wire); err != nil {
		if refusal, ok := errors.AsType[*AnswerError](err); ok && refusal.Status == http.StatusUnauthorized {
			c.known.Invalidate(cred.carried().key)
		}
		return Identity{}, err
	}
	user, _, err := freshen.ParseUserID(wire.UserID)
	if err != nil {
		return Identity{}, &DownError{Asked: q.asked, Status: http.StatusOK, Err: errors.New("it names no valid user ID")}
	}
	who := Identity{UserID: user, DeviceID: id.DeviceID(wire.DeviceID), Guest: wire.Guest}
	c.known.Set(cred.carried().key, knownIdentity{who, at})
	return who, nil
}
