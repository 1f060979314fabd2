// Package config reads freshen.yaml, the one configuration file.
//
// Unknown and repeated keys are refused, and every mistake is reported at once with its line and key: whoever writes
// the file mends it in one go. Every key has a default except homeserver.name, homeserver.url and
// homeserver.signing_key.
//
// A key stands in one place, where read takes it: its name, what it is, its bounds, and where its value goes, which holds the
// default. The table in docs/configuration.md and what freshen init writes come from there, see [Reference].
package config

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// MaxBytes bounds the size of a configuration file.
const MaxBytes = 1 << 20

// The environment variables that override a key of the file. One that is set but empty counts as not set.
const (
	EnvDatabase    = "FRESHEN_DATABASE"
	EnvListen      = "FRESHEN_LISTEN"
	EnvAdminListen = "FRESHEN_ADMIN_LISTEN"
)

// Config is a configuration in which every value has been checked. Paths are as they can be opened: those that the file
// gives relative to itself have its folder in front.
type Config struct {
	// Listen is where the reverse proxy sends /_matrix/, an address of package listen; port 0 lets the system choose.
	Listen     string
	Homeserver Homeserver
	Database   Database
	Federation Federation
	Limits     Limits
	Cache      Cache
	Retry      Retry
	Page       bool // serve the page for people whose client has no button
	Admin      Admin
	Log        Log

	file   string
	places map[string]Mistake
}

// Homeserver is the one that freshen stands in front of.
type Homeserver struct {
	// Name is its server name, a valid one.
	Name string
	// URL is its client-server API: http or https, a host, perhaps a path, nothing else. The path does not end in "/".
	URL *url.URL
	// SigningKey is the path of its private key; whether that file can be read is not checked here.
	SigningKey string
	Kind       Kind
	Synapse    Synapse
	Dendrite   Dendrite
}

// Synapse is how a Synapse is told that one of its device lists is stale; see docs/delivery.md. All is empty, or database
// and replication are not.
type Synapse struct {
	// Database is Synapse's own, a Postgres server.
	Database Database
	// Replication is the replication listener of its main process, or of the worker that writes device lists.
	Replication *url.URL
	// SecretFile holds Synapse's worker_replication_secret; empty where it has none.
	SecretFile string
}

// Dendrite is how a Dendrite is told that one of its device lists is stale; see docs/delivery.md.
type Dendrite struct {
	// AdminTokenFile holds the access token of an administrator; empty where Dendrite is told nothing.
	AdminTokenFile string
}

// Kind says which homeserver it is, for what differs between them.
type Kind string

// The values of homeserver.kind.
const (
	KindAuto     Kind = "auto"
	KindGeneric  Kind = "generic"
	KindSynapse  Kind = "synapse"
	KindDendrite Kind = "dendrite"
)

// Federation bounds what freshen asks of other servers, and of which.
type Federation struct {
	// Timeout bounds one refresh, from the name lookup to the last byte.
	Timeout time.Duration
	// CAFile is a PEM file of further root certificates, or empty.
	CAFile string
	// AllowNetworks may be dialled although they are private, loopback or reserved. Masked, IPv4 never mapped to IPv6.
	AllowNetworks []netip.Prefix
	// AllowServers and DenyServers are globs, see [Federation.ServerAllowed].
	AllowServers, DenyServers []string
}

// Limits says who may ask how often for what.
type Limits struct {
	PerUser, PerDestination Rate
	// SharedRoomsOnly refuses a target with whom the requester shares no room.
	SharedRoomsOnly bool
}

// Rate is a bucket of Burst tokens that gains one each Every.
type Rate struct {
	Every time.Duration
	Burst int
}

// Cache says how long a refresh answers for those that follow it.
type Cache struct {
	Success, Failure time.Duration
}

// Retry says when a debt is tried again: after First, doubling up to Most, until GiveUpAfter has passed.
type Retry struct {
	First, Most, GiveUpAfter time.Duration
}

// Admin is the listener for operators, never the public one.
type Admin struct {
	// Listen is an address of package listen; port 0 lets the system choose.
	Listen string
	// Pprof serves Go's profiles there.
	Pprof bool
}

// Log says what is logged, and how.
type Log struct {
	Level  slog.Level
	Format LogFormat
}

// LogFormat is how a log line is written.
type LogFormat string

