package config

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Key is one key of the file, as the reference in docs/configuration.md and the comments that freshen init writes tell of
// it. Names, defaults and bounds are noted down where the parser takes each key, so they cannot be others.
type Key struct {
	// Path is its whole path, such as limits.per_user.burst.
	Path string
	// Default is its value where it is absent, as the file would have it; "" where that is none, or where it is required.
	Default  string
	Required bool
	// What and Allowed are Markdown: what it is, and which values it takes.
	What, Allowed string
}

// Reference tells of every key, in the order in which the parser takes them.
func Reference() []Key {
	noted := &report{places: map[string]Mistake{}}
	root := &section{report: noted, line: 1, values: map[string]entry{}}
	Default().read(root, ".", func(string) string { return "" })
	keys := noted.keys
	for i, key := range keys {
		text := texts[key.Path]
		keys[i].What = text.what
		if text.allowed != "" {
			keys[i].Allowed = text.allowed
		}
	}
	return keys
}

// Table is the reference as a table in Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("| key | default | what it is | allowed |\n|---|---|---|---|\n")
	for _, key := range Reference() {
		def := "`" + key.Default + "`"
		switch {
		case key.Required:
			def = "required"
		case key.Default == "":
			def = "none"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", key.Path, def, key.What, key.Allowed)
	}
	return b.String()
}

// texts is what the parser does not know of a key; allowed where its own bounds are not the whole truth.
var texts = map[string]struct{ what, allowed string }{
	"listen":                 {"Where nginx or Caddy sends `/_matrix/`", ""},
	"homeserver.name":        {"The server name: the domain in its user IDs", ""},
	"homeserver.url":         {"Its client-server API, as freshen reaches it", ""},
	"homeserver.signing_key": {"The file of its signing key", "Synapse's `signing.key` or Dendrite's `matrix_key.pem`; or `credential:NAME`, see below"},
	"homeserver.kind":        {"Which homeserver it is; without effect but for the next four keys", ""},
	"homeserver.synapse.database": {
		"Synapse's own database, where it is to [announce changes itself](delivery.md)", "`postgres://user:password@host/name`",
	},
	"homeserver.synapse.replication": {
		"The replication listener of Synapse's main process, or of the worker that writes device lists", "",
	},
	"homeserver.synapse.replication_secret_file": {
		"A file with Synapse's `worker_replication_secret` and nothing else", "a path",
	},
	"homeserver.dendrite.admin_token_file": {
		"A file with the access token of an administrator and nothing else, where Dendrite is to [announce changes itself](delivery.md)", "a path",
	},
	"database":                     {"freshen's own database", ""},
	"federation.timeout":           {"One refresh, from the name lookup to the last byte", ""},
	"federation.ca_file":           {"Root certificates to trust besides the system's", "a PEM file"},
	"federation.allow_networks":    {"[Private and reserved networks](federation.md#refused-networks) that may be dialled all the same", ""},
	"federation.allow_servers":     {"If not empty, the only servers that are asked", "globs, see below"},
	"federation.deny_servers":      {"Servers that are never asked, even if allowed", "globs"},
	"limits.per_user.every":        {"A user may ask again each …", ""},
	"limits.per_user.burst":        {"… after so many at once", ""},
	"limits.per_destination.every": {"A server is asked again each …", ""},
	"limits.per_destination.burst": {"… after so many at once", ""},
	"limits.shared_rooms_only":     {"Refuse a target who shares no room with the one who asks", ""},
	"page":                         {"Serve [the page](page.md) on which people refresh their contacts' lists", ""},
	"cache.success":                {"How long a fetched list answers further requests", ""},
	"cache.failure":                {"How long a failure answers further requests", ""},
	"retry.first":                  {"How long after a failure the server is tried again", ""},
	"retry.most":                   {"Where the doubling of that ends", "`retry.first` to `720h`"},
	"retry.give_up_after":          {"When what is owed is given up", "`retry.first` to `8760h`"},
	"admin.listen":                 {"`/health`, `/ready`, `/owed` and `/metrics`, for operators only", "as `listen`, but not the same"},
	"admin.pprof":                  {"Serve Go's profiles at `/debug/pprof/` of `admin.listen`", ""},
	"log.level":                    {"The least that is logged", ""},
	"log.format":                   {"How it is written", ""},
}

// note tells the reference of a key. def and allowed are what the parser goes by.
func (s *section) note(key, def, allowed string) {
	s.report.keys = append(s.report.keys, Key{Path: s.key(key), Default: def, Required: s.needs[key], Allowed: allowed})
}

func between(least, most time.Duration) string {
	return "`" + short(least) + "` to `" + short(most) + "`"
}

func oneOfThese(names ...string) string { return "`" + strings.Join(names, "`, `") + "`" }

func levelName(level slog.Level) string { return strings.ToLower(level.String()) }

func burstBounds(least, most int) string { return strconv.Itoa(least) + " to " + strconv.Itoa(most) }
