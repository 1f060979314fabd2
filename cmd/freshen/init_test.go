package main

import (
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const synapseKey = "ed25519 a_test YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n"

// synapseConfig has what a real one has, secrets included.
const synapseConfig = `server_name: "example.org:8449"
listeners:
  - port: 9093
    type: metrics
    bind_addresses: ['127.0.0.1']
  - port: 8448
    type: http
    tls: true
    resources: [{names: [client, federation]}]
  - port: 8008
    tls: false
    type: http
    x_forwarded: true
    bind_addresses: ['::1', '127.0.0.1']
    resources:
      - names: [client, federation]
        compress: false
database:
  name: psycopg2
  args: {user: synapse, password: "TOPSECRET", host: db.internal}
macaroon_secret_key: TOPSECRET
signing_key_path: my.signing.key
`

// matrixKey is Dendrite's key file.
func matrixKey() string {
	seed, _ := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	return string(pem.EncodeToMemory(&pem.Block{Type: "MATRIX PRIVATE KEY", Headers: map[string]string{"Key-ID": "ed25519:abc"}, Bytes: seed}))
}

// What a new administrator gets must be usable as it is, keep the homeserver's secrets out, and say what they must see to.
func TestInit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		file, text string
		more       map[string]string
		says       []string // init
		checks     []string // freshen check
		holds      []string // the file
	}{
		"Synapse": {
			file: "homeserver.yaml", text: synapseConfig, more: map[string]string{"my.signing.key": synapseKey},
			checks: []string{"example.org:8449 at http://127.0.0.1:8008 ", "my.signing.key\n", "127.0.0.1:8009 for the reverse proxy"},
			holds:  []string{"postgres://freshen@db.internal/freshen\n", "# give_up_after: 168h\n"},
		},
		"Synapse of Debian": {
			file: "homeserver.yaml", text: strings.Replace(synapseConfig, `server_name: "example.org:8449"`, "", 1),
			more:   map[string]string{"conf.d/server_name.yaml": "server_name: debian.example\n", "my.signing.key": synapseKey},
			checks: []string{"debian.example at http://127.0.0.1:8008 "},
			holds:  []string{"conf.d/server_name.yaml"},
		},
		"Synapse's default key, IPv6 alone, on our own ports": {
			file: "homeserver.yaml", text: `server_name: example.org
listeners:
  - {port: 8009, type: http, bind_addresses: ['::1'], resources: [{names: [client]}]}
  - {port: 9009, type: metrics}
`,
			more:   map[string]string{"example.org.signing.key": synapseKey},
			checks: []string{"example.org at http://[::1]:8009 ", "127.0.0.1:8010 for the reverse proxy, 127.0.0.1:9010 for operators"},
		},
		"Synapse with workers": {
			file: "homeserver.yaml", text: synapseConfig + "instance_map: {main: {port: 1}, sync1: {port: 2}}\nfederation_sender_instances: [sender1]\n",
			more: map[string]string{"my.signing.key": synapseKey},
			says: []string{"This Synapse has workers (2)."}, checks: []string{"example.org:8449"}, holds: []string{"# To be seen to: This Synapse has workers (2)."},
		},
		"Synapse with TLS alone": {
			file: "homeserver.yaml", text: "server_name: example.org\nlisteners:\n  - {port: 8448, tls: true, type: http, resources: [{names: [client]}]}\n",
			more: map[string]string{"example.org.signing.key": synapseKey},
			says: []string{"Synapse serves clients with TLS alone"}, checks: []string{"https://127.0.0.1:8448"},
		},
		"Dendrite": {
			file: "dendrite.yaml", text: `version: 2
global:
  server_name: 127.0.0.2:28448
  private_key: matrix_key.pem
  database: {connection_string: "postgresql://dendrite:TOPSECRET@pg.internal:5432/dendrite?sslmode=disable"}
client_api: {registration_shared_secret: TOPSECRET}
`,
			more: map[string]string{"matrix_key.pem": matrixKey()},
			says: []string{"--http-bind-address"}, checks: []string{"127.0.0.2:28448 at http://127.0.0.1:8008 "},
			holds: []string{"postgres://freshen@pg.internal/freshen\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := homeserverFolder(t, test.file, test.text, test.more)
			stdout, stderr, status := finish(t, command(t, dir, "init", test.file))
			if status != 0 || stderr != "" {
				t.Fatalf("init ends with %d and says:\n%s%s", status, stdout, stderr)
			}
			written, err := os.ReadFile(filepath.Join(dir, "freshen.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(filepath.Join(dir, "freshen.yaml")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the file has mode %v (%v), want 0600", info.Mode(), err)
			}
			checked, stderr, status := finish(t, command(t, dir, "check"))
			if status != 0 || stderr != "" {
				t.Errorf("what init wrote does not pass freshen check:\n%s%s\n%s", checked, stderr, written)
			}
			for _, want := range []struct {
				in    string
				parts []string
			}{{stdout, test.says}, {checked, test.checks}, {string(written), test.holds}} {
				for _, part := range want.parts {
					if !strings.Contains(want.in, part) {
						t.Errorf("%q is missing in:\n%s", part, want.in)
					}
				}
			}
			if strings.Contains(stdout+string(written), "TOPSECRET") {
				t.Errorf("a secret of the homeserver's came out:\n%s\n%s", stdout, written)
			}
			_, stderr, status = finish(t, command(t, dir, "init", test.file))
			again, err := os.ReadFile(filepath.Join(dir, "freshen.yaml"))
			if err != nil || status != 1 || string(again) != string(written) || !strings.Contains(stderr, "freshen.yaml is there already") {
				t.Errorf("a second init ends with %d and %q, and the file is another: %t (%v)", status, stderr, string(again) != string(written), err)
			}
		})
	}
}

