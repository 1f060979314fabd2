package config_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"freshen/internal/config"
)

const required = "homeserver: {name: example.org, url: http://127.0.0.1:8008, signing_key: /k}\n"

func noEnv(string) string { return "" }

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("/etc/freshen/freshen.yaml", []byte(text), noEnv)
	if err != nil {
		t.Fatalf("a good configuration is refused:\n%v", err)
	}
	return cfg
}

var ignorePlaces = cmpopts.IgnoreUnexported(config.Config{})

var compareURLs = cmp.Comparer(func(a, b *url.URL) bool {
	return a == b || a != nil && b != nil && a.String() == b.String()
})

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// A site's file in which every key stands must come out as written: the keys are what others write their files by.
func TestEveryKey(t *testing.T) {
	t.Parallel()
	got := parse(t, `
listen: "[::1]:8010"
homeserver:
  name: matrix.example.org:8448
  url: https://hs.example.org/base/
  signing_key: keys/signing.key
  kind: dendrite
database: postgresql://f:pw@db/freshen?sslmode=disable
federation:
  timeout: 20s
  ca_file: ca.pem
  allow_networks: [10.0.0.0/8, "fd00::/8"]
  allow_servers:
    - "*.example.org"
  deny_servers: ["evil.example.org", "[2001:db8::*"]
limits:
  per_user: {every: 1m, burst: 1}
  per_destination: {every: 500ms, burst: 3}
  shared_rooms_only: true
cache: {success: 1m, failure: 5s}
retry: {first: 1m, most: 1h, give_up_after: 48h}
page: false
admin: {listen: localhost:9}
log: {level: debug, format: json}
`)
	want := &config.Config{
		Listen: "[::1]:8010",
		Homeserver: config.Homeserver{
			Name: "matrix.example.org:8448", URL: mustURL(t, "https://hs.example.org/base"),
			SigningKey: "/etc/freshen/keys/signing.key", Kind: config.KindDendrite,
		},
		Database: config.Database{URL: mustURL(t, "postgresql://f:pw@db/freshen?sslmode=disable")},
		Federation: config.Federation{
			Timeout: 20 * time.Second, CAFile: "/etc/freshen/ca.pem",
			AllowNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
			AllowServers:  []string{"*.example.org"},
			DenyServers:   []string{"evil.example.org", "[2001:db8::*"},
		},
		Limits: config.Limits{
			PerUser:         config.Rate{Every: time.Minute, Burst: 1},
			PerDestination:  config.Rate{Every: 500 * time.Millisecond, Burst: 3},
			SharedRoomsOnly: true,
		},
		Cache: config.Cache{Success: time.Minute, Failure: 5 * time.Second},
		Retry: config.Retry{First: time.Minute, Most: time.Hour, GiveUpAfter: 48 * time.Hour},
		Admin: config.Admin{Listen: "localhost:9"},
		Log:   config.Log{Level: slog.LevelDebug, Format: config.LogJSON},
	}
	if diff := cmp.Diff(want, got, compareURLs, comparePrefixes, ignorePlaces); diff != "" {
		t.Errorf("the configuration differs from the file (-want +got):\n%s", diff)
	}
}

// A file with only what is required must get the documented defaults; so must one whose sections stand empty because
// all below them is commented out.
func TestDefaults(t *testing.T) {
	t.Parallel()
	want := config.Default()
	want.Homeserver = config.Homeserver{
		Name: "example.org", URL: mustURL(t, "http://127.0.0.1:8008"), SigningKey: "/k", Kind: "auto",
	}
	want.Database.Path = "/etc/freshen/freshen.db"
	want.Listen, want.Admin.Listen = "127.0.0.1:8009", "127.0.0.1:9009"
	want.Federation.Timeout = 10 * time.Second
	want.Retry = config.Retry{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 168 * time.Hour}
	for name, text := range map[string]string{
		"required only":  required,
		"empty sections": required + "federation:\n  allow_servers:\n  ca_file: \"\"\nlimits: ~\ncache: {success: null}\nretry:\nlog:\n",
		"document mark":  "# freshen\n---\n" + required,
		"alias":          "homeserver: {name: &n example.org, url: http://127.0.0.1:8008, signing_key: /k}\nfederation: {ca_file: ''}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(want, parse(t, text), compareURLs, comparePrefixes, ignorePlaces); diff != "" {
				t.Errorf("defaults differ (-want +got):\n%s", diff)
			}
		})
	}
}

