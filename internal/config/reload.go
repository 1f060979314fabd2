package config

import "reflect"

// NeedsRestart names what differs between c and next, in the order of the file, without what a running freshen takes
// over: limits, federation.allow_servers, federation.deny_servers and log.level.
func (c *Config) NeedsRestart(next *Config) (keys []string) {
	for _, part := range []struct {
		key    string
		is, be any
	}{
		{"listen", c.Listen, next.Listen},
		{"database", c.Database, next.Database},
		{"homeserver", c.Homeserver, next.Homeserver},
		{"federation.timeout", c.Federation.Timeout, next.Federation.Timeout},
		{"federation.ca_file", c.Federation.CAFile, next.Federation.CAFile},
		{"federation.allow_networks", c.Federation.AllowNetworks, next.Federation.AllowNetworks},
		{"cache", c.Cache, next.Cache},
		{"retry", c.Retry, next.Retry},
		{"admin", c.Admin, next.Admin},
		{"log.format", c.Log.Format, next.Log.Format},
	} {
		if !reflect.DeepEqual(part.is, part.be) {
			keys = append(keys, part.key)
		}
	}
	return keys
}