// Each mistake must be named with what to do, without a word of what else stands in the file, and leave nothing behind.
func TestInitRefuses(t *testing.T) {
	t.Parallel()
	key := map[string]string{"my.signing.key": synapseKey}
	for name, test := range map[string]struct {
		text string
		more map[string]string
		want string
	}{
		"no YAML":         {"password: TOPSECRET\n  TOPSECRET: [", nil, "cannot be parsed as YAML"},
		"a list":          {"- TOPSECRET\n", nil, "is no YAML mapping"},
		"empty":           {"", nil, "YAML"},
		"neither":         {"homeserver:\n  address: TOPSECRET\n", nil, "the configuration of neither Synapse"},
		"no key":          {synapseConfig, nil, "the homeserver's signing key is not there: signing_key_path in "},
		"a broken key":    {synapseConfig, map[string]string{"my.signing.key": "TOPSECRET\n"}, "homeserver.signing_key: "},
		"a key inside":    {strings.Replace(synapseConfig, "signing_key_path: my.signing.key", `signing_key: "ed25519 a TOPSECRET"`, 1), key, "put it into a file"},
		"a worker's file": {"worker_app: synapse.app.generic_worker\nworker_name: TOPSECRET\n", nil, "name that of the main process"},
		"a unix socket": {
			"server_name: example.org\nsigning_key_path: my.signing.key\nlisteners:\n  - {path: /run/TOPSECRET, type: http, resources: [{names: [client]}]}\n",
			key, "on a unix socket alone, which freshen cannot use: add a listener with a port",
		},
		"no listener":      {"server_name: example.org\nsigning_key_path: my.signing.key\n", key, "has no listener of type http that serves clients"},
		"no name":          {strings.Replace(synapseConfig, `server_name: "example.org:8449"`, "", 1), key, "has no server_name"},
		"a bad name":       {strings.Replace(synapseConfig, `"example.org:8449"`, "'https://TOPSECRET/'", 1), key, "is no server name such as example.org"},
		"Dendrite's key":   {"global: {server_name: example.org, private_key: none.pem}\n", nil, "global.private_key in "},
		"Dendrite, no key": {"global: {server_name: example.org}\n", nil, "has no global.private_key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := homeserverFolder(t, "homeserver.yaml", test.text, test.more)
			stdout, stderr, status := finish(t, command(t, dir, "init", "homeserver.yaml"))
			if status != 1 || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("init ends with %d and says:\n%s%s\nwant: %s", status, stdout, stderr, test.want)
			}
			if strings.Contains(stderr, "TOPSECRET") {
				t.Errorf("a secret is repeated: %s", stderr)
			}
			if _, err := os.Stat(filepath.Join(dir, "freshen.yaml")); err == nil {
				t.Error("a freshen.yaml is left behind")
			}
		})
	}
	_, stderr, status := finish(t, command(t, t.TempDir(), "init", "none.yaml"))
	if status != 1 || !strings.Contains(stderr, "none.yaml: no such file or directory") {
		t.Errorf("a file that is not there: %d %s", status, stderr)
	}
}

func homeserverFolder(t *testing.T, file, text string, more map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, file, text)
	for name, text := range more {
		write(t, dir, name, text)
	}
	return dir
}
