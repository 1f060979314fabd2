package testbed

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// configureSynapse writes what a Synapse is started with: one process, with the replication listener that workers would
// use, and no limits of its own that a test could run into.
func (h *Homeserver) configureSynapse() error {
	h.SigningKeyFile = filepath.Join(h.dir, "homeserver.signing.key")
	if err := writeSynapseKey(h.SigningKeyFile); err != nil {
		return err
	}
	h.args = []string{"-m", "synapse.app.homeserver", "--config-path", h.configFile()}
	h.Replication, h.ReplicationSecret = h.URL, rand.Text()
	return h.writeConfig(h.synapseConfig())
}

// writeSynapseKey writes a signing key as Synapse keeps it: algorithm, version and seed in one line.
func writeSynapseKey(path string) error {
	seed, version := make([]byte, 32), make([]byte, 2)
	if _, err := rand.Read(seed); err != nil {
		return fmt.Errorf("no random bytes for a signing key: %w", err)
	}
	if _, err := rand.Read(version); err != nil {
		return fmt.Errorf("no random bytes for a key version: %w", err)
	}
	line := fmt.Sprintf("ed25519 a_%s %s\n", hex.EncodeToString(version), base64.RawStdEncoding.EncodeToString(seed))
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		return fmt.Errorf("a signing key cannot be written: %w", err)
	}
	return nil
}

func (h *Homeserver) synapseConfig() section {
	free := section{"per_second": 100_000, "burst_count": 100_000}
	return section{
		"server_name":      h.ServerName,
		"pid_file":         filepath.Join(h.dir, "pid"),
		"signing_key_path": h.SigningKeyFile,
		"media_store_path": filepath.Join(h.dir, "media"),
		"database":         h.synapseDatabase(),
		"listeners": []section{
			{
				"port": h.client.Port(), "bind_addresses": []string{h.client.Addr().String()}, "type": "http", "tls": false,
				"resources": []section{{"names": []string{"client", "replication"}}},
			}, {
				"port": h.tls.Port(), "bind_addresses": []string{h.tls.Addr().String()}, "type": "http", "tls": true,
				"resources": []section{{"names": []string{"federation"}}},
			},
		},
		"tls_certificate_path":      h.certFile,
		"tls_private_key_path":      h.keyFile,
		"federation_custom_ca_list": []string{h.ca.File},
		// The default forbids loopback, which is where the other homeserver is.
		"ip_range_blacklist": []string{},
		// A notary would be asked for every key, and there is none.
		"trusted_key_servers":                      []any{},
		"enable_registration":                      true,
		"enable_registration_without_verification": true,
		"allow_guest_access":                       true,
		"bcrypt_rounds":                            4,
		"macaroon_secret_key":                      rand.Text(),
		"form_secret":                              rand.Text(),
		"worker_replication_secret":                h.ReplicationSecret,
		"report_stats":                             false,
		"presence":                                 section{"enabled": false},
		"user_directory":                           section{"enabled": false},
		"federation":                               section{"client_timeout": "20s"},
		"rc_message":                               free,
		"rc_registration":                          free,
		"rc_login":                                 section{"address": free, "account": free, "failed_attempts": free},
		"rc_joins":                                 section{"local": free, "remote": free},
		"rc_joins_per_room":                        free,
		"rc_invites":                               section{"per_room": free, "per_user": free, "per_issuer": free},
		"rc_key_requests":                          free,
		"rc_federation":                            section{"window_size": 1, "sleep_limit": 100_000, "sleep_delay": 1, "reject_limit": 100_000, "concurrent": 100},
		"federation_rr_transactions_per_room_per_second": 1000,
	}
}

// synapseDatabase is an SQLite file, or a database of a Postgres that is reached over a socket without a password.
func (h *Homeserver) synapseDatabase() section {
	if h.database == nil {
		return section{"name": "sqlite3", "args": section{"database": filepath.Join(h.dir, "homeserver.db")}}
	}
	query := h.database.Query()
	return section{"name": "psycopg2", "args": section{
		"user": h.database.User.Username(), "dbname": strings.TrimPrefix(h.database.Path, "/"),
		"host": query.Get("host"), "port": query.Get("port"), "cp_min": 1, "cp_max": 5,
	}}
}

// DatabaseURL is the Postgres database of a Synapse, nil if it has an SQLite file.
func (h *Homeserver) DatabaseURL() *url.URL { return h.database }