// The values of log.format.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Default is the configuration of an empty file. It lacks what is required: the homeserver's name, URL and signing key.
func Default() *Config {
	return &Config{
		Listen:     "127.0.0.1:8009",
		Homeserver: Homeserver{Kind: KindAuto},
		Database:   Database{Path: "freshen.db"},
		Federation: Federation{Timeout: 10 * time.Second},
		Limits: Limits{
			PerUser:        Rate{Every: 6 * time.Second, Burst: 10},
			PerDestination: Rate{Every: time.Second, Burst: 20},
		},
		Cache: Cache{Success: 30 * time.Second, Failure: 10 * time.Second},
		Retry: Retry{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 7 * 24 * time.Hour},
		Page:  true,
		Admin: Admin{Listen: "127.0.0.1:9009"},
		Log:   Log{Level: slog.LevelInfo, Format: LogText},
	}
}

// Load reads and checks the file at path, with the environment's overrides. Mistakes in it are a [*Mistakes]; any other
// error means that it could not be read.
func Load(path string) (*Config, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	return Parse(path, data, os.Getenv)
}

// Parse checks data, the content of the file at path, which it does not open. getenv looks up the variables that
// override keys. Every error is a [*Mistakes].
func Parse(path string, data []byte, getenv func(string) string) (*Config, error) {
	report := &report{places: map[string]Mistake{}, credentials: cmp.Or(getenv(envCredentials), serviceCredentials)}
	cfg := Default()
	cfg.file, cfg.places = filepath.Base(path), report.places
	if root := parseYAML(report, data); root != nil {
		dir := filepath.Dir(path)
		cfg.Database.Path = within(dir, cfg.Database.Path)
		cfg.read(root, dir, getenv)
	}
	if err := report.err(cfg.file); err != nil {
		return nil, err
	}
	return cfg, nil
}

// Reject makes an error, a [*Mistakes], of what turned out to be wrong with values only when they were used, such as a
// file that cannot be opened: texts by key ("homeserver.signing_key"), which go on as in [Mistake.Text]. It is nil where
// there are none.
func (c *Config) Reject(texts map[string]string) error {
	var found report
	for key, text := range texts {
		mistake := c.places[key]
		mistake.Key, mistake.Text = key, text
		found.add(mistake)
	}
	return found.err(c.file)
}

// read takes each key from the file and leaves the default where it is absent. dir is what relative paths are relative
// to.
func (c *Config) read(root *section, dir string, getenv func(string) string) {
	root.override("listen", EnvListen, getenv)
	root.override("database", EnvDatabase, getenv)

	root.is("Where nginx or Caddy sends `/_matrix/`").listener("listen", &c.Listen)
	root.is("freshen's own database").database("database", &c.Database, dir)
	homeserver := root.section("homeserver")
	c.Homeserver.read(homeserver, dir)
	if u := c.Homeserver.URL; u != nil && u.Host == c.Listen {
		homeserver.mistake("url", "must be the homeserver's own address, is the one that freshen listens on, %s", c.Listen)
	}
	c.Federation.read(root.section("federation"), dir)

	limits := root.section("limits")
	limits.rate("per_user", &c.Limits.PerUser, "A user may ask again each …")
	limits.rate("per_destination", &c.Limits.PerDestination, "A server is asked again each …")
	limits.is("Refuse a target who shares no room with the one who asks").boolean("shared_rooms_only", &c.Limits.SharedRoomsOnly)
	limits.done()

	cache := root.section("cache")
	cache.is("How long a fetched list answers further requests").duration("success", &c.Cache.Success, time.Millisecond, time.Hour)
	cache.is("How long a failure answers further requests").duration("failure", &c.Cache.Failure, time.Millisecond, time.Hour)
	cache.done()

	c.Retry.read(root.section("retry"))

	root.is("Serve [the page](page.md) on which people refresh their contacts' lists").boolean("page", &c.Page)

	admin := root.section("admin")
	admin.override("listen", EnvAdminListen, getenv)
	admin.is("`/health`, `/ready`, `/owed` and `/metrics`, for operators only", "as `listen`, but not the same").listener("listen", &c.Admin.Listen)
	if sameListener(c.Admin.Listen, c.Listen) {
		admin.mistake("listen", "must differ from the public listen, %s", c.Listen)
	}
	admin.is("Serve Go's profiles at `/debug/pprof/` of `admin.listen`").boolean("pprof", &c.Admin.Pprof)
	admin.done()

	log := root.section("log")
	log.is("The least that is logged").level("level", &c.Log.Level)
	oneOf(log.is("How it is written"), "format", &c.Log.Format, LogText, LogJSON)
	log.done()

	root.done()
}

