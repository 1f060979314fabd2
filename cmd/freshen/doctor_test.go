package main

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"freshen/internal/doctor"
	"freshen/internal/federation/fedtest"
)

// clinic is a whole site: a homeserver, a freshen that runs, a reverse proxy with TLS before both, and another server.
type clinic struct {
	t    *testing.T
	ca   *fedtest.CA
	dir  string
	name string // the site's server name, at which its reverse proxy listens
	// homeserver is the upstream, public the reverse proxy; either may be replaced.
	homeserver, public atomic.Pointer[http.Handler]
	homeserverURL      string
	// calls is what the homeserver calls itself, and key what it publishes.
	calls      atomic.Value
	key        string
	remote     string
	remoteLate atomic.Int64 // how far the other server's clock is behind, a duration
	freshen    *served
	freshenURL atomic.Value
}

func newClinic(t *testing.T, cert func(*fedtest.CA) tls.Certificate) *clinic {
	t.Helper()
	c := &clinic{t: t, ca: fedtest.NewCA(t)}
	c.freshenURL.Store("")
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	own := fedtest.KeyFromSeed("a_test", seed)
	c.key = string(own.Pub)

	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*c.homeserver.Load()).ServeHTTP(w, r) }))
	t.Cleanup(backend.Close)
	c.homeserverURL = backend.URL
	c.serve(&c.homeserver, c.matrix)

	front := listenOn(t)
	c.name = front.Addr().String()
	c.calls.Store(c.name)
	if cert == nil {
		cert = func(ca *fedtest.CA) tls.Certificate { return ca.Issue("127.0.0.1") }
	}
	c.serve(&c.public, func(w http.ResponseWriter, r *http.Request) { c.proxyTo(w, r, c.freshenURL.Load().(string)) })
	fedtest.ServeTLS1(t, front, cert(c.ca), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "nginx/1.22.1")
		(*c.public.Load()).ServeHTTP(w, r)
	}))

	other := listenOn(t)
	c.remote = other.Addr().String()
	answers := fedtest.NewHomeserver(c.remote, c.name, own)
	fedtest.ServeTLS1(t, other, c.ca.Issue("127.0.0.1"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Duration(c.remoteLate.Load())).UTC().Format(http.TimeFormat))
		answers.ServeHTTP(w, r)
	}))

	admin := listenOn(t)
	c.dir = t.TempDir()
	write(t, c.dir, "signing.key", synapseKey)
	write(t, c.dir, "freshen.yaml", fmt.Sprintf(`listen: 127.0.0.1:0
admin: {listen: %q}
homeserver: {name: %q, url: %q, signing_key: signing.key, kind: generic}
federation: {allow_networks: [127.0.0.0/8], ca_file: %q}
log: {format: json}
`, admin.Addr(), c.name, c.homeserverURL, c.ca.File()))
	admin.Close()
	return c
}

