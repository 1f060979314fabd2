//go:build unix

package soak

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
)

const nginxConfig = `
daemon off;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log;
%[2]s
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	upstream freshen {
%[3]s	}
	server {
		listen %[4]s;
		location / {
			proxy_pass http://freshen;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_host;
			proxy_connect_timeout 2s;
			proxy_read_timeout 8s;
		}
	}
}
`

// startNginx balances over the instances in turn, and returns where it listens. It stops with the test.
func startNginx(t *testing.T, upstreams ...string) (listen string) {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // is on the path of root alone
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal("nginx is required here: apt-get install nginx")
			}
			t.Skip("Skipped, since there is no nginx to put before the instances: apt-get install nginx")
		}
	}
	dir := t.TempDir()
	var servers strings.Builder
	for _, upstream := range upstreams {
		fmt.Fprintf(&servers, "\t\tserver %s max_fails=0;\n", upstream)
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // else its workers could not write to dir
	}
	listen = reserve(t)
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, user, servers.String(), listen), 0o600); err != nil {
		t.Fatal(err)
	}
	process, err := testbed.StartProcess(t.Context(), "nginx", filepath.Join(dir, "nginx.log"), path, []string{"-p", dir, "-c", config}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.Stop(t.Context()); err != nil {
			process.Kill()
		}
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	if err := process.AwaitReady(t.Context(), client, "http://"+listen+pathVersions, func(int, []byte) bool { return true }); err != nil {
		t.Fatal(err)
	}
	return listen
}
