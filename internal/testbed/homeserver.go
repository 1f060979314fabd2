package testbed

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"
)

// Kind says which program a homeserver is.
type Kind string

// The kinds of homeservers. The zero value is Dendrite.
const (
	Dendrite Kind = "Dendrite"
	Synapse  Kind = "Synapse"
)

// Build returns the program of that kind: Dendrite's binary, or the Python that has Synapse; see
// [BuildDendrite] and [BuildSynapse].
func (k Kind) Build(ctx context.Context, progress io.Writer) (string, error) {
	if k == Synapse {
		return BuildSynapse(ctx, progress)
	}
	return BuildDendrite(ctx, progress)
}

// Homeserver is a homeserver in a process of its own. Its data and ports stay the same over Stop and Start.
type Homeserver struct {
	// Kind is which program it is.
	Kind Kind
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
	// Replication is where a Synapse serves its own workers, and ReplicationSecret what it asks of them. Empty for others.
	Replication, ReplicationSecret string

	registrationSecret string // of a Dendrite

	program  string
	dir      string
	database *url.URL // of a Synapse on Postgres; nil for SQLite
	ca       *CA
	certFile string
	keyFile  string
	client   netip.AddrPort
	tls      netip.AddrPort // where its federation API listens; the link may stand on the server name's port
	http     *http.Client
	args     []string
	env      []string
	process  *Process
}

// place is where a homeserver stands: name is where other servers reach it, listen where it listens itself.
type place struct{ name, listen netip.AddrPort }

// newHomeserver prepares a homeserver below the world's folder without starting it.
func (w *World) newHomeserver(ctx context.Context, name string, kind Kind, at place, options Options) (*Homeserver, error) {
	kind = cmp.Or(kind, Dendrite)
	program, err := kind.Build(ctx, options.Progress)
	if err != nil {
		return nil, err
	}
	h := &Homeserver{
		Kind: kind, Name: name, ServerName: at.name.String(), program: program, ca: w.CA, tls: at.listen, http: w.http,
		dir: filepath.Join(w.Dir, "homeserver-"+name),
	}
	h.LogFile = filepath.Join(h.dir, "log")
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, fmt.Errorf("no folder for %s: %w", h.title(), err)
	}
	if h.certFile, h.keyFile, err = w.CA.Issue("homeserver-"+name, net.IP(at.name.Addr().AsSlice())); err != nil {
		return nil, err
	}
	if h.client, err = freePort(ctx, at.name.Addr()); err != nil {
		return nil, err
	}
	h.URL = "http://" + h.client.String()
	if kind == Synapse {
		h.database = options.Postgres[name]
		return h, h.configureSynapse()
	}
	return h, h.configureDendrite()
}

// title names it to people.
func (h *Homeserver) title() string { return string(h.Kind) + " " + h.Name }

// section is a mapping of a configuration file.
type section = map[string]any

func (h *Homeserver) writeConfig(config section) error {
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("the configuration of %s: %w", h.title(), err)
	}
	if err := os.WriteFile(h.configFile(), data, 0o600); err != nil {
		return fmt.Errorf("the configuration of %s cannot be written: %w", h.title(), err)
	}
	return nil
}

func (h *Homeserver) configFile() string { return filepath.Join(h.dir, "config.yaml") }

// Start runs the homeserver and returns when it answers its clients. ctx bounds the wait, not the homeserver's life.
func (h *Homeserver) Start(ctx context.Context) error {
	process, err := StartProcess(ctx, h.title(), h.LogFile, h.program, h.args, h.env)
	if err != nil {
		return err
	}
	h.process = process
	return process.AwaitReady(ctx, h.http, h.URL+"/_matrix/client/versions", func(status int, _ []byte) bool {
		return status == http.StatusOK
	})
}

// Stop ends the homeserver in order (SIGTERM). It may be started again; a stopped one is left alone.
func (h *Homeserver) Stop(ctx context.Context) error {
	if h == nil || h.process == nil {
		return nil
	}
	err := h.process.Stop(ctx)
	h.process = nil
	return err
}

// Kill ends the homeserver with SIGKILL.
func (h *Homeserver) Kill() {
	if h.process != nil {
		h.process.Kill()
		h.process = nil
	}
}

// LogTail is the end of the homeserver's log, for a person who must find out why a test failed.
func (h *Homeserver) LogTail() string { return string(tail(h.LogFile)) }
