package federation_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
)

// BenchmarkFetchDeviceList measures one refresh's federation part on a kept connection against a plain signed GET of the
// same list on a kept connection of net/http's own to the same server, in turns, and reports the ratio of the two medians (1 is no cost at all).
func BenchmarkFetchDeviceList(b *testing.B) {
	for _, devices := range []int{5, 500} {
		b.Run(fmt.Sprintf("devices=%d", devices), func(b *testing.B) { benchmarkFetch(b, devices) })
	}
}

func benchmarkFetch(b *testing.B, devices int) {
	ca, key, network := fedtest.NewCA(b), fedtest.NewKey(), fedtest.NewNetwork(b)
	listener := network.Listen("127.1.0.1:1")
	name := listener.Addr().String()
	user := id.UserID("@bob:" + name)
	body := fedtest.NewPerson(user).List(devices, 1)
	// The server does next to nothing, so that the ratio is the client's.
	fedtest.ServeTLS1(b, listener, ca.Issue("127.0.0.1"), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(body) }))

	client, err := federation.New(federation.Config{
		ServerName: ourName, Key: federation.NewSigningKey(key), Roots: ca.Pool(),
		AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}}
	defer base.CloseIdleConnections()
	plain := &http.Client{Transport: rewrite{base}}
	signed := &mxfed.Client{HTTP: plain, ServerName: ourName, Key: key, ResponseSizeLimit: 16 << 20}
	get := func() error {
		_, _, err := signed.MakeFullRequest(b.Context(), mxfed.RequestParams{
			ServerName: name, Method: http.MethodGet, Path: mxfed.URLPath{"v1", "user", "devices", user}, Authenticate: true,
		})
		return err
	}
	fetch := func() error {
		_, err := client.FetchDeviceList(b.Context(), user)
		return err
	}
	spent := func(ask func() error) time.Duration {
		start := time.Now()
		if err := ask(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	spent(fetch)
	spent(get)
	var fetching, getting []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		fetching = append(fetching, spent(fetch))
		getting = append(getting, spent(get))
	}
	ours, theirs := median(fetching), median(getting)
	b.ReportMetric(float64(ours.Nanoseconds())/1e3, "µs/refresh")
	b.ReportMetric(float64(theirs.Nanoseconds())/1e3, "µs/get")
	b.ReportMetric(float64(ours)/float64(theirs), "ratio")
}

func median(of []time.Duration) time.Duration {
	slices.Sort(of)
	return of[len(of)/2]
}

// rewrite sends what mautrix signs over https as it stands, with nothing of ours but the connections.
type rewrite struct{ base *http.Transport }

func (r rewrite) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := req.Clone(req.Context())
	sent.URL.Scheme = "https"
	return r.base.RoundTrip(sent)
}
