package config_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"freshen/internal/config"
)

// An administrator who denies a server must not see freshen ask it under another spelling of its name.
func TestServerAllowed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		allow, deny, name string
		want              bool
	}{
		{"", "", "example.org", true},
		{"", "example.org", "example.org", false},
		{"", "example.org", "EXAMPLE.org:8448", false},
		{"", "example.org", "example.org.", false},
		{"", "example.org", "example.org.:8448", false},
		{"", "Example.ORG", "example.org", false},
		{"", "example.org", "sub.example.org", true},
		{"", "example.org", "example.org.evil", true},
		{"", "*.example.org", "a.b.example.org", false},
		{"", "*.example.org", "example.org", true},
		{"", "*example.org", "notexample.org", false},
		{"", "host?.example.org", "host1.example.org:1", false},
		{"", "host?.example.org", "host12.example.org", true},
		{"example.org", "", "example.org", true},
		{"example.org", "", "other.org", false},
		{"*", "evil.org", "evil.org", false},
		{"*.org good.com", "evil.org", "good.com", true},
		{"", "127.0.0.1", "127.0.0.1:8448", false},
		{"", "10.*", "10.1.2.3", false},
		{"", "10.0.0.?", "10.0.0.7:8448", false},
		{"", "10.0.0.?", "10.0.0.77", true},
		{"10.0.0.7", "", "10.0.0.7:1", true},
		{"", "[2001:db8::?]", "[2001:DB8::A]", false},
		{"", "[2001:db8::?]", "[2001:db8::ab]", true},
		{"[2001:DB8::1]", "", "[2001:db8::1]:8448", true},
		{"", "?", "x", false},
		{"", "?", "xy", true},
		{"", "*", "[::1]:1", false},
		{"", "[2001:db8::1]", "[2001:DB8::1]:8448", false},
		{"", "[2001:db8::*", "[2001:db8::5]:8448", false},
		{"", "[*]", "[::1]", false},
		{"", "[*]", "example.org", true},
		{"", "example.org:8448", "example.org:8448", false},
		{"", "example.org:8448", "example.org:18448", true},
		{"", "example.org:8448", "example.org", true},
		{"", "*:*", "example.org:1", false},
		{"", "*:*", "example.org", true},
		{"", "[::1]:1*", "[::1]:10", false},
		{"", "[::1]:1*", "[::1]:20", true},
		{"*:*", "", "example.org", false},
	} {
		f := config.Federation{AllowServers: strings.Fields(test.allow), DenyServers: strings.Fields(test.deny)}
		if got := f.ServerAllowed(test.name); got != test.want {
			t.Errorf("allow %q, deny %q: %s allowed is %t", test.allow, test.deny, test.name, got)
		}
	}
}

// A glob full of stars must not let a long server name stop the server.
func TestGlobsAreCheap(t *testing.T) {
	t.Parallel()
	f := config.Federation{DenyServers: []string{strings.Repeat("*a", 127) + "b"}}
	start := time.Now()
	for range 100 {
		if !f.ServerAllowed(strings.Repeat("a", 255)) {
			t.Fatal("matched")
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("100 names took %s", took)
	}
}

// The matcher must agree with the plain reading of globs, or a server is asked that should not be.
func FuzzServerGlob(f *testing.F) {
	f.Add("*.example.org", "matrix.example.org")
	f.Add("a?*b**", "axyzb")
	f.Add("*a*a*a", "aaaa")
	f.Fuzz(func(t *testing.T, glob, name string) {
		if strings.ContainsAny(glob+name, ":[]\n") || strings.HasSuffix(name, ".") || glob == "" || len(glob)+len(name) > 200 {
			return
		}
		for _, r := range glob + name {
			if r > '~' {
				return
			}
		}
		pattern := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(strings.ToLower(glob)))
		want := regexp.MustCompile("^" + pattern + "$").MatchString(strings.ToLower(name))
		if got := (config.Federation{AllowServers: []string{glob}}).ServerAllowed(name); got != want {
			t.Errorf("glob %q matches %q: %t, want %t", glob, name, got, want)
		}
	})
}
