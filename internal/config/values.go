package config

import (
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"freshen"
	"freshen/internal/listen"
)

// Each of these takes one key. Where it is absent, or wrong and reported, into keeps the default that it holds.

func (s *section) duration(key string, into *time.Duration, least, most time.Duration) {
	s.note(key, short(*into), between(least, most))
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		s.mistake(key, "must be a duration with its unit, such as 30s or 1h30m, is %s", quoted(text))
	case d < least || d > most:
		s.mistake(key, "must be from %s to %s, is %s", short(least), short(most), text)
	default:
		*into = d
	}
}

// short writes a duration as people do: 5m for 5m0s.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (s *section) integer(key string, into *int, least, most int) {
	s.note(key, strconv.Itoa(*into), burstBounds(least, most))
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	n, err := strconv.Atoi(text)
	switch {
	case err != nil:
		s.mistake(key, "must be a whole number, is %s", quoted(text))
	case n < least:
		s.mistake(key, "must be at least %d, is %d", least, n)
	case n > most:
		s.mistake(key, "must be at most %d, is %d", most, n)
	default:
		*into = n
	}
}

func (s *section) boolean(key string, into *bool) {
	s.note(key, strconv.FormatBool(*into), oneOfThese("true", "false"))
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	switch text {
	case "true":
		*into = true
	case "false":
		*into = false
	default:
		s.mistake(key, "must be true or false, is %s", quoted(text))
	}
}

// rate takes a mapping of two keys; each is what the first of them says, ending in "…".
func (s *section) rate(key string, into *Rate, each string) {
	sub := s.section(key)
	sub.is(each).duration("every", &into.Every, time.Millisecond, 24*time.Hour)
	sub.is("… after so many at once").integer("burst", &into.Burst, 1, 1_000_000)
	sub.done()
}

func (s *section) level(key string, into *slog.Level) {
	s.note(key, levelName(*into), oneOfThese("debug", "info", "warn", "error"))
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	level, ok := levels[text]
	if !ok {
		s.mistake(key, "must be debug, info, warn or error, is %s", quoted(text))
		return
	}
	*into = level
}

func oneOf[T ~string](s *section, key string, into *T, values ...T) {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = string(v)
	}
	s.note(key, string(*into), oneOfThese(names...))
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	if !slices.Contains(values, T(text)) {
		last := len(names) - 1
		s.mistake(key, "must be %s or %s, is %s", strings.Join(names[:last], ", "), names[last], quoted(text))
		return
	}
	*into = T(text)
}

// listener takes an address to listen at. The host of host:port may be empty (all addresses), a literal or a name.
func (s *section) listener(key string, into *string) {
	s.note(key, *into, "`host:port` (an empty host is every address, port 0 any free one), `unix:/path`, `systemd`, `fd:NAME`, see below")
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	address, err := listen.Parse(text)
	if err != nil {
		s.mistake(key, "%v", err)
		return
	}
	if address.Network != listen.TCP {
		*into = text
		return
	}
	host, port, err := net.SplitHostPort(text)
	switch {
	case err != nil:
		s.mistake(key, "must be host:port, such as 127.0.0.1:8009 or [::1]:8009, is %s", quoted(text))
	case !isPort(port):
		s.mistake(key, "must end in a port from 0 to 65535, is %s", quoted(text))
	case !isListenHost(host):
		s.mistake(key, "must begin with an IP address or a host name, is %s", quoted(text))
	default:
		*into = text
	}
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == text
}

// sameListener says whether two addresses that listener has accepted cannot both be listened at.
func sameListener(one, other string) bool {
	a, errA := listen.Parse(one)
	b, errB := listen.Parse(other)
	return errA == nil && errB == nil && a.Same(b)
}

