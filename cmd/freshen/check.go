package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"freshen/internal/config"
	"freshen/internal/federation"
	"freshen/internal/homeserver"
	"freshen/internal/store"
)

type checkCmd struct{}

// Run looks at the file alone, and at what it names on this machine's disk, an SQLite database included: it connects to
// nothing and changes nothing.
func (*checkCmd) Run(line *cli, to console) error {
	cfg, path, err := line.load()
	if err != nil {
		return err
	}
	warning, err := checkFiles(cfg)
	if err != nil {
		return err
	}
	if warning != "" {
		fmt.Fprintf(to.err, "%s: warning: %s\n", path, warning)
	}
	fmt.Fprintf(to.out, "%s: ok\n", path)
	for _, row := range summary(cfg) {
		fmt.Fprintf(to.out, "  %-12s %s\n", row[0], row[1])
	}
	return nil
}

// checkFiles opens what the configuration names, and reports all that serve would stumble over. warning is a sentence
// about what would not stop it, or empty.
func checkFiles(cfg *config.Config) (warning string, err error) {
	wrong := map[string]string{}
	_, warning, err = federation.ReadSigningKey(cfg.Homeserver.SigningKey)
	if err != nil {
		wrong["homeserver.signing_key"] = err.Error()
	}
	if file := cfg.Federation.CAFile; file != "" {
		if why := noCertificates(file); why != "" {
			wrong["federation.ca_file"] = why
		}
	}
	if file := cfg.Homeserver.Synapse.SecretFile; file != "" {
		if why := unreadable(file); why != "" {
			wrong["homeserver.synapse.replication_secret_file"] = why
		}
	}
	if file := cfg.Homeserver.Dendrite.AdminTokenFile; file != "" {
		if _, err := homeserver.ReadToken(file); err != nil {
			wrong["homeserver.dendrite.admin_token_file"] = err.Error()
		}
	}
	if cfg.Database.URL == nil {
		if why := noPlaceForDatabase(cfg.Database.Path); why != "" {
			wrong["database"] = why
		} else if err := store.CheckFile(context.Background(), cfg.Database.Path); err != nil {
			wrong["database"] = strings.TrimPrefix(err.Error(), "database: ")
		}
	}
	return warning, cfg.Reject(wrong)
}

func unreadable(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return cannot("open", path, err)
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return cannot("open", path, err)
	case info.IsDir():
		return path + " is a folder, must be a file"
	}
	return ""
}

func noCertificates(path string) string {
	if why := unreadable(path); why != "" {
		return why
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return cannot("read", path, err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return path + " holds no certificate in PEM format"
	}
	return ""
}

// noPlaceForDatabase lets a file be absent, since serve makes it, but not its folder.
func noPlaceForDatabase(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path + " is a folder, must be a file"
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cannot("open", path, err)
	}
	folder := filepath.Dir(path)
	info, err := os.Stat(folder)
	switch {
	case err != nil:
		return cannot("open", folder, err)
	case !info.IsDir():
		return folder + " is no folder"
	}
	return ""
}

// cannot says why without the system call's name.
func cannot(do, path string, err error) string {
	if inner, ok := errors.AsType[*fs.PathError](err); ok {
		err = inner.Err
	}
	return fmt.Sprintf("cannot %s %s: %v", do, path, err)
}

// summary says in a few rows what serve would do. It shows no password.
func summary(cfg *config.Config) [][2]string {
	rows := [][2]string{
		{"listen", cfg.Listen + " for the reverse proxy, " + cfg.Admin.Listen + " for operators"},
		{"homeserver", fmt.Sprintf("%s at %s (kind: %s)", cfg.Homeserver.Name, cfg.Homeserver.URL, cfg.Homeserver.Kind)},
		{"signing key", cfg.Homeserver.SigningKey},
		{"database", cfg.Database.Redacted()},
	}
	servers := "all"
	if allow := cfg.Federation.AllowServers; len(allow) > 0 {
		servers = "only " + strings.Join(allow, ", ")
	}
	if deny := cfg.Federation.DenyServers; len(deny) > 0 {
		servers += ", but not " + strings.Join(deny, ", ")
	}
	return append(rows, [2]string{"servers", servers})
}