// Whoever writes the file must see all that is wrong with it at once, whatever kinds of mistakes they are.
func TestEveryMistakeAtOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{name: "five of five kinds", text: `listen: 8009
homeserver:
  name: "@alice:example.org"
  signing_key: [a, b]
limits:
  per_user: {every: 6, burst: 0}
  per_usr: {every: 6s}
`, want: []string{
			`freshen.yaml:1: listen: must be host:port, such as 127.0.0.1:8009 or [::1]:8009, is "8009"`,
			`freshen.yaml:2: homeserver.url: is required and missing`,
			`freshen.yaml:3: homeserver.name: must be a server name as in user IDs, such as example.org, is "@alice:example.org"`,
			`freshen.yaml:4: homeserver.signing_key: must be a single value, is a list`,
			`freshen.yaml:6: limits.per_user.burst: must be at least 1, is 0`,
			`freshen.yaml:6: limits.per_user.every: must be a duration with its unit, such as 30s or 1h30m, is "6"`,
			`freshen.yaml:7: limits.per_usr: is no key that freshen knows; here may stand per_user, per_destination, shared_rooms_only`,
		}},
		{name: "nothing at all", text: "", want: []string{
			"freshen.yaml:1: homeserver.name: is required and missing",
			"freshen.yaml:1: homeserver.signing_key: is required and missing",
			"freshen.yaml:1: homeserver.url: is required and missing",
		}},
		{name: "sections that are none", text: "homeserver: example.org\nlimits:\n  per_user: 10\n  per_destination: [1]\n", want: []string{
			"freshen.yaml:1: homeserver: must be a mapping of keys to values, is a single value",
			"freshen.yaml:3: limits.per_user: must be a mapping of keys to values, is a single value",
			"freshen.yaml:4: limits.per_destination: must be a mapping of keys to values, is a list",
		}},
		{name: "the whole file is a list", text: "- a\n- b\n", want: []string{
			"freshen.yaml:1: must be a mapping of keys to values, is a list",
		}},
		{name: "twice", text: required + "listen: 127.0.0.1:1\nlog: {level: info, level: debug}\nlisten: 127.0.0.1:2\n", want: []string{
			"freshen.yaml:3: log.level: stands here a second time, first on line 3",
			"freshen.yaml:4: listen: stands here a second time, first on line 2",
		}},
		{name: "lists", text: required + `federation:
  allow_networks: [10.0.0.0, 10.1.0.0/8, "::ffff:10.0.0.0/104", {a: b}]
  allow_servers: example.org
  deny_servers:
    - https://example.org
    - ""
    - 2001:db8::1
    - ex ample.org
    - example.org:https
    -
`, want: []string{
			`freshen.yaml:3: federation.allow_networks[0]: must be a network in CIDR notation, such as 10.0.0.0/8 or fd00::/8, is "10.0.0.0"`,
			`freshen.yaml:3: federation.allow_networks[1]: has bits set behind its prefix: 10.1.0.0/8 means 10.0.0.0/8`,
			`freshen.yaml:3: federation.allow_networks[2]: must be written as the IPv4 network that it means, is "::ffff:10.0.0.0/104"`,
			`freshen.yaml:3: federation.allow_networks[3]: must be a single value, is a mapping`,
			`freshen.yaml:4: federation.allow_servers: must be a list, is a single value`,
			`freshen.yaml:6: federation.deny_servers[0]: must be a server name, perhaps with * and ?, without scheme, path or user, is "https://example.org"`,
			`freshen.yaml:7: federation.deny_servers[1]: must be a server name, perhaps with * and ?, of 1 to 255 characters, is ""`,
			`freshen.yaml:8: federation.deny_servers[2]: must be a server name, perhaps with * and ?, an IPv6 literal in brackets, is "2001:db8::1"`,
			`freshen.yaml:9: federation.deny_servers[3]: must be a server name, perhaps with * and ?, of letters, digits, dots and hyphens, is "ex ample.org"`,
			`freshen.yaml:10: federation.deny_servers[4]: must be a server name, perhaps with * and ?, with digits in the port, is "example.org:https"`,
			`freshen.yaml:11: federation.deny_servers[5]: must be a single value, is empty`,
		}},
		{name: "a loop", text: "listen: 127.0.0.1:8008\n" + required, want: []string{
			"freshen.yaml:2: homeserver.url: must be the homeserver's own address, is the one that freshen listens on, 127.0.0.1:8008",
		}},
		{name: "one socket for two", text: required + "listen: unix:/run/f.sock\nadmin: {listen: 'unix:/run/f.sock?mode=0600'}\n", want: []string{
			"freshen.yaml:3: admin.listen: must differ from the public listen, unix:/run/f.sock",
		}},
		{name: "sockets and credentials", text: "listen: unix:f.sock\nadmin: {listen: 'fd:'}\nhomeserver: {name: a.org, url: 'http://a:1', signing_key: 'credential:../x'}\n", want: []string{
			`freshen.yaml:1: listen: must name a socket by its whole path, such as unix:/run/freshen/freshen.sock, is "unix:f.sock"`,
			`freshen.yaml:2: admin.listen: must name a passed socket by its FileDescriptorName=, such as fd:public, is "fd:"`,
			`freshen.yaml:3: homeserver.signing_key: must name a credential as LoadCredential= does, such as credential:signing_key, is "credential:../x"`,
		}},
		{name: "rules over two keys", text: required + "admin: {listen: '127.0.0.1:8009'}\nretry:\n  first: 2h\n  most: 1h\n  give_up_after: 1h\n", want: []string{
			"freshen.yaml:2: admin.listen: must differ from the public listen, 127.0.0.1:8009",
			"freshen.yaml:5: retry.most: must be at least retry.first (2h), is 1h",
			"freshen.yaml:6: retry.give_up_after: must be at least retry.first (2h), is 1h",
		}},
		{name: "values", text: required + `listen: 127.0.0.1:99999
admin: {listen: "a b:1"}
federation: {timeout: 1h, ca_file: !env CA}
limits: {shared_rooms_only: yes, per_user: {burst: 1.5}, per_destination: {burst: 9999999}}
log: {level: verbose, format: xml}
cache: {success: -1s}
`, want: []string{
			`freshen.yaml:2: listen: must end in a port from 0 to 65535, is "127.0.0.1:99999"`,
			`freshen.yaml:3: admin.listen: must begin with an IP address or a host name, is "a b:1"`,
			`freshen.yaml:4: federation.ca_file: has the tag "!env", which freshen does not know`,
			`freshen.yaml:4: federation.timeout: must be from 100ms to 5m, is 1h`,
			`freshen.yaml:5: limits.per_destination.burst: must be at most 1000000, is 9999999`,
			`freshen.yaml:5: limits.per_user.burst: must be a whole number, is "1.5"`,
			`freshen.yaml:5: limits.shared_rooms_only: must be true or false, is "yes"`,
			`freshen.yaml:6: log.format: must be text or json, is "xml"`,
			`freshen.yaml:6: log.level: must be debug, info, warn or error, is "verbose"`,
			`freshen.yaml:7: cache.success: must be from 1ms to 1h, is -1s`,
		}},
		{name: "keys that are no words", text: required + "\"a\\nb\": 1\n? [x]\n: y\n", want: []string{
			`freshen.yaml:2: "a\nb": is no key that freshen knows; here may stand listen, database, homeserver, federation, limits, cache, retry, page, admin, log`,
			"freshen.yaml:3: has a key that is no plain word, but a list",
		}},
		{name: "merge keys are keys", text: required + "log: {<<: {level: info}}\n", want: []string{
			`freshen.yaml:2: log.<<: is no key that freshen knows; here may stand level, format`,
		}},
		{name: "no YAML", text: "a: b\n- c\n", want: []string{
			"freshen.yaml:2: cannot be parsed as YAML: did not find expected key",
		}},
		{name: "an open quote", text: "a: b\nb: 'c\nd: e\nf: g\n", want: []string{
			"freshen.yaml:2: cannot be parsed as YAML: while scanning a quoted scalar: found unexpected end of stream",
		}},
		{name: "two documents", text: required + "---\n" + required, want: []string{
			"freshen.yaml: cannot be parsed as YAML: expected single document, found multiple",
		}},
		{name: "too large", text: required + strings.Repeat("# far too much\n", 80_000), want: []string{
			"freshen.yaml: is larger than 1 MiB, which no configuration is",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Parse("/x/freshen.yaml", []byte(test.text), noEnv)
			if _, ok := errors.AsType[*config.Mistakes](err); !ok {
				t.Fatalf("error is %v, want mistakes", err)
			}
			if diff := cmp.Diff(test.want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("mistakes differ (-want +got):\n%s", diff)
			}
		})
	}
}

