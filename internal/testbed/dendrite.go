package testbed

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // which the registration by a shared secret is defined with
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
)

// configureDendrite writes what a Dendrite is started with.
func (h *Homeserver) configureDendrite() error {
	h.SigningKeyFile = filepath.Join(h.dir, "matrix_key.pem")
	if err := writeDendriteKey(h.SigningKeyFile); err != nil {
		return err
	}
	h.registrationSecret = rand.Text()
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
			"registration_disabled":      false,
			"registration_shared_secret": h.registrationSecret,
			"guests_disabled":            false,
			"rate_limiting":              section{"enabled": false},
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

// RegisterAdmin makes an administrator of a Dendrite that runs, as its create-account tool does, and returns their access
// token.
func (h *Homeserver) RegisterAdmin(ctx context.Context, name string) (token string, err error) {
	const path = "/_synapse/admin/v1/register"
	var begun struct {
		Nonce string `json:"nonce"`
	}
	if err := h.ask(ctx, http.MethodGet, path, nil, &begun); err != nil {
		return "", err
	}
	password := rand.Text()
	mac := hmac.New(sha1.New, []byte(h.registrationSecret))
	mac.Write([]byte(strings.Join([]string{begun.Nonce, name, password, "admin"}, "\x00")))
	var registered struct {
		Token string `json:"access_token"`
	}
	err = h.ask(ctx, http.MethodPost, path, map[string]any{
		"nonce": begun.Nonce, "username": name, "password": password, "admin": true, "mac": hex.EncodeToString(mac.Sum(nil)),
	}, &registered)
	if err == nil && registered.Token == "" {
		err = errors.New("the administrator that was registered has no access token")
	}
	return registered.Token, err
}

// ask puts a question to the homeserver's client API and decodes its 200.
func (h *Homeserver) ask(ctx context.Context, method, path string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, h.URL+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	response, err := h.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode == http.StatusOK {
		err = json.Unmarshal(said, answer)
	} else if err == nil {
		err = fmt.Errorf("%s answers %s %s with %s: %s", h.title(), method, path, response.Status, said)
	}
	return err
}
