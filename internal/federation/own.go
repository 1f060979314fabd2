package federation

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen"
)

// Own asks our own homeserver what it has of other servers' users, as it would tell another server: Dendrite answers GET
// /user/devices for them, too, from what it has stored. Its requests are signed as the homeserver, and go where they are
// told, with no discovery.
type Own struct{ mx *mxfed.Client }

// NewOwn asks at base, whose path does not count since it would be signed, over transport. name and key are our homeserver's.
func NewOwn(base *url.URL, name string, key *SigningKey, transport http.RoundTripper) *Own {
	return &Own{&mxfed.Client{
		HTTP: &http.Client{
			Transport:     redirected{base, name, transport},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		ServerName: name, Key: key.key, ResponseSizeLimit: freshen.MaxDeviceListBytes,
	}}
}

// Stored asks for the list of a user of another server. answered is false where the homeserver could not be reached.
func (o *Own) Stored(ctx context.Context, target id.UserID) (list *freshen.DeviceList, answered bool, err error) {
	body, response, err := o.mx.MakeFullRequest(ctx, mxfed.RequestParams{ //nolint:bodyclose // it reads and closes the body itself
		ServerName: o.mx.ServerName, Method: http.MethodGet, Path: mxfed.URLPath{"v1", "user", "devices", target}, Authenticate: true,
	})
	switch {
	case response == nil:
		return nil, false, err
	case response.StatusCode != http.StatusOK:
		return nil, true, fmt.Errorf("it answers GET /user/devices with HTTP status %d", response.StatusCode)
	case err != nil:
		return nil, false, err
	}
	list, err = freshen.ParseDeviceList(body, target)
	return list, true, err
}

// redirected sends what is for a server name to a base URL.
type redirected struct {
	base *url.URL
	host string
	next http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (r redirected) RoundTrip(request *http.Request) (*http.Response, error) {
	sent := request.Clone(request.Context())
	sent.URL.Scheme, sent.URL.Host, sent.Host = r.base.Scheme, r.base.Host, r.host
	return r.next.RoundTrip(sent)
}
