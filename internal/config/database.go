package config

import (
	"log/slog"
	"net/url"
	"strings"
)

// Database names freshen's own database: an SQLite file or a Postgres server, never both. Printed or logged in any way,
// it shows no password.
type Database struct {
	// Path is the SQLite file, or empty.
	Path string
	// URL is the Postgres server, or nil. It may hold a password: hand it to the driver and to nobody else.
	URL *url.URL
}

// Redacted is what may be shown: the path, or the URL with "xxxxx" for every password.
func (d Database) Redacted() string {
	if d.URL == nil {
		return d.Path
	}
	shown := *d.URL
	// libpq takes secrets in the query as well.
	query := shown.Query()
	for key := range query {
		if strings.Contains(strings.ToLower(key), "password") {
			query.Set(key, "xxxxx")
		}
	}
	shown.RawQuery = query.Encode()
	return shown.Redacted()
}

// String is Redacted.
func (d Database) String() string { return d.Redacted() }

// GoString is Redacted, for %#v.
func (d Database) GoString() string { return "config.Database(" + d.Redacted() + ")" }

// LogValue is Redacted.
func (d Database) LogValue() slog.Value { return slog.StringValue(d.Redacted()) }

// MarshalText is Redacted, for encoders.
func (d Database) MarshalText() ([]byte, error) { return []byte(d.Redacted()), nil }

// database takes a path or a postgres:// URL. A path in the file is relative to the file's folder, one in the
// environment variable to the working directory, as a shell's completion writes it. No mistake repeats the value: parts
// of a password come out of a URL that is mistyped.
func (s *section) database(key string, into *Database, dir string) {
	s.note(key, into.Path, "the path of an SQLite file, made at the first start, for one instance; or `postgres://user:password@host/name`, for one or several, see below")
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	scheme, _, isURL := strings.Cut(text, "://")
	switch {
	case isURL && (scheme == "postgres" || scheme == "postgresql"):
		s.postgres(key, into, text)
	case isURL:
		s.mistake(key, "must be the path of an SQLite file or a postgres:// URL, is a URL of another kind")
	case text == "":
		s.mistake(key, "must be the path of an SQLite file or a postgres:// URL, is empty")
	case strings.ContainsRune(text, 0):
		s.mistake(key, "must be the path of an SQLite file, holds a NUL character")
	case text == ":memory:", strings.HasPrefix(text, "file:"):
		s.mistake(key, "must be the plain path of an SQLite file: what is owed has to outlive a restart")
	case s.values[key].variable != "":
		*into = Database{Path: text}
	default:
		*into = Database{Path: within(dir, text)}
	}
}

func (s *section) postgres(key string, into *Database, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		s.mistake(key, "is no URL; in its password, characters other than letters and digits are written as %% and two hexadecimal digits")
	case u.Host == "" && !u.Query().Has("host"):
		s.mistake(key, "must name a host: postgres://user:password@host/name")
	case strings.Trim(u.Path, "/") == "" && !u.Query().Has("dbname"):
		s.mistake(key, "must name a database: postgres://user:password@host/name")
	case u.Fragment != "":
		s.mistake(key, `must not hold "#"; in a password it is written as %%23`)
	default:
		*into = Database{URL: u}
	}
}