// A site that mistypes its homeserver's URL must be told so, or freshen would ask the wrong place with users' tokens.
// TestDendriteKeys: a failure means that a Dendrite is told, or not told, of stale lists against its administrator's wish.
func TestDendriteKeys(t *testing.T) {
	t.Parallel()
	file := func(kind, dendrite string) string {
		return "homeserver:\n  name: example.org\n  url: http://127.0.0.1:8008\n  signing_key: k\n  kind: " + kind + "\n  dendrite: " + dendrite + "\n"
	}
	if got := parse(t, file("dendrite", "{admin_token_file: token}")).Homeserver.Dendrite; got.AdminTokenFile != "/etc/freshen/token" {
		t.Errorf("%+v", got)
	}
	for _, kind := range []string{"auto", "generic", "synapse", "dendrite"} {
		if got := parse(t, file(kind, "{}")).Homeserver.Dendrite; got.AdminTokenFile != "" {
			t.Errorf("kind %s alone gives %+v", kind, got)
		}
		if kind == "dendrite" {
			continue
		}
		_, err := config.Parse("/etc/freshen/freshen.yaml", []byte(file(kind, "{admin_token_file: token}")), noEnv)
		if err == nil || !strings.Contains(err.Error(), "homeserver.dendrite.admin_token_file: needs homeserver.kind: dendrite") {
			t.Errorf("with kind %s: %v", kind, err)
		}
	}
}

