//go:build goolm

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// maxAnswerBytes bounds an answer that [Client.Do] reads.
const maxAnswerBytes = 64 << 20

// Answer is what came back for one request, whatever the status.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Asked is when the request was sent, Took how long until the last byte.
	Asked time.Time
	Took  time.Duration
}

// String is status and body, the body shortened, for messages.
func (a *Answer) String() string {
	const most = 400
	body := a.Body
	if len(body) > most {
		body = append(bytes.Clone(body[:most]), "…"...)
	}
	return fmt.Sprintf("%d %s", a.Status, body)
}

// Do sends one request with this device's token. path holds unescaped segments; body, if not nil, is sent as JSON. An
// answer of any status is no error.
func (c *Client) Do(ctx context.Context, method string, path []string, body any) (*Answer, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("the body of a request: %w", err)
		}
	}
	escaped := make([]string, len(path))
	for i, segment := range path {
		escaped[i] = url.PathEscape(segment)
	}
	return c.DoRaw(ctx, method, "/"+strings.Join(escaped, "/"), data)
}

// DoRaw sends one request with this device's token, path and query being sent as they are, and so the body. Redirects are
// not followed.
func (c *Client) DoRaw(ctx context.Context, method, pathAndQuery string, body []byte) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.mx.HomeserverURL.String(), "/")+pathAndQuery, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("a request of %s: %w", c.Name(), err)
	}
	if c.mx.AccessToken != "" {
		req.Header.Set("Authorization", "Bearer "+c.mx.AccessToken)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	answer := &Answer{Asked: time.Now()}
	resp, err := c.mx.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("a request of %s got no answer: %w", c.Name(), err)
	}
	defer resp.Body.Close()
	answer.Status, answer.Header = resp.StatusCode, resp.Header
	if answer.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes)); err != nil {
		return nil, fmt.Errorf("a request of %s got half an answer: %w", c.Name(), err)
	}
	answer.Took = time.Since(answer.Asked)
	return answer, nil
}

// Refresh asks for a refresh of another user's device list (MSC2638).
func (c *Client) Refresh(ctx context.Context, user id.UserID) (*Answer, error) {
	return c.Do(ctx, http.MethodPost, []string{"_matrix", "client", "v3", "user", string(user), "devices", "refresh"}, nil)
}

// Keys is the part of an answer to /keys/query that concerns one user.
type Keys struct {
	Devices                         []id.DeviceID
	HasMasterKey, HasSelfSigningKey bool
}

// QueryKeys asks for all devices of a user, past the client's own store, which it leaves as it is.
func (c *Client) QueryKeys(ctx context.Context, user id.UserID) (Keys, *Answer, error) {
	answer, err := c.Do(ctx, http.MethodPost, []string{"_matrix", "client", "v3", "keys", "query"},
		map[string]any{"device_keys": map[id.UserID][]string{user: {}}})
	if err != nil {
		return Keys{}, nil, err
	}
	var body struct {
		DeviceKeys  map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
		Master      map[id.UserID]json.RawMessage                 `json:"master_keys"`
		SelfSigning map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
	}
	if answer.Status != http.StatusOK {
		return Keys{}, answer, fmt.Errorf("%s asked for keys and got %s", c.Name(), answer)
	}
	if err := json.Unmarshal(answer.Body, &body); err != nil {
		return Keys{}, answer, fmt.Errorf("%s asked for keys and got no JSON: %w", c.Name(), err)
	}
	var keys Keys
	for device := range body.DeviceKeys[user] {
		keys.Devices = append(keys.Devices, device)
	}
	_, keys.HasMasterKey = body.Master[user]
	_, keys.HasSelfSigningKey = body.SelfSigning[user]
	return keys, answer, nil
}
