package config

import "strings"

// ServerAllowed says whether the configuration lets freshen ask the server of that name: deny_servers wins, and an
// allow_servers that is not empty names all that may be asked.
//
// The globs read as in m.room.server_acl (client-server API, "Server Access Control Lists"): * is any run of
// characters, ? is one, letters match in either case, and what is matched is the name without its port, IP literals
// included. Going beyond it, a glob that ends in a port ("*:8448", "example.org:*") matches the whole name and so only
// names that have a port written in them. A dot at the end of the host makes no other server of it.
//
// What is matched is the server name in the user ID alone, as server_acl does: where its well-known or SRV record leads
// is not. Whoever denies example.org means its users, wherever they are hosted, and a denied name that merely hosts
// others (a provider's) says nothing about those. What may be connected to is federation.allow_networks' business.
func (f Federation) ServerAllowed(name string) bool {
	return !matchesAny(f.DenyServers, name) && (len(f.AllowServers) == 0 || matchesAny(f.AllowServers, name))
}

func matchesAny(globs []string, name string) bool {
	host, port := splitServer(strings.ToLower(name))
	host = strings.TrimSuffix(host, ".")
	for _, glob := range globs {
		glob = strings.ToLower(glob)
		if _, withPort := splitServer(glob); withPort != "" {
			if matchGlob(glob, host+port) {
				return true
			}
		} else if matchGlob(glob, host) {
			return true
		}
	}
	return false
}

// splitServer splits a server name, or a glob for some, before the colon of its port; port is empty or begins with it.
func splitServer(name string) (host, port string) {
	start := 0
	if strings.HasPrefix(name, "[") {
		start = strings.IndexByte(name, ']') + 1
		if start == 0 {
			return name, ""
		}
	}
	if colon := strings.IndexByte(name[start:], ':'); colon >= 0 {
		return name[:start+colon], name[start+colon:]
	}
	return name, ""
}

// matchGlob takes time in proportion to len(glob)·len(text) at most: at a mismatch only the last * is tried again, one
// character further on.
func matchGlob(glob, text string) bool {
	g, t := 0, 0
	star, from := -1, 0
	for t < len(text) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, from = g, t
			g++
		case g < len(glob) && (glob[g] == '?' || glob[g] == text[t]):
			g++
			t++
		case star >= 0:
			from++
			g, t = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(glob[g:], "*") == ""
}

// badServerGlob says what keeps glob from ever matching a server name, or nothing.
func badServerGlob(glob string) string {
	if glob == "" || len(glob) > 255 {
		return "of 1 to 255 characters"
	}
	host, port := splitServer(glob)
	switch {
	case strings.ContainsAny(glob, "/@"):
		return "without scheme, path or user"
	case strings.HasPrefix(host, "["):
		if strings.Trim(host, "[]0123456789abcdefABCDEF:.*?") != "" {
			return "with hexadecimal digits and colons only in an IPv6 literal"
		}
	case strings.Count(glob, ":") > 1:
		return "an IPv6 literal in brackets"
	case strings.ContainsFunc(host, func(r rune) bool { return !isServerRune(r) }):
		return "of letters, digits, dots and hyphens"
	}
	if port != "" && (len(port) == 1 || strings.Trim(port[1:], "0123456789*?") != "") {
		return "with digits in the port"
	}
	return ""
}

func isServerRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-.*?", r)
}