// TestSynapseKeys: a failure means that a site whose homeserver should announce changes itself starts without that, or with
// half of it.
func TestSynapseKeys(t *testing.T) {
	t.Parallel()
	file := func(kind, synapse string) string {
		return "homeserver:\n  name: example.org\n  url: http://127.0.0.1:8008\n  signing_key: k\n  kind: " + kind + "\n  synapse: " + synapse + "\n"
	}
	const all = "{database: 'postgres://freshen:pw@127.0.0.1/synapse', replication: 'http://127.0.0.1:9093', replication_secret_file: secret}"
	got := parse(t, file("synapse", all)).Homeserver.Synapse
	if got.Database.URL.Path != "/synapse" || got.Replication.String() != "http://127.0.0.1:9093" || got.SecretFile != "/etc/freshen/secret" {
		t.Errorf("the keys are read as %+v", got)
	}
	for text, want := range map[string]string{
		file("auto", all): "homeserver.synapse.replication: needs homeserver.kind: synapse",
		file("synapse", "{replication: 'http://127.0.0.1:9093'}"):         "homeserver.synapse.database: is required for the rest of homeserver.synapse, and missing",
		file("synapse", "{replication_secret_file: s}"):                   "homeserver.synapse.database: is required for the rest of homeserver.synapse, and missing",
		file("synapse", "{database: 'postgres://h/d'}"):                   "homeserver.synapse.replication: is required where homeserver.synapse.database stands, and missing",
		file("synapse", "{database: x.db, replication: 'http://h:9093'}"): "homeserver.synapse.database: must be the postgres:// URL of Synapse's own database",
	} {
		_, err := config.Parse("/etc/freshen/freshen.yaml", []byte(text), noEnv)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s\nis answered %v, want %s", text, err, want)
		}
	}
}

