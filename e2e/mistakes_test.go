//go:build goolm

package e2e

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// mistake is one that administrators make.
type mistake struct {
	name string
	// start starts the site with that mistake in it. Without it the site is well.
	start func(s *site)
	// failed are the lines of doctor that fail, and no others: the last names the mistake, those before are wrong because of it. says
	// is what the last must hold: what was found, and where to mend it.
	failed, says []string
}

// A new administrator must get a site of which doctor complains about nothing by what init writes and the README tells; and of each
// mistake that they then make doctor must say what it is and where to mend it, without sending them elsewhere.
func TestANewAdministrator(t *testing.T) { //nolint:tparallel // the parts share the homeservers, and the last one cuts them off
	t.Parallel()
	testbedtest.Program(t, "nginx", "nginx")
	world := testbedtest.Own(t, testbed.Options{})
	program, err := testbed.BuildFreshen(t.Context(), world.Dir, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("no mistake", func(t *testing.T) {
		s := newSite(t, world, program)
		s.run("check")
		s.serve()
		s.nginx(s.readmeLines())
		report, well := s.doctor()
		if ok := report.with("ok"); !well || len(ok) != len(report.Lines) || report.Missing != "" {
			t.Errorf("not all is well, but only %v", ok)
		}
		for _, check := range []string{"files", "database", "tokens", "signing key", "server name", "versions", "refresh", "sync", "keys", "federation in", "federation out", "clock"} {
			if report.line(check) == "" {
				t.Errorf("%s was not looked at", check)
			}
		}
	})
	for _, m := range slices.Concat(mistakesInside(), mistakesOutside()) {
		t.Run(m.name, func(t *testing.T) {
			s := newSite(t, world, program)
			m.start(s)
			report, well := s.doctor()
			s.expect(report, well, m.failed, m.says)
		})
	}
	t.Run("closed federation port", func(t *testing.T) {
		if err := world.Link.Close(); err != nil {
			t.Fatal(err)
		}
		s := newSite(t, world, program)
		s.serve()
		s.nginx(s.readmeLines())
		report, well := s.doctor()
		_, port, _ := strings.Cut(world.A.ServerName, ":")
		s.expect(report, well, []string{"federation in"}, []string{"refused the connection", "Open the federation port (" + port + ", as the server name says) in the firewall"})
	})
}

// expect checks that doctor has failed just these, and what it says of the last.
func (s *site) expect(report *finding, well bool, failed, says []string) {
	s.t.Helper()
	if well {
		s.t.Error("doctor says that all is well")
	}
	if found := report.with("failed"); !slices.Equal(found, failed) {
		s.t.Errorf("%v fail, want %v", found, failed)
	}
	named := failed[len(failed)-1]
	for _, text := range says {
		if said := report.line(named); !strings.Contains(said, s.filled(text)) {
			s.t.Errorf("%s says %q, and not %q", named, said, s.filled(text))
		}
	}
}

// filled puts into a text what is known only when the site is there.
func (s *site) filled(text string) string {
	return strings.NewReplacer("{listen}", s.listen, "{A}", s.world.A.ServerName, "{B}", s.world.B.ServerName, "{dir}", s.dir).Replace(text)
}

// mistakesInside are those in freshen.yaml and on the machine.
func mistakesInside() []mistake {
	// homeserverAt puts another address where the homeserver's should be.
	homeserverAt := func(s *site, address string) {
		s.set(`  url: .*`, "  url: "+address)
		s.serve()
	}
	return []mistake{
		{
			name: "wrong key file", failed: []string{"signing key"},
			says: []string{"the homeserver publishes another", "homeserver.signing_key", "private_key in dendrite.yaml"},
			start: func(s *site) {
				s.set(`  signing_key: .*`, "  signing_key: "+s.world.B.SigningKeyFile)
				s.serve()
				s.nginx(s.readmeLines())
			},
		},
		{
			name: "wrong upstream: nothing is there", failed: []string{"homeserver"},
			says: []string{"connection refused", "homeserver.url must be"},
			start: func(s *site) {
				s.nginx(s.readmeLines())
				homeserverAt(s, "http://127.0.0.1:1")
			},
		},
		{
			name: "wrong upstream: the federation port", failed: []string{"homeserver"},
			says: []string{"is no homeserver's client-server API", "homeserver.url must be"},
			start: func(s *site) {
				s.nginx(s.readmeLines())
				homeserverAt(s, "http://"+s.world.A.ServerName)
			},
		},
		{
			name: "wrong upstream: the reverse proxy", failed: []string{"homeserver"},
			says: []string{"leads back to freshen", "homeserver.url must be"},
			start: func(s *site) {
				s.nginx(s.readmeLines())
				homeserverAt(s, s.public)
			},
		},
		{
			name: "wrong upstream: another homeserver", failed: []string{"server name"},
			says: []string{`calls itself "{B}"`, "homeserver.url is wrong"},
			start: func(s *site) {
				s.nginx(s.readmeLines())
				homeserverAt(s, s.world.B.URL)
			},
		},
		{
			name: "wrong server name", failed: []string{"server name"},
			says: []string{`calls itself "{A}"`, "into homeserver.name"},
			start: func(s *site) {
				host, _, _ := strings.Cut(s.world.A.ServerName, ":") // without the port that the user IDs have
				s.set(`  name: .*`, `  name: "`+host+`"`)
				s.serve()
				s.nginx(s.readmeLines())
			},
		},
		{
			name: "read-only database", failed: []string{"freshen", "database"},
			says: []string{"data/freshen.db cannot be written: permission denied", "Give {dir}/data, and freshen.db in it, to the user that freshen runs as (chown)"},
			start: func(s *site) {
				data := s.folder("data")
				s.set(`database: .*`, "database: data/freshen.db")
				s.stop(s.serve())
				for path, mode := range map[string]os.FileMode{filepath.Join(data, "freshen.db"): 0o400, data: 0o500} {
					if err := os.Chmod(path, mode); err != nil {
						s.t.Fatal(err)
					}
				}
				s.asOwner()
				if said := s.refuses("serve"); !strings.Contains(said, "cannot be opened for writing") {
					s.t.Errorf("freshen does not say why it does not start:\n%s", said)
				}
				s.nginx(s.readmeLines())
			},
		},
		{
			name: "file limit 64", failed: []string{"files"},
			says: []string{"freshen may open 64 files", "LimitNOFILE=65536 in the systemd unit"},
			start: func(s *site) {
				s.before = []string{"sh", "-c", `ulimit -n 64 && exec "$@"`, "sh"}
				if log := s.log(s.serve()); !strings.Contains(log, "few files may be open at once") {
					s.t.Errorf("freshen does not say at its start that it may open few files:\n%s", log)
				}
				s.nginx(s.readmeLines())
			},
		},
	}
}

// mistakesOutside are those in the reverse proxy and around it.
func mistakesOutside() []mistake {
	ways := []string{"versions", "refresh", "sync", "sliding sync", "keys"}
	return []mistake{
		{
			name: "wrong upstream in nginx", failed: ways,
			says: []string{"could not reach what it sends it to, and answered 502", "Send it to {listen}, where freshen listens"},
			start: func(s *site) {
				s.serve()
				s.nginx(strings.ReplaceAll(s.readmeLines(), s.listen, "127.0.0.1:1"))
			},
		},
		{
			name: "nginx past freshen", failed: ways,
			says: []string{"does not come to freshen: something else answered", "Send it to {listen} in the reverse proxy"},
			start: func(s *site) {
				s.serve()
				s.nginx("")
			},
		},
		{
			name: "nginx that decodes %2F", failed: []string{"refresh"},
			says: []string{"The reverse proxy changes paths on the way", "proxy_pass http://{listen}; without a slash"},
			start: func(s *site) {
				s.serve()
				lines := strings.Replace(s.readmeLines(), "location ~ ^/_matrix/(client|unstable)/", "location /_matrix/", 1)
				s.nginx(strings.Replace(lines, s.listen+";", s.listen+"/_matrix/;", 1))
			},
		},
		{
			name: "/sync not routed", failed: []string{"sync"},
			says: []string{"/sync does not come to freshen", "Send it to {listen} in the reverse proxy; the lines that are missing are below."},
			start: func(s *site) {
				s.serve()
				const past = "location = /_matrix/client/v3/sync { proxy_pass %; }\n"
				s.nginx(strings.Replace(past, "%", s.world.A.URL, 1) + s.readmeLines())
				report, _ := s.doctor()
				if !strings.Contains(report.Missing, "location ~ ^/_matrix/(client/(r0|v3)/sync)$ {") || strings.Contains(report.Missing, "keys") {
					s.t.Errorf("the lines that are missing are said to be:\n%s", report.Missing)
				}
			},
		},
		{
			name: "expired certificate", failed: []string{"versions"},
			says: []string{"certificate has expired", "Renew or mend the certificate that the reverse proxy names"},
			start: func(s *site) {
				s.serve()
				s.nginxUntil(s.readmeLines(), time.Now().Add(-10*time.Minute))
			},
		},
		{
			name: "clock off", failed: []string{"clock"},
			says: []string{"ahead of this machine's, which agrees with that of {B}", "Set the clock there by NTP"},
			start: func(s *site) {
				s.serve()
				s.nginx(s.hoursAhead(2))
			},
		},
	}
}

// hoursAhead are the lines for an nginx whose machine's clock is ahead: it passes on the Date of a program that stands between it and
// freshen and alters nothing else.
func (s *site) hoursAhead(hours int) (lines string) {
	s.t.Helper()
	to, err := url.Parse("http://" + s.listen)
	if err != nil {
		s.t.Fatal(err)
	}
	between := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(time.Duration(hours)*time.Hour).UTC().Format(http.TimeFormat))
			return nil
		},
	})
	s.t.Cleanup(between.Close)
	return strings.Replace(s.readmeLines(), "http://"+s.listen+";", between.URL+"; proxy_pass_header Date;", 1)
}
