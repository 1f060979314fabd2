package doctor_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"freshen/internal/config"
	"freshen/internal/doctor"
	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// visit looks at a site where freshen does not run and of whose names each leads to handler, like port 443 of its server
// name, an IP literal.
func visit(t *testing.T, handler http.HandlerFunc, change func(*doctor.Config)) map[string]doctor.Line {
	t.Helper()
	ca := fedtest.NewCA(t)
	listener, closed := listen(t), listen(t)
	closed.Close()
	fedtest.ServeTLS(t, listener, ca.Issue("127.0.0.1", "matrix.example.org"), handler)
	cfg := config.Default()
	cfg.Admin.Listen = closed.Addr().String()
	cfg.Homeserver.Name = listener.Addr().String()
	cfg.Homeserver.URL = &url.URL{Scheme: "http", Host: closed.Addr().String()}
	cfg.Database.Path = filepath.Join(t.TempDir(), "freshen.db")
	cfg.Federation.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	visit := doctor.Config{
		Config: cfg, Key: federation.NewSigningKey(fedtest.NewKey()), Roots: ca.Pool(), Version: "v1",
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(address, ":443") {
				address = listener.Addr().String()
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	if change != nil {
		change(&visit)
	}
	lines := map[string]doctor.Line{}
	for _, line := range doctor.Run(t.Context(), visit).Lines {
		lines[line.Check] = line
	}
	return lines
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// Whoever does not name the base URL must have the one looked at that clients find.
func TestPublicURL(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status int
		body   string
		want   doctor.Status
		says   string
		hosts  string // who is asked for /versions
	}{
		"named":         {200, `{"m.homeserver":{"base_url":"https://matrix.example.org/"}}`, doctor.OK, `"https://matrix.example.org"`, "matrix.example.org"},
		"none":          {404, ``, doctor.Warning, "Going on with https://127.0.0.1.", "127.0.0.1"},
		"no JSON":       {200, `<html>`, doctor.Failed, "names no m.homeserver", ""},
		"no URL":        {200, `{"m.homeserver":{"base_url":"matrix.example.org"}}`, doctor.Failed, "names no m.homeserver", ""},
		"out of order":  {500, ``, doctor.Failed, "(500)", ""},
		"steers a term": {200, `{"m.homeserver":{"base_url":"https://matrix.example.org/\u001b[2J"}}`, doctor.Failed, "names no m.homeserver", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan string, 100)
			lines := visit(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/.well-known/matrix/client":
					w.WriteHeader(test.status)
					_, _ = io.WriteString(w, test.body)
				case strings.HasSuffix(r.URL.Path, "/versions"):
					asked <- r.Host
				}
			}, nil)
			close(asked)
			if line := lines["public URL"]; line.Status != test.want || !strings.Contains(line.Text, test.says) || (line.Status != doctor.OK) != (line.Fix != "") {
				t.Errorf("%+v", line)
			}
			if host := <-asked; host != test.hosts {
				t.Errorf("asked %q for /versions, want %q", host, test.hosts)
			}
		})
	}
}

// A homeserver whose client listener does not serve its keys is compared by its public URL; and a key that it has given
// up is not good any more.
func TestSigningKey(t *testing.T) {
	t.Parallel()
	key := fedtest.NewKey()
	for name, test := range map[string]struct {
		verify, old string
		want        doctor.Status
		says        string
	}{
		"the same":      {`{"ID":{"key":"PUB"}}`, `{}`, doctor.OK, "which the homeserver publishes"},
		"other content": {`{"ID":{"key":"AAAA"}}`, `{}`, doctor.Failed, "publishes another"},
		"given up":      {`{"ed25519:new":{"key":"AAAA"}}`, `{"ID":{"key":"PUB"}}`, doctor.Failed, "uses no more"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fill := strings.NewReplacer("ID", string(key.ID), "PUB", string(key.Pub))
			lines := visit(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/_matrix/key/v2/server" {
					_, _ = io.WriteString(w, `{"server_name":"`+r.Host+`","verify_keys":`+fill.Replace(test.verify)+`,"old_verify_keys":`+fill.Replace(test.old)+`}`)
				}
			}, func(c *doctor.Config) {
				c.Key = federation.NewSigningKey(key)
				c.PublicURL = "https://" + c.Config.Homeserver.Name + "/"
			})
			if line := lines["signing key"]; line.Status != test.want || !strings.Contains(line.Text, test.says) {
				t.Errorf("%+v", line)
			}
		})
	}
}