func TestHomeserverURL(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"127.0.0.1:8008", "ftp://h", "http://", "http:///x", "http://h:0", "http://h:99999", "http://h:", "http://u:SECRET@h",
		"http://h/?a=SECRET", "http://h?", "http://h#SECRET", "http://h:SECRET", "http://%zz", "/run/x.sock",
	} {
		text := fmt.Sprintf("homeserver: {name: h, signing_key: k, url: %q}", bad)
		_, err := config.Parse("f", []byte(text), noEnv)
		if err == nil {
			t.Errorf("%s is accepted", bad)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("the mistake shows what may be a secret: %v", err)
		}
	}
}

// A database password must not come to light, neither when the URL is good nor when it is mistyped.
func TestDatabasePasswordStaysHidden(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"postgres://u:SECRET/x@host/db", "postgres://u:SECRET#x@host/db", "postgres://u:SECRET%@host/db", "postgres://u:SECRET@host",
		"postgres://u:SECRET@/db", "mysql://u:SECRET@host/db", "file:SECRET.db", "postgres://u:SECRET@host/db#x", "[SECRET]",
	} {
		_, err := config.Parse("f", []byte(required+"database: "+bad), noEnv)
		if err == nil {
			t.Errorf("%s is accepted", bad)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("the mistake shows the password: %v", err)
		}
	}
	for good, want := range map[string]string{
		"postgres://u:SECRET@host/db":                         "postgres://u:xxxxx@host/db",
		"postgresql://u@host:5433/db?password=SECRET":         "postgresql://u@host:5433/db?password=xxxxx",
		"postgres:///db?host=/run/postgresql&sslmode=disable": "postgres:///db?host=%2Frun%2Fpostgresql&sslmode=disable",
		"postgres://u:p@host/?dbname=x&sslpassword=SECRET":    "postgres://u:xxxxx@host/?dbname=x&sslpassword=xxxxx",
	} {
		cfg := parse(t, required+"database: "+good)
		if got := cfg.Database.Redacted(); got != want {
			t.Errorf("redacted %s, want %s", got, want)
		}
		var log strings.Builder
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "database", cfg.Database, "config", cfg)
		for _, shown := range []string{fmt.Sprintf("%v %+v %#v %s", cfg.Database, cfg.Database, cfg.Database, &cfg.Database), fmt.Sprintf("%+v", cfg), log.String()} {
			if strings.Contains(shown, "SECRET") {
				t.Errorf("the password is shown: %s", shown)
			}
		}
	}
}

