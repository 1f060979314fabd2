//go:build unix

package soak

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed/testbedtest"
)

// startNginx balances over the instances in turn, and returns where it listens. It gives up an answer of which nothing
// came for that long. It stops with the test.
func startNginx(t *testing.T, patience time.Duration, upstreams ...string) (listen string) {
	t.Helper()
	var servers strings.Builder
	for _, upstream := range upstreams {
		fmt.Fprintf(&servers, "\t\tserver %s max_fails=0;\n", upstream)
	}
	return testbedtest.StartNginx(t, t, fmt.Sprintf(`
	upstream freshen {
%s	}
	server {
		listen {listen};
		location / {
			proxy_pass http://freshen;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_host;
			proxy_connect_timeout 2s;
			proxy_read_timeout %dms;
		}
	}`, servers.String(), patience.Milliseconds()), "http", nil).Addr
}
