package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"freshen/internal/doctor"
	"freshen/internal/testbed/testbedtest"
)

// nginx serves a site with these lines before the homeserver, and returns its URL.
func nginx(t *testing.T, homeserver, lines string) string {
	t.Helper()
	return "http://" + testbedtest.StartNginx(t, t, fmt.Sprintf(`
	server {
		listen {listen};
%s
		location / { proxy_pass %s; }
	}`, lines, homeserver), "http", nil).Addr
}

// The lines that the doctor prints must be all that a real nginx needs; and what a real nginx does to user IDs where
// proxy_pass has a path must be found out.
func TestDoctorWithNginx(t *testing.T) {
	t.Parallel()
	c := newClinic(t, nil)
	c.start()
	c.config("listen: 127.0.0.1:0", "listen: "+strings.TrimPrefix(c.freshen.url, "http://"))
	visit := func(url string) (report doctor.Report, failed string) {
		stdout, stderr, _ := finish(t, command(t, c.dir, "doctor", "--json", "--url", url))
		if err := json.Unmarshal([]byte(stdout), &report); err != nil {
			t.Fatalf("%v: %s%s", err, stdout, stderr)
		}
		var checks []string
		for _, line := range report.Lines {
			if line.Status == doctor.Failed {
				checks = append(checks, line.Check)
			}
		}
		return report, strings.Join(checks, ", ")
	}
	bare, failed := visit(nginx(t, c.homeserverURL, ""))
	if failed != "versions, refresh, sync, sliding sync, keys" || !strings.Contains(bare.Missing, "location ~ ") {
		t.Fatalf("%s fail; missing:\n%s", failed, bare.Missing)
	}
	mended, failed := visit(nginx(t, c.homeserverURL, bare.Missing))
	if failed != "" || mended.Missing != "" {
		t.Errorf("with the lines that the doctor printed, %q fail: %+v", failed, mended.Lines)
	}
	decoding := nginx(t, c.homeserverURL, "location /_matrix/ { proxy_pass "+c.freshen.url+"/_matrix/; }")
	report, failed := visit(decoding)
	if failed != "refresh" {
		t.Errorf("where nginx decodes, %q fail: %+v", failed, report.Lines)
	}
}
