package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/doctor"
)

const nginxConfig = `daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log;
%[2]s
events { worker_connections 64; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[3]s;
%[4]s
		location / { proxy_pass %[5]s; }
	}
}
`

// nginx serves a site with these lines before the homeserver, and returns its URL.
func nginx(t *testing.T, homeserver, lines string) string {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // is on the path of root alone
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal("nginx is missing: apt-get install nginx")
			}
			t.Skip("nginx is missing: apt-get install nginx")
		}
	}
	dir := t.TempDir()
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // else its workers could not write to dir
	}
	listener := listenOn(t)
	address := listener.Addr().String()
	listener.Close()
	write(t, dir, "nginx.conf", fmt.Sprintf(nginxConfig, dir, user, address, lines, homeserver))
	cmd := exec.CommandContext(context.Background(), path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-ended
	})
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/_matrix/client/versions", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			response.Body.Close()
			return "http://" + address
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "nginx.log"))
			t.Fatalf("nginx does not answer: %v\n%s", err, log)
		}
	}
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
