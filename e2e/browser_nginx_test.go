//go:build goolm

package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// nginx is a real one, with TLS, before something.
type nginx struct {
	URL string
	// key is a hash of its certificate's public key, as Chromium takes it.
	key string
	log string
}

// startNginx puts one before upstream, as an administrator would: TLS, HTTP/2, and gzip for what clients read. It stops
// with all.
func startNginx(t, all *testing.T, world *testbed.World, upstream string) *nginx {
	t.Helper()
	certFile, keyFile, err := world.CA.Issue("nginx", net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: world.CA.Pool, MinVersion: tls.VersionTLS12},
	}}
	started := testbedtest.StartNginx(t, all, fmt.Sprintf(`
	log_format tests '$request_method $uri $server_protocol $status "$http_origin" "$sent_http_content_encoding"';
	gzip on;
	gzip_types application/json;
	gzip_min_length 256;
	server {
		listen {listen} ssl http2;
		access_log {dir}/access.log tests;
		ssl_certificate %s;
		ssl_certificate_key %s;
		location / {
			proxy_pass %s;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_read_timeout 120s;
			proxy_buffering off;
		}
	}`, certFile, keyFile, upstream), "https", client)
	return &nginx{URL: "https://" + started.Addr, key: publicKeyHash(t, certFile), log: filepath.Join(started.Dir, "access.log")}
}

func publicKeyHash(t *testing.T, certFile string) string {
	t.Helper()
	data, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s holds no PEM", certFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// requireBrowsersWay requires that what came here came as browsers send it from a page of another origin: with preflights,
// over HTTP/2, and answered with gzip. Without that, the story would say nothing about browsers.
func (n *nginx) requireBrowsersWay(t *testing.T, refreshed string) {
	t.Helper()
	data, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	has := func(parts ...string) bool {
		for _, line := range lines {
			all := true
			for _, part := range parts {
				all = all && strings.Contains(line, part)
			}
			if all {
				return true
			}
		}
		return false
	}
	for what, parts := range map[string][]string{
		"a preflight of the refresh":        {"OPTIONS /_matrix/client/v3/user/" + refreshed + "/devices/refresh HTTP/2.0", `"http://127.0.0.1:`},
		"the refresh, with its origin":      {"POST /_matrix/client/v3/user/" + refreshed + "/devices/refresh HTTP/2.0 202", `"http://127.0.0.1:`},
		"a preflight of /keys/query":        {"OPTIONS /_matrix/client/v3/keys/query HTTP/2.0"},
		"a /keys/query answered with gzip":  {"POST /_matrix/client/v3/keys/query HTTP/2.0 200", `"gzip"`},
		"a /sync answered with gzip":        {"GET /_matrix/client/v3/sync HTTP/2.0 200", `"gzip"`},
		"a preflight of /sync":              {"OPTIONS /_matrix/client/v3/sync HTTP/2.0"},
		"the question for what is possible": {"GET /_matrix/client/versions HTTP/2.0 200", `"http://127.0.0.1:`},
	} {
		if !has(parts...) {
			t.Errorf("nginx saw no %s:\n%s", what, data)
		}
	}
}
