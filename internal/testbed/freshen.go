package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v4"
)

// Settings of freshen in the testbed that are not the defaults, since the scenario must not take hours.
const (
	// FirstRetry is when a failed destination is tried again; the default is 30 s.
	FirstRetry = 2 * time.Second
	// SuccessCache is how long a success answers further requests; the default is 30 s.
	SuccessCache = 10 * time.Millisecond
	// FailureCache is how long a failure answers further requests; the default is 10 s.
	FailureCache = time.Second
)

// Freshen is freshen before homeserver A, in a process of its own. Its database and port stay the same over Stop, Kill
// and Start.
type Freshen struct {
	// URL is where A's clients connect to.
	URL string
	// AdminURL is its health and metrics listener.
	AdminURL string
	// LogFile is where its output goes; ConfigFile what it was started with; DatabaseFile its SQLite database.
	LogFile, ConfigFile, DatabaseFile string

	binary  string
	http    *http.Client
	process *Process
}

func newFreshen(ctx context.Context, binary string, w *World, options Options) (*Freshen, error) {
	dir := filepath.Join(w.Dir, "freshen")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("no folder for freshen: %w", err)
	}
	listen, err := freePort(ctx, localhost)
	if err != nil {
		return nil, err
	}
	admin, err := freePort(ctx, localhost)
	if err != nil {
		return nil, err
	}
	f := &Freshen{
		URL: "http://" + listen.String(), AdminURL: "http://" + admin.String(),
		LogFile: filepath.Join(dir, "freshen.log"), ConfigFile: filepath.Join(dir, "freshen.yaml"),
		DatabaseFile: filepath.Join(dir, "freshen.db"),
		binary:       binary, http: w.http,
	}
	return f, f.writeConfig(ctx, listen, admin, w, options)
}

func (f *Freshen) writeConfig(ctx context.Context, listen, admin netip.AddrPort, w *World, options Options) error {
	before := section{"name": w.A.ServerName, "url": w.A.URL, "signing_key": w.A.SigningKeyFile}
	if options.Delivery {
		if err := f.deliver(ctx, w.A, before); err != nil {
			return err
		}
	}
	config := section{
		"listen":     listen.String(),
		"homeserver": before,
		"database":   f.DatabaseFile,
		"federation": section{"ca_file": w.CA.File, "allow_networks": []string{"127.0.0.0/8"}},
		"cache":      section{"success": SuccessCache.String(), "failure": FailureCache.String()},
		"retry":      section{"first": FirstRetry.String()},
		"admin":      section{"listen": admin.String()},
	}
	if options.ManyRefreshes {
		config["limits"] = section{"per_destination": section{"every": "1ms", "burst": 1000}}
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("the configuration of freshen: %w", err)
	}
	if err := os.WriteFile(f.ConfigFile, data, 0o600); err != nil {
		return fmt.Errorf("the configuration of freshen cannot be written: %w", err)
	}
	return nil
}

// deliver has homeserver A, which runs, announce changes itself. before is its part of the configuration.
func (f *Freshen) deliver(ctx context.Context, a *Homeserver, before section) error {
	secret, name := a.ReplicationSecret, "replication_secret"
	if a.Kind == Dendrite {
		var err error
		if secret, err = a.RegisterAdmin(ctx, "freshen"); err != nil {
			return fmt.Errorf("no administrator of freshen's homeserver: %w", err)
		}
		name = "admin_token"
	}
	file := filepath.Join(filepath.Dir(f.ConfigFile), name)
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		return fmt.Errorf("what freshen proves itself to its homeserver with cannot be written: %w", err)
	}
	if a.Kind == Dendrite {
		before["kind"], before["dendrite"] = "dendrite", section{"admin_token_file": file}
		return nil
	}
	before["kind"] = "synapse"
	before["synapse"] = section{"database": a.DatabaseURL().String(), "replication": a.Replication, "replication_secret_file": file}
	return nil
}

// Start runs freshen and returns when it answers and says in /versions what it adds. ctx bounds the wait, not freshen's
// life.
func (f *Freshen) Start(ctx context.Context) error {
	process, err := StartProcess(ctx, "freshen", f.LogFile, f.binary, []string{"serve", "--config", f.ConfigFile}, nil)
	if err != nil {
		return err
	}
	f.process = process
	return process.AwaitReady(ctx, f.http, f.URL+"/_matrix/client/versions", func(status int, body []byte) bool {
		var versions struct {
			Unstable map[string]bool `json:"unstable_features"`
		}
		return status == http.StatusOK && json.Unmarshal(body, &versions) == nil && versions.Unstable["org.matrix.msc2638"]
	})
}

// Stop ends freshen in order (SIGTERM). It may be started again; a stopped one is left alone.
func (f *Freshen) Stop(ctx context.Context) error {
	if f.process == nil {
		return nil
	}
	err := f.process.Stop(ctx)
	f.process = nil
	return err
}

// Kill ends freshen with SIGKILL, as a power cut or the out-of-memory killer would.
func (f *Freshen) Kill() {
	if f.process != nil {
		f.process.Kill()
		f.process = nil
	}
}

// Command is another command of the same program with the same configuration: "doctor", "owed".
func (f *Freshen) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, f.binary, append(args, "--config", f.ConfigFile)...)
}

// LogTail is the end of freshen's log, for a person who must find out why a test failed.
func (f *Freshen) LogTail() string { return string(tail(f.LogFile)) }