// A service that gets its database from the environment must get that one; a mistake there must name the variable, or
// the administrator searches the file for it.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	env := map[string]string{"FRESHEN_DATABASE": "run/x.db", "FRESHEN_LISTEN": "0.0.0.0:80"}
	cfg, err := config.Parse("/etc/f.yaml", []byte("listen: nonsense\ndatabase: a.db\n"+required), func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Listen != "0.0.0.0:80" || cfg.Database.Path != "run/x.db" {
		t.Errorf("listen %s and database %s are not the environment's", cfg.Listen, cfg.Database)
	}
	env = map[string]string{"FRESHEN_DATABASE": "mysql://x", "FRESHEN_LISTEN": "80"}
	_, err = config.Parse("/etc/f.yaml", []byte(required), func(k string) string { return env[k] })
	want := "FRESHEN_DATABASE: must be the path of an SQLite file or a postgres:// URL, is a URL of another kind\n" +
		`FRESHEN_LISTEN: must be host:port, such as 127.0.0.1:8009 or [::1]:8009, is "80"`
	if err == nil || err.Error() != want {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
}

// The service gets its key as a credential of systemd's; a command by hand finds it where systemd keeps it.
func TestCredentials(t *testing.T) {
	t.Parallel()
	text := "admin: {listen: 'fd:admin'}\nhomeserver: {name: a.org, url: 'http://a:1', signing_key: 'credential:signing_key'}\n"
	for folder, want := range map[string]string{
		"":                             "/run/credentials/freshen.service/signing_key",
		"/run/credentials/x@1.service": "/run/credentials/x@1.service/signing_key",
	} {
		env := map[string]string{"CREDENTIALS_DIRECTORY": folder, "FRESHEN_ADMIN_LISTEN": "unix:/run/a.sock"}
		cfg, err := config.Parse("/etc/f.yaml", []byte(text), func(k string) string { return env[k] })
		if err != nil || cfg.Homeserver.SigningKey != want || cfg.Admin.Listen != "unix:/run/a.sock" {
			t.Errorf("%q: %+v %v", folder, cfg, err)
		}
	}
}

// A file that cannot be opened must be reported like any other mistake, with the line that names it.
func TestReject(t *testing.T) {
	t.Parallel()
	env := map[string]string{"FRESHEN_DATABASE": "/x"}
	cfg, err := config.Parse("/etc/f.yaml", []byte("\n"+required), func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Reject(nil); err != nil {
		t.Errorf("nothing is rejected with %v", err)
	}
	err = cfg.Reject(map[string]string{"homeserver.signing_key": "is gone", "database": "is a folder", "federation.ca_file": "is gone"})
	want := "FRESHEN_DATABASE: is a folder\nf.yaml: federation.ca_file: is gone\nf.yaml:2: homeserver.signing_key: is gone"
	if err == nil || err.Error() != want {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
}

// serve and check read through Load: a file that is not there must be told apart from one with mistakes.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "freshen.yaml")
	var mistakes *config.Mistakes
	if _, err := config.Load(path); !errors.Is(err, os.ErrNotExist) || errors.As(err, &mistakes) {
		t.Errorf("a missing file gives %v", err)
	}
	if _, err := config.Load(dir); err == nil || errors.As(err, &mistakes) {
		t.Errorf("a folder gives %v", err)
	}
	if err := os.WriteFile(path, []byte("log: {level: loud}\n"+required), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); !errors.As(err, &mistakes) || len(mistakes.List) != 1 || mistakes.List[0].Line != 1 {
		t.Errorf("a mistake on line 1 gives %v", err)
	}
	t.Setenv(config.EnvDatabase, "/elsewhere/f.db")
	if err := os.WriteFile(path, []byte(required), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Database.Path != "/elsewhere/f.db" {
		t.Errorf("database %s is not the environment's", cfg.Database)
	}
}

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// No file, however broken, may crash the command that should say what is wrong with it, and each report line must stay
// one line.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", required, required + "federation: {deny_servers: ['*']}\n", "a: &a {b: *a}\n", "homeserver: &h {name: *h}\n",
		"homeserver: [[[[]]]]", "? {a: b}\n: c\n", "<<: *x", "a: !!binary x", "log: {level: !!null x}", "%YAML 1.2\n---\n...\n",
		"database: postgres://u:p@h/d?x#y", "\xff\xfe", "limits: {per_user: {every: 9999999999h}}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("dir/freshen.yaml", data, noEnv)
		if (cfg == nil) == (err == nil) {
			t.Fatalf("config %v and error %v", cfg, err)
		}
		if err == nil {
			if cfg.Homeserver.Name == "" || cfg.Homeserver.URL == nil || cfg.Homeserver.SigningKey == "" ||
				(cfg.Database.Path == "") == (cfg.Database.URL == nil) {
				t.Fatalf("accepted without what is required: %+v", cfg)
			}
			return
		}
		var mistakes *config.Mistakes
		if !errors.As(err, &mistakes) || len(mistakes.List) != strings.Count(err.Error(), "\n")+1 {
			t.Fatalf("not one line a mistake:\n%v", err)
		}
	})
}
