package federation_test

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// wire takes a request as net/http writes it and hands it to a server as net/http reads it.
type wire struct {
	handler http.Handler
	sent    *http.Request
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host, out.Host = "https", "pool.route", req.URL.Host
	var raw bytes.Buffer
	if err := out.Write(&raw); err != nil {
		return nil, err
	}
	in, err := http.ReadRequest(bufio.NewReader(&raw))
	if err != nil {
		return nil, err
	}
	w.sent = in
	answer := httptest.NewRecorder()
	w.handler.ServeHTTP(answer, in)
	return answer.Result(), nil
}

// FuzzXMatrix: for every user that freshen accepts, on every server, the signed request that mautrix makes says what it
// should and is accepted under the user's own name by a server that checks it: else that user could never be refreshed
// (401), or another one would be asked for.
func FuzzXMatrix(f *testing.F) {
	for _, localpart := range []string{
		"bob", "Bob", "foo/bar", "a%2Fb", "100%", "a+b", "a=b", "a?c#d", "..", ".", "a//b", `q"uo\te`, "~!$&'()*,;[]^`{|}<>@", "/", "//x", "%", "%zz",
	} {
		f.Add(localpart, "b.org:8448")
	}
	for _, server := range []string{"b.org", "B.org", "1.2.3.4", "[::1]:1", "b.org.", "-", "[...]"} {
		f.Add("bob", server)
	}
	key := fedtest.NewKey()
	f.Fuzz(func(t *testing.T, localpart, name string) {
		user, server, err := freshen.ParseUserID("@" + localpart + ":" + name)
		if err != nil {
			return
		}
		checking := fedtest.NewHomeserver(server, ourName, key)
		checking.SetList(user, listOf(user, "D"))
		way := &wire{handler: checking}
		client := &mxfed.Client{
			HTTP: &http.Client{Transport: way}, ServerName: ourName, UserAgent: "freshen", Key: key, ResponseSizeLimit: freshen.MaxDeviceListBytes,
		}
		body, resp, err := client.MakeFullRequest(t.Context(), mxfed.RequestParams{
			ServerName: server, Method: http.MethodGet, Path: mxfed.URLPath{"v1", "user", "devices", user}, Authenticate: true,
		})
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: the server answers %v with the error %v, having seen %+v", user, resp, err, checking.Requests())
		}
		if list, err := freshen.ParseDeviceList(body, user); err != nil || len(list.Devices) != 1 {
			t.Fatalf("%s: the list is %+v, %v", user, list, err)
		}
		told := mxfed.ParseXMatrixAuth(way.sent.Header.Get("Authorization"))
		if told.Origin != ourName || told.Destination != server || told.KeyID != key.ID || told.Signature == "" {
			t.Fatalf("%s: the header says %+v", user, told)
		}
	})
}

// FuzzXMatrixHeader: the server of these tests, which stands for all others, denies what is not signed, whatever the
// header holds, and never panics.
func FuzzXMatrixHeader(f *testing.F) {
	for _, header := range []string{
		"", "X-Matrix", "X-Matrix ", `X-Matrix origin="us.test",destination="b.org",key="ed25519:a",sig="AAAA"`, `X-Matrix origin=us.test,key=ed25519:a,sig=`,
		`X-Matrix origin="us.test", key="", sig="=="`, "X-Matrix =,=,=", `X-Matrix sig="` + strings.Repeat("A", 86) + `",origin=us.test,key=a:b,destination=b.org`, "Bearer x",
	} {
		f.Add(header)
	}
	key := fedtest.NewKey()
	f.Fuzz(func(t *testing.T, header string) {
		server := fedtest.NewHomeserver("b.org", ourName, key)
		answer := httptest.NewRecorder()
		request := httptest.NewRequest(http.MethodGet, "/_matrix/federation/v1/user/devices/"+string(id.UserID("@bob:b.org")), nil)
		request.Header.Set("Authorization", header)
		server.ServeHTTP(answer, request)
		if answer.Code == http.StatusOK {
			t.Fatalf("%q was taken for a signature", header)
		}
	})
}
