package testbedtest

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
)

const nginxConfig = `
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
{user}
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path {dir}/body;
	proxy_temp_path {dir}/proxy;
	fastcgi_temp_path {dir}/fastcgi;
	uwsgi_temp_path {dir}/uwsgi;
	scgi_temp_path {dir}/scgi;
	{lines}
}
`

// Nginx is a real one.
type Nginx struct {
	// Addr is where it listens; Dir is its folder, with what it logs.
	Addr, Dir string
}

// StartNginx starts one with these lines in its http block, in which {listen} stands for its address and {dir} for its
// folder, and waits until it answers. scheme and client are how it is asked. It stops with ends, which is t or a test
// around it.
func StartNginx(t, ends testing.TB, lines, scheme string, client *http.Client) *Nginx {
	t.Helper()
	path := Program(t, "nginx", "nginx")
	addr, err := testbed.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := &Nginx{Addr: addr, Dir: ends.TempDir()}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // else its workers could not write to the folder
	}
	config := strings.NewReplacer("{dir}", n.Dir, "{user}", user).Replace(nginxConfig)
	config = strings.Replace(config, "{lines}", strings.NewReplacer("{dir}", n.Dir, "{listen}", addr).Replace(lines), 1)
	file := filepath.Join(n.Dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	process, err := testbed.StartProcess(t.Context(), "nginx", filepath.Join(n.Dir, "nginx.log"), path, []string{"-p", n.Dir, "-c", file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ends.Cleanup(func() {
		if err := process.Stop(context.Background()); err != nil {
			ends.Error(err)
		}
	})
	asking := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if client != nil {
		asking = client
	}
	answers := func(int, []byte) bool { return true }
	if err := process.AwaitReady(t.Context(), asking, scheme+"://"+addr+"/_matrix/client/versions", answers); err != nil {
		t.Fatal(err)
	}
	return n
}
