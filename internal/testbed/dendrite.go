package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"
)

// Dendrite is a homeserver in a process of its own. Its data and ports stay the same over Stop and Start.
type Dendrite struct {
	// Name is for people: "A".
	Name string
	// ServerName is its name in the federation: an IP literal with a port.
	ServerName string
	// URL is its client-server API, without TLS.
	URL string
	// SigningKeyFile holds the key that it signs federation requests with.
	SigningKeyFile string
	// LogFile is where its output goes.
	LogFile string

	binary   string
	dir      string
	ca       *CA
	certFile string
	keyFile  string
	client   netip.AddrPort
	tls      netip.AddrPort // where its federation API listens; the link may stand on the server name's port
	http     *http.Client
	process  *Process
}

// newDendrite prepares a homeserver below dir without starting it. serverName is where other servers reach it.
func newDendrite(ctx context.Context, binary, dir, name string, serverName, listen netip.AddrPort, ca *CA, client *http.Client) (*Dendrite, error) {
	d := &Dendrite{
		Name: name, ServerName: serverName.String(), binary: binary, ca: ca, tls: listen, http: client,
		dir: filepath.Join(dir, "dendrite-"+name),
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("no folder for Dendrite %s: %w", name, err)
	}
	var err error
	if d.certFile, d.keyFile, err = ca.Issue("dendrite-"+name, net.IP(serverName.Addr().AsSlice())); err != nil {
		return nil, err
	}
	if d.client, err = freePort(ctx, serverName.Addr()); err != nil {
		return nil, err
	}
	d.URL = "http://" + d.client.String()
	d.LogFile = filepath.Join(d.dir, "dendrite.log")
	d.SigningKeyFile = filepath.Join(d.dir, "matrix_key.pem")
	if err := writeSigningKey(d.SigningKeyFile); err != nil {
		return nil, err
	}
	return d, d.writeConfig()
}

func writeSigningKey(path string) error {
	seed, id := make([]byte, 32), make([]byte, 3)
	if _, err := rand.Read(seed); err != nil {
		return fmt.Errorf("no random bytes for a signing key: %w", err)
	}
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("no random bytes for a key ID: %w", err)
	}
	return writePEM(path, "MATRIX PRIVATE KEY", map[string]string{"Key-ID": "ed25519:" + hex.EncodeToString(id)}, seed)
}

func (d *Dendrite) writeConfig() error {
	type section = map[string]any
	database := func(name string) section {
		return section{"connection_string": "file:" + filepath.Join(d.dir, name+".db")}
	}
	config := section{
		"version": 2,
		"global": section{
			"server_name":                    d.ServerName,
			"private_key":                    d.SigningKeyFile,
			"trusted_third_party_id_servers": []string{},
			"jetstream":                      section{"in_memory": true, "storage_path": filepath.Join(d.dir, "jetstream")},
			"report_stats":                   section{"enabled": false},
			"presence":                       section{"enable_inbound": false, "enable_outbound": false},
		},
		"client_api": section{
			"registration_disabled": false,
			"guests_disabled":       false,
			"rate_limiting":         section{"enabled": false},
		},
		"federation_api": section{"database": database("federationapi"), "disable_tls_validation": false, "key_perspectives": []any{}},
		"key_server":     section{"database": database("keyserver")},
		"media_api":      section{"database": database("mediaapi"), "base_path": filepath.Join(d.dir, "media")},
		"relay_api":      section{"database": database("relayapi")},
		"room_server":    section{"database": database("roomserver")},
		"sync_api":       section{"database": database("syncapi"), "search": section{"enabled": false}},
		"user_api":       section{"account_database": database("userapi"), "bcrypt_cost": 4},
		"mscs":           section{"database": database("mscs")},
		"logging":        []any{section{"type": "std", "level": "info"}},
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("the configuration of Dendrite %s: %w", d.Name, err)
	}
	if err := os.WriteFile(d.configFile(), data, 0o600); err != nil {
		return fmt.Errorf("the configuration of Dendrite %s cannot be written: %w", d.Name, err)
	}
	return nil
}

func (d *Dendrite) configFile() string { return filepath.Join(d.dir, "dendrite.yaml") }

// Start runs the homeserver and returns when it answers its clients. ctx bounds the wait, not the homeserver's life.
func (d *Dendrite) Start(ctx context.Context) error {
	args := []string{
		"--config", d.configFile(),
		"--http-bind-address", d.client.String(),
		"--https-bind-address", d.tls.String(),
		"--tls-cert", d.certFile, "--tls-key", d.keyFile,
		"--really-enable-open-registration",
	}
	process, err := StartProcess(ctx, "Dendrite "+d.Name, d.LogFile, d.binary, args, []string{"SSL_CERT_FILE=" + d.ca.File})
	if err != nil {
		return err
	}
	d.process = process
	return process.AwaitReady(ctx, d.http, d.URL+"/_matrix/client/versions", func(status int, _ []byte) bool {
		return status == http.StatusOK
	})
}

// Stop ends the homeserver in order (SIGTERM). It may be started again; a stopped one is left alone.
func (d *Dendrite) Stop(ctx context.Context) error {
	if d.process == nil {
		return nil
	}
	err := d.process.Stop(ctx)
	d.process = nil
	return err
}

// Kill ends the homeserver with SIGKILL.
func (d *Dendrite) Kill() {
	if d.process != nil {
		d.process.Kill()
		d.process = nil
	}
}
