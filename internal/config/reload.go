package config

import (
	"reflect"
	"strings"
)

// fixed are the keys, and the sections of keys, that count from the next start alone, in the order of the file. A running
// freshen takes over all others at a SIGHUP.
var fixed = []struct {
	key string
	of  func(*Config) any
}{
	{"listen", func(c *Config) any { return c.Listen }},
	{"database", func(c *Config) any { return c.Database }},
	{"homeserver", func(c *Config) any { return c.Homeserver }},
	{"federation.timeout", func(c *Config) any { return c.Federation.Timeout }},
	{"federation.ca_file", func(c *Config) any { return c.Federation.CAFile }},
	{"federation.allow_networks", func(c *Config) any { return c.Federation.AllowNetworks }},
	{"cache", func(c *Config) any { return c.Cache }},
	{"retry", func(c *Config) any { return c.Retry }},
	{"page", func(c *Config) any { return c.Page }},
	{"admin", func(c *Config) any { return c.Admin }},
	{"log.format", func(c *Config) any { return c.Log.Format }},
}

// NeedsRestart names what differs between c and next, in the order of the file, and is not taken over by a running freshen.
func (c *Config) NeedsRestart(next *Config) (keys []string) {
	for _, part := range fixed {
		if !reflect.DeepEqual(part.of(c), part.of(next)) {
			keys = append(keys, part.key)
		}
	}
	return keys
}

// reloads says whether a running freshen takes the key at that path over.
func reloads(path string) bool {
	for _, part := range fixed {
		if path == part.key || strings.HasPrefix(path, part.key+".") {
			return false
		}
	}
	return true
}