func listenOn(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func (*clinic) serve(at *atomic.Pointer[http.Handler], f http.HandlerFunc) {
	var handler http.Handler = f
	at.Store(&handler)
}

// matrix is the homeserver.
func (c *clinic) matrix(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if probed := r.Header.Get("Freshen-Probe"); probed != "" {
		w.Header().Set("Freshen-Probe", probed) // one that echoes must not be taken for freshen
	}
	switch r.URL.Path {
	default:
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"Who are you?"}`)
	case "/_matrix/client/versions":
		_, _ = io.WriteString(w, `{"versions":["v1.1","v1.11"],"unstable_features":{}}`)
	case "/_matrix/key/v2/server":
		fmt.Fprintf(w, `{"server_name":%q,"verify_keys":{"ed25519:a_test":{"key":%q}},"old_verify_keys":{}}`, c.calls.Load(), c.key)
	}
}

// proxyTo passes a request on as it came, once it is there as a whole: nginx waits for bodies, too.
func (c *clinic) proxyTo(w http.ResponseWriter, r *http.Request, to string) {
	upstream, err := url.Parse(to)
	if err != nil {
		c.t.Error(err)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Error(err)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	proxy := httputil.ReverseProxy{Rewrite: func(pr *httputil.ProxyRequest) { pr.SetURL(upstream) }}
	proxy.ServeHTTP(w, r)
}

// config changes the configuration before freshen starts, or only for the doctor.
func (c *clinic) config(before, after string) {
	c.t.Helper()
	edit(c.t, filepath.Join(c.dir, "freshen.yaml"), before, after)
}

func (c *clinic) start() {
	c.t.Helper()
	c.started(start(c.t, command(c.t, c.dir, "serve")))
}

func (c *clinic) started(s *served) {
	c.freshen = s
	c.freshenURL.Store(s.url)
}

// visit is freshen doctor --json, as a person who looks at one site does it.
func (c *clinic) visit(args ...string) (report doctor.Report, status int) {
	c.t.Helper()
	args = append([]string{"doctor", "--json", "--url", "https://" + c.name, "--server", c.remote}, args...)
	stdout, stderr, status := finish(c.t, command(c.t, c.dir, args...))
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		c.t.Fatalf("doctor ends with %d (%v) and says:\n%s%s", status, err, stdout, stderr)
	}
	return report, status
}

// finds checks that just these checks fail, and what is said of the first.
func (c *clinic) finds(says string, failed ...string) doctor.Report {
	c.t.Helper()
	report, status := c.visit()
	if status != 1 {
		c.t.Errorf("doctor ends with %d", status)
	}
	var found []string
	for _, line := range report.Lines {
		if line.Status != doctor.Failed {
			continue
		}
		found = append(found, line.Check)
		if line.Fix == "" {
			c.t.Errorf("%s fails, and nothing says what to do", line.Check)
		}
		if line.Check == failed[0] && !strings.Contains(line.Text+" "+line.Fix, says) {
			c.t.Errorf("%s: %q, want %q", line.Check, line, says)
		}
	}
	if strings.Join(found, ", ") != strings.Join(failed, ", ") {
		c.t.Errorf("%v fail, want %v: %+v", found, failed, report.Lines)
	}
	return report
}

// A site that is well must get no complaint, and the report must say what was looked at.
func TestDoctorOfAHealthySite(t *testing.T) {
	t.Parallel()
	c := newClinic(t, nil)
	c.start()
	report, status := c.visit()
	var checks []string
	for _, line := range report.Lines {
		checks = append(checks, line.Check)
		if line.Status != doctor.OK || line.Text == "" || line.Fix != "" {
			t.Errorf("%+v", line)
		}
	}
	want := "configuration, freshen, files, database, homeserver, tokens, signing key, server name, versions, refresh, sync, sliding sync, keys, federation in, federation out, clock"
	if got := strings.Join(checks, ", "); status != 0 || got != want || report.Missing != "" {
		t.Errorf("doctor ends with %d and looked at\n%s, want\n%s", status, got, want)
	}
	stdout, stderr, status := finish(t, command(t, c.dir, "doctor", "--url", "https://"+c.name))
	if status != 0 || stderr != "" || !strings.Contains(stdout, "\nok       sync           /sync comes to freshen.\n") || strings.Contains(stdout, "\x1b") {
		t.Errorf("doctor ends with %d and says:\n%s%s", status, stdout, stderr)
	}
}

// Each mistake that people make must be named, and nothing that is well.
func TestDoctorNamesTheMistake(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(t *testing.T){
		"wrong key file": func(t *testing.T) {
			c := newClinic(t, nil)
			write(t, c.dir, "signing.key", "ed25519 other 8DbZ0AGHmu9nGgAXF8mpLMjzuxxt8LSJFJUJNJkjR2s\n")
			c.start()
			c.finds("the homeserver publishes another", "signing key")
		},
		"wrong upstream": func(t *testing.T) {
			c := newClinic(t, nil)
			c.serve(&c.homeserver, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<h1>It works!</h1>") })
			c.start()
			c.finds("is no homeserver's client-server API", "homeserver")
		},
		"upstream that leads back": func(t *testing.T) {
			c := newClinic(t, nil)
			c.start()
			c.config(c.homeserverURL, c.freshen.url)
			c.finds("leads back to freshen", "homeserver")
		},
		"homeserver down": func(t *testing.T) {
			c := newClinic(t, nil)
			c.config(c.homeserverURL, "http://127.0.0.1:1")
			c.start()
			c.finds("connection refused", "homeserver")
		},
		"tokens that anybody may make up": func(t *testing.T) {
			c := newClinic(t, nil)
			c.serve(&c.homeserver, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "whoami") {
					_, _ = io.WriteString(w, `{"user_id":"@alice:example.org"}`)
					return
				}
				c.matrix(w, r)
			})
			c.start()
			c.finds("answers whoami with 200", "tokens")
		},
		"a proxy that decodes %2F": func(t *testing.T) {
			c := newClinic(t, nil)
			c.serve(&c.public, func(w http.ResponseWriter, r *http.Request) {
				r.URL.RawPath = "" // so that it is escaped anew, as nginx does with a path in proxy_pass
				c.proxyTo(w, r, c.freshenURL.Load().(string))
			})
			c.start()
			c.finds("changes paths on the way", "refresh")
		},
		"/sync not routed": func(t *testing.T) {
			c := newClinic(t, nil)
			c.serve(&c.public, func(w http.ResponseWriter, r *http.Request) {
				to := c.freshenURL.Load().(string)
				if strings.HasSuffix(r.URL.Path, "v3/sync") {
					to = c.homeserverURL
				}
				c.proxyTo(w, r, to)
			})
			c.start()
			report := c.finds("/sync does not come to freshen", "sync")
			if !strings.Contains(report.Missing, "location ~ ^/_matrix/(client/(r0|v3)/sync)$ {") || strings.Contains(report.Missing, "keys") {
				t.Errorf("the lines that are missing are said to be:\n%s", report.Missing)
			}
		},
		"nothing routed, by Caddy": func(t *testing.T) {
			c := newClinic(t, nil)
			c.serve(&c.public, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Server", "Caddy")
				c.proxyTo(w, r, c.homeserverURL)
			})
			c.start()
			report := c.finds("", "versions", "refresh", "sync", "sliding sync", "keys")
			if !strings.Contains(report.Missing, "@freshen path_regexp ^/_matrix/(client/versions|client/(r0|v3|unstable/org") {
				t.Errorf("the lines that are missing are said to be:\n%s", report.Missing)
			}
		},
		"closed federation port": func(t *testing.T) {
			c := newClinic(t, nil)
			closed := listenOn(t)
			c.calls.Store(closed.Addr().String())
			closed.Close()
			c.config(fmt.Sprintf("name: %q", c.name), fmt.Sprintf("name: %q", closed.Addr()))
			c.start()
			c.finds("refused the connection", "federation in", "federation out")
		},
		"expired certificate": func(t *testing.T) {
			c := newClinic(t, func(ca *fedtest.CA) tls.Certificate {
				return ca.IssueFor(time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "127.0.0.1")
			})
			c.start()
			c.finds("certificate has expired", "versions", "federation in")
		},
		"wrong server name": func(t *testing.T) {
			c := newClinic(t, nil)
			c.calls.Store("other.example")
			c.start()
			c.finds(`calls itself "other.example"`, "server name")
		},
		"clock off": func(t *testing.T) {
			c := newClinic(t, nil)
			c.remoteLate.Store(int64(5 * time.Minute))
			c.start()
			c.finds("ahead of that of "+c.remote, "clock")
		},
		"database that takes nothing": func(t *testing.T) {
			c := newClinic(t, nil)
			c.start()
			prlimit := exec.CommandContext(t.Context(), "prlimit", "--pid", strconv.Itoa(c.freshen.cmd.Process.Pid), "--fsize=0:")
			if out, err := prlimit.CombinedOutput(); err != nil {
				t.Fatalf("prlimit (of util-linux): %v %s", err, out)
			}
			// What SQLite has made room for already may still take a few.
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if status, _ := c.freshen.do(t, http.MethodGet, c.freshen.admin+"/ready"); status != http.StatusOK {
					break
				}
				c.freshen.do(t, http.MethodPost, c.freshen.url+"/_matrix/client/v3/user/@bob:127.0.0.1:1/devices/refresh")
			}
			c.finds("freshen says: the database does not answer", "database")
		},
		"file limit 64": func(t *testing.T) {
			c := newClinic(t, nil)
			cmd := command(t, c.dir, "serve")
			shell, err := exec.LookPath("sh")
			if err != nil {
				t.Fatal(err)
			}
			cmd.Args = []string{"sh", "-c", `ulimit -n 64 && exec "$0" serve`, cmd.Path}
			cmd.Path = shell
			c.started(start(t, cmd))
			c.finds("freshen may open 64 files", "files")
		},
		"another key since it started": func(t *testing.T) {
			c := newClinic(t, nil)
			c.start()
			write(t, c.dir, "other.key", "ed25519 a_test2 8DbZ0AGHmu9nGgAXF8mpLMjzuxxt8LSJFJUJNJkjR2s\n")
			c.config("signing.key", "other.key")
			c.finds("has another signing key than the configuration names", "freshen", "signing key")
		},
		"another homeserver since it started": func(t *testing.T) {
			c := newClinic(t, nil)
			c.config(c.homeserverURL, "http://127.0.0.1:1")
			c.start()
			c.config("http://127.0.0.1:1", c.homeserverURL)
			// As if the administrator had needed some time for that.
			later := time.Now().Add(time.Minute)
			if err := os.Chtimes(filepath.Join(c.dir, "freshen.yaml"), later, later); err != nil {
				t.Fatal(err)
			}
			report := c.finds("the freshen that runs was started with another homeserver.url", "versions", "sync", "sliding sync", "keys")
			if line := report.Lines[1]; line.Check != "freshen" || line.Status != doctor.Warning || !strings.Contains(line.Text, "changed after it had started") {
				t.Errorf("%+v", line)
			}
		},
		"freshen does not run": func(t *testing.T) {
			c := newClinic(t, nil)
			c.serve(&c.public, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
			report := c.finds("freshen does not run", "freshen")
			if report.Missing != "" {
				t.Errorf("lines are said to be missing:\n%s", report.Missing)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

func TestDoctorOfABrokenConfiguration(t *testing.T) {
	t.Parallel()
	c := newClinic(t, nil)
	c.config("kind: generic", "kind: nonsense")
	c.finds("homeserver.kind: must be auto,", "configuration")
	for _, args := range [][]string{{"--url", "example.org"}, {"--server", "a b"}} {
		if _, stderr, status := finish(t, command(t, c.dir, append([]string{"doctor"}, args...)...)); status != 1 || !strings.Contains(stderr, args[0]+" must be ") {
			t.Errorf("%v: %d %s", args, status, stderr)
		}
	}
}
