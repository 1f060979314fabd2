package testbed

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path/filepath"
)

// configureDendrite writes what a Dendrite is started with.
func (h *Homeserver) configureDendrite() error {
	h.SigningKeyFile = filepath.Join(h.dir, "matrix_key.pem")
	if err := writeDendriteKey(h.SigningKeyFile); err != nil {
		return err
	}
	h.args = []string{
		"--config", h.configFile(),
		"--http-bind-address", h.client.String(),
		"--https-bind-address", h.tls.String(),
		"--tls-cert", h.certFile, "--tls-key", h.keyFile,
		"--really-enable-open-registration",
	}
	h.env = []string{"SSL_CERT_FILE=" + h.ca.File}
	return h.writeConfig(h.dendriteConfig())
}

func writeDendriteKey(path string) error {
	seed, id := make([]byte, 32), make([]byte, 3)
	if _, err := rand.Read(seed); err != nil {
		return fmt.Errorf("no random bytes for a signing key: %w", err)
	}
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("no random bytes for a key ID: %w", err)
	}
	return writePEM(path, "MATRIX PRIVATE KEY", map[string]string{"Key-ID": "ed25519:" + hex.EncodeToString(id)}, seed)
}

func (h *Homeserver) dendriteConfig() section {
	database := func(name string) section {
		return section{"connection_string": "file:" + filepath.Join(h.dir, name+".db")}
	}
	return section{
		"version": 2,
		"global": section{
			"server_name":                    h.ServerName,
			"private_key":                    h.SigningKeyFile,
			"trusted_third_party_id_servers": []string{},
			"jetstream":                      section{"in_memory": true, "storage_path": filepath.Join(h.dir, "jetstream")},
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
		"media_api":      section{"database": database("mediaapi"), "base_path": filepath.Join(h.dir, "media")},
		"relay_api":      section{"database": database("relayapi")},
		"room_server":    section{"database": database("roomserver")},
		"sync_api":       section{"database": database("syncapi"), "search": section{"enabled": false}},
		"user_api":       section{"account_database": database("userapi"), "bcrypt_cost": 4},
		"mscs":           section{"database": database("mscs")},
		"logging":        []any{section{"type": "std", "level": "info"}},
	}
}