func isListenHost(host string) bool {
	if host == "" {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return len(host) <= 253 && !strings.ContainsFunc(host, func(r rune) bool {
		return r != '-' && r != '.' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

func (s *section) serverName(key string, into *string) {
	s.note(key, *into, "a server name, with its port if user IDs have one")
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	if !freshen.ValidServerName(text) {
		s.mistake(key, "must be a server name as in user IDs, such as example.org, is %s", quoted(text))
		return
	}
	*into = text
}

// httpURL takes a base URL. What is wrong with it is said without repeating it, since people put passwords into URLs.
func (s *section) httpURL(key string, into **url.URL) {
	s.note(key, "", "`http://` or `https://`, a host, perhaps a path; no user, query or fragment")
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		s.mistake(key, "is no URL")
	case u.Scheme != "http" && u.Scheme != "https":
		s.mistake(key, "must begin with http:// or https://")
	case u.Hostname() == "":
		s.mistake(key, "must name a host, such as http://127.0.0.1:8008")
	case u.Port() != "" && (!isPort(u.Port()) || u.Port() == "0"), strings.HasSuffix(u.Host, ":"):
		s.mistake(key, "must have a port from 1 to 65535, or none")
	case u.User != nil:
		s.mistake(key, "must not hold a user name or password")
	case u.RawQuery != "" || u.ForceQuery:
		s.mistake(key, `must not hold a query ("?…")`)
	case u.Fragment != "":
		s.mistake(key, `must not hold a fragment ("#…")`)
	default:
		for strings.HasSuffix(u.EscapedPath(), "/") {
			u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
		}
		*into = u
	}
}

const (
	// credentialPrefix stands before what is no path, but the name of a credential that systemd hands to the service.
	credentialPrefix = "credential:" //nolint:gosec // a prefix, and no credential
	// envCredentials is the variable in which systemd says where the credentials are.
	envCredentials = "CREDENTIALS_DIRECTORY"
	// serviceCredentials is where they are while freshen.service runs. A command that root gives by hand has no variable.
	serviceCredentials = "/run/credentials/freshen.service"
)

// file takes the path of a file, relative to dir, or the name of a credential.
func (s *section) file(key string, into *string, dir string) {
	s.note(key, *into, "a file")
	text, ok := s.scalar(key)
	if !ok {
		return
	}
	name, isCredential := strings.CutPrefix(text, credentialPrefix)
	switch {
	case text == "":
		s.mistake(key, "must be the path of a file, is empty")
	case strings.ContainsRune(text, 0):
		s.mistake(key, "must be the path of a file, holds a NUL character")
	case isCredential && (name == "" || name == "." || name == ".." || strings.Contains(name, "/")):
		s.mistake(key, "must name a credential as LoadCredential= does, such as credential:signing_key, is %s", quoted(text))
	case isCredential:
		*into = filepath.Join(s.report.credentials, name)
	default:
		*into = within(dir, text)
	}
}

// optionalFile is file, but an empty text means none.
func (s *section) optionalFile(key string, into *string, dir string) {
	if e, ok := s.values[key]; ok && e.node != nil && isEmptyText(target(e.node)) {
		s.known = append(s.known, key)
		return
	}
	s.file(key, into, dir)
}

func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func (s *section) networks(key string, into *[]netip.Prefix) {
	s.note(key, "[]", "CIDR: `10.0.0.0/8`, `fd00::/8`")
	var prefixes []netip.Prefix
	for _, it := range s.list(key) {
		prefix, err := netip.ParsePrefix(it.text)
		switch {
		case err != nil:
			s.itemMistake(it, "must be a network in CIDR notation, such as 10.0.0.0/8 or fd00::/8, is %s", quoted(it.text))
		case prefix.Addr().Is4In6():
			s.itemMistake(it, "must be written as the IPv4 network that it means, is %s", quoted(it.text))
		case prefix.Masked() != prefix:
			s.itemMistake(it, "has bits set behind its prefix: %s means %s", it.text, prefix.Masked())
		default:
			prefixes = append(prefixes, prefix)
		}
	}
	*into = prefixes
}

func (s *section) serverGlobs(key string, into *[]string) {
	s.note(key, "[]", "globs")
	var globs []string
	for _, it := range s.list(key) {
		if why := badServerGlob(it.text); why != "" {
			s.itemMistake(it, "must be a server name, perhaps with * and ?, %s, is %s", why, quoted(it.text))
			continue
		}
		globs = append(globs, it.text)
	}
	*into = globs
}