// With a wrong server name nothing else can be looked at that goes by it: all of it would fail, and send the administrator to
// look after certificates and firewalls of somebody else's.
func TestWhatFollowsFromAWrongServerName(t *testing.T) {
	t.Parallel()
	lines := visit(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_matrix/key/v2/server" {
			_, _ = io.WriteString(w, `{"server_name":"example.org","verify_keys":{},"old_verify_keys":{}}`)
		}
	}, func(c *doctor.Config) {
		c.Config.Homeserver.URL = &url.URL{Scheme: "https", Host: c.Config.Homeserver.Name}
		c.Config.Homeserver.Name = "matrix.example.org"
	})
	if line := lines["server name"]; line.Status != doctor.Failed || !strings.Contains(line.Text, `calls itself "example.org"`) {
		t.Errorf("%+v", line)
	}
	for _, check := range []string{"public URL", "federation in"} {
		if line := lines[check]; line.Status != doctor.Warning || line.Fix != "See server name, above, and ask again." {
			t.Errorf("%s: %+v", check, line)
		}
	}
}

// What stands at a wrong homeserver.url may break off answers, such as a port for TLS: that the way to freshen is right, the
// requests before have shown, and whoever looked there would look in the wrong place.
func TestWhatFollowsFromAWrongHomeserver(t *testing.T) {
	t.Parallel()
	lines := visit(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			panic(http.ErrAbortHandler)
		}
	}, func(c *doctor.Config) { c.PublicURL = "https://" + c.Config.Homeserver.Name })
	if line := lines["homeserver"]; line.Status != doctor.Failed {
		t.Fatalf("%+v", line)
	}
	if line := lines["keys"]; line.Status != doctor.Warning || line.Fix != "See homeserver, above." {
		t.Errorf("%+v", line)
	}
}

// Where the homeserver is well, an answer that breaks off is the way's own fault, and is told as one.
func TestAWayThatBreaksOff(t *testing.T) {
	t.Parallel()
	lines := visit(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, `{"versions":["v1.11"]}`)
	}, func(c *doctor.Config) {
		c.PublicURL = "https://" + c.Config.Homeserver.Name
		c.Config.Homeserver.URL = &url.URL{Scheme: "https", Host: c.Config.Homeserver.Name}
	})
	if line := lines["homeserver"]; line.Status == doctor.Failed {
		t.Fatalf("%+v", line)
	}
	if line := lines["keys"]; line.Status != doctor.Failed || !strings.Contains(line.Text, "cannot be asked for /keys/query") {
		t.Errorf("%+v", line)
	}
}

// A clock that is some seconds off is worth a word and no alarm; less is nothing.
func TestClock(t *testing.T) {
	t.Parallel()
	for off, want := range map[time.Duration]doctor.Status{0: doctor.OK, 30 * time.Second: doctor.Warning, -30 * time.Second: doctor.Warning, time.Hour: doctor.Failed} {
		lines := visit(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		}, nil)
		if line := lines["clock"]; line.Status != want {
			t.Errorf("%v off: %+v", off, line)
		}
	}
}

// Whatever a homeserver or a proxy answers, the visit must come to an end and say something of each thing.
func TestNothingRuns(t *testing.T) {
	t.Parallel()
	lines := visit(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil)
	database := doctor.OK
	if os.Geteuid() == 0 {
		database = doctor.Warning // it may write everything, which says nothing of freshen's own user
	}
	for check, want := range map[string]doctor.Status{
		"freshen": doctor.Failed, "database": database, "homeserver": doctor.Failed, "public URL": doctor.Failed,
		"signing key": doctor.Warning, "federation in": doctor.Failed, "clock": doctor.Warning,
	} {
		if line := lines[check]; line.Status != want || line.Text == "" {
			t.Errorf("%s: %+v, want %s", check, line, want)
		}
	}
	if _, ok := lines["sync"]; ok {
		t.Error("/sync was looked at, though nobody knows where")
	}
}