func (h *Homeserver) read(s *section, dir string) {
	s.required("name")
	s.required("url")
	s.required("signing_key")
	s.is("The server name: the domain in its user IDs").serverName("name", &h.Name)
	s.is("Its client-server API, as freshen reaches it").httpURL("url", &h.URL)
	s.is("The file of its signing key", "Synapse's `signing.key` or Dendrite's `matrix_key.pem`; or `credential:NAME`, see below").file("signing_key", &h.SigningKey, dir)
	oneOf(s.is("Which homeserver it is; without effect but for the next four keys"), "kind", &h.Kind, KindAuto, KindGeneric, KindSynapse, KindDendrite)
	synapse := s.section("synapse")
	h.Synapse.read(synapse, dir)
	if h.Synapse.Replication != nil && h.Kind != KindSynapse {
		synapse.mistake("replication", "needs homeserver.kind: synapse")
	}
	dendrite := s.section("dendrite")
	dendrite.is("A file with the access token of an administrator and nothing else, where Dendrite is to [announce changes itself](delivery.md)", "a path").optionalFile("admin_token_file", &h.Dendrite.AdminTokenFile, dir)
	dendrite.done()
	if h.Dendrite.AdminTokenFile != "" && h.Kind != KindDendrite {
		dendrite.mistake("admin_token_file", "needs homeserver.kind: dendrite")
	}
	s.done()
}

func (y *Synapse) read(s *section, dir string) {
	before := s.mistakes()
	s.is("Synapse's own database, where it is to [announce changes itself](delivery.md)", "`postgres://user:password@host/name`").
		database("database", &y.Database, dir)
	s.is("The replication listener of Synapse's main process, or of the worker that writes device lists").httpURL("replication", &y.Replication)
	s.is("A file with Synapse's `worker_replication_secret` and nothing else", "a path").
		optionalFile("replication_secret_file", &y.SecretFile, dir)
	s.done()
	if s.mistakes() > before {
		return
	}
	switch {
	case y.Database.Path != "":
		s.mistake("database", "must be the postgres:// URL of Synapse's own database")
	case y.Database.URL != nil && y.Replication == nil:
		s.mistake("replication", "is required where homeserver.synapse.database stands, and missing")
	case y.Database.URL == nil && (y.Replication != nil || y.SecretFile != ""):
		s.mistake("database", "is required for the rest of homeserver.synapse, and missing")
	}
}

func (f *Federation) read(s *section, dir string) {
	s.is("One refresh, from the name lookup to the last byte").duration("timeout", &f.Timeout, 100*time.Millisecond, 5*time.Minute)
	s.is("Root certificates to trust besides the system's", "a PEM file").optionalFile("ca_file", &f.CAFile, dir)
	s.is("[Private and reserved networks](federation.md#refused-networks) that may be dialled all the same").
		networks("allow_networks", &f.AllowNetworks)
	s.is("If not empty, the only servers that are asked", "globs, see below").serverGlobs("allow_servers", &f.AllowServers)
	s.is("Servers that are never asked, even if allowed").serverGlobs("deny_servers", &f.DenyServers)
	s.done()
}

func (r *Retry) read(s *section) {
	const day = 24 * time.Hour
	before := s.mistakes()
	fromFirst := func(most time.Duration) string { return "`retry.first` to `" + short(most) + "`" }
	s.is("How long after a failure the server is tried again").duration("first", &r.First, 10*time.Millisecond, day)
	s.is("Where the doubling of that ends", fromFirst(30*day)).duration("most", &r.Most, 10*time.Millisecond, 30*day)
	s.is("When what is owed is given up", fromFirst(365*day)).duration("give_up_after", &r.GiveUpAfter, 10*time.Millisecond, 365*day)
	if s.mistakes() == before {
		if r.Most < r.First {
			s.mistake("most", "must be at least retry.first (%s), is %s", short(r.First), short(r.Most))
		}
		if r.GiveUpAfter < r.First {
			s.mistake("give_up_after", "must be at least retry.first (%s), is %s", short(r.First), short(r.GiveUpAfter))
		}
	}
	s.done()
}
