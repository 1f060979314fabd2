package testbed

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// backend is a homeserver's federation port that notes what reaches it.
type backend struct {
	mu       sync.Mutex
	requests []string
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, r.Method+" "+r.RequestURI+" "+r.Host+" "+r.Header.Get("Authorization")+" "+string(body))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusTeapot)
	_, _ = io.WriteString(w, `{"from":"backend"}`)
}

func (b *backend) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		return ""
	}
	return b.requests[len(b.requests)-1]
}

// newTestLink puts a link before a backend, both with certificates of one CA for 127.0.0.1.
func newTestLink(t *testing.T) (*Link, *backend, string, *http.Client) {
	t.Helper()
	ca, err := NewCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, err := ca.Issue("server", net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	behind := &backend{}
	server := httptest.NewUnstartedServer(behind)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	t.Cleanup(server.Close)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	link, err := newLink(listener, certFile, keyFile, server.Listener.Addr().String(), ca)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := link.Close(); err != nil {
			t.Error(err)
		}
	})
	return link, behind, "https://" + listener.Addr().String(), &http.Client{Transport: transport}
}

func send(t *testing.T, client *http.Client, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "X-Matrix abc")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

const (
	deviceUpdate = `{"pdus":[],"edus":[{"edu_type":"m.device_list_update","content":{"user_id":"@bob:b","device_id":"PHONE","keys":{"a":1}}}]}`
	keyUpdate    = `{"pdus":[{}],"edus":[{"edu_type":"m.typing","content":{}},{"edu_type":"m.signing_key_update","content":{"user_id":"@bob:b"}}]}`
	otherEvents  = `{"pdus":[{"type":"m.room.message"}],"edus":[{"edu_type":"m.direct_to_device","content":{"type":"m.device_list_update"}}]}`
)

// A failure means that the link changes what two homeservers say to each other: signatures break, and tests fail for no
// reason of freshen's.
func TestLinkPassesEverythingElse(t *testing.T) {
	link, behind, url, client := newTestLink(t)
	check := func(method, target, body string) {
		t.Helper()
		status, answer := send(t, client, method, url+target, body)
		if status != http.StatusTeapot || answer != `{"from":"backend"}` {
			t.Errorf("%s %s was answered %d %s", method, target, status, answer)
		}
		want := method + " " + target + " " + strings.TrimPrefix(url, "https://") + " X-Matrix abc " + body
		if got := behind.last(); got != want {
			t.Errorf("the backend got %q, want %q", got, want)
		}
	}
	check(http.MethodGet, "/_matrix/federation/v1/user/devices/@a%2Fb%3Ac:d?x=%2f;y", "")
	check(http.MethodPut, "/_matrix/federation/v1/send/1", deviceUpdate)
	link.LoseDeviceLists(true)
	check(http.MethodPut, "/_matrix/federation/v1/send/2", otherEvents)
	check(http.MethodPut, "/_matrix/federation/v1/send/3", `no JSON`)
	check(http.MethodPut, "/_matrix/federation/v1/send_join/4", deviceUpdate)
	link.LoseDeviceLists(false)
	check(http.MethodPut, "/_matrix/federation/v1/send/5", keyUpdate)
	if lost := link.Lost(); len(lost) != 0 {
		t.Errorf("the link says it lost %+v", lost)
	}
}

// A failure means that lists do not go stale, or that a test goes on before they have.
func TestLinkLosesDeviceLists(t *testing.T) {
	link, behind, url, client := newTestLink(t)
	link.LoseDeviceLists(true)
	found := make(chan error)
	go func() {
		found <- link.AwaitLost(t.Context(), 2, func(edu LostEDU) bool { return edu.UserID == "@bob:b" })
	}()
	for txn, body := range []string{deviceUpdate, keyUpdate} {
		status, answer := send(t, client, http.MethodPut, url+"/_matrix/federation/v1/send/"+string(rune('1'+txn)), body)
		if status != http.StatusOK || answer != `{"pdus":{}}` {
			t.Errorf("the sender was answered %d %s, and would try again", status, answer)
		}
	}
	if err := <-found; err != nil {
		t.Error(err)
	}
	if behind.last() != "" {
		t.Errorf("the backend got %q", behind.last())
	}
	want := []LostEDU{
		{Type: "m.device_list_update", UserID: "@bob:b", DeviceID: "PHONE", HasKeys: true},
		{Type: "m.signing_key_update", UserID: "@bob:b", PDUs: 1},
	}
	if got := link.Lost(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("lost are %+v, want %+v", got, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := link.AwaitLost(ctx, 3, func(LostEDU) bool { return true }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for what is not lost ended with %v", err)
	}
}

// A failure means that a homeserver can crash the link by what it sends.
func FuzzUpdatesIn(f *testing.F) {
	for _, seed := range []string{deviceUpdate, keyUpdate, otherEvents, ``, `null`, `{"edus":[null]}`, `{"edus":[{"edu_type":"m.device_list_update"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, edu := range updatesIn(body) {
			if edu.Type != "m.device_list_update" && edu.Type != "m.signing_key_update" {
				t.Errorf("%q makes the link lose %+v", body, edu)
			}
		}
	})
}
