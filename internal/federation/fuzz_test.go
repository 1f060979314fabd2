package federation

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"

	"freshen"
)

// serverNames are seeds: names that are well, and names that hope to be taken for something else.
var serverNames = []string{
	"b.org", "b.org:8448", "B.Org", "1.2.3.4", "1.2.3.4:1", "[::1]", "[2606:4700::1111]:443", "[::ffff:127.0.0.1]", "[1.2.3.4]", "[...]", "[::1", "::1",
	"999.1.1.1", "0x7f.1", "2130706433", "127.1", "localhost", ".", "..", "-", "a..b", "b.org.", "b.org:", "b.org:0", "b.org:65535", "b.org:65536", "b.org:+1",
	"b.org:08448", "a@b.org", "b.org/x", "b.org?x", "b.org#x", "b.org\r\nX: y", "b.org\x00", "b。org", "xn--bcher-kva.org", "b%2eorg", "[fe80::1%25lo]",
	strings.Repeat("a.", 127) + "a", strings.Repeat("a", 300),
}

// FuzzServerName: a name that is accepted means the same to everybody who reads it: to the Host header, to a URL, to
// the TLS handshake and to the dialler. One that does not would lead a request, or its certificate check, astray.
func FuzzServerName(f *testing.F) {
	for _, name := range serverNames {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		valid := freshen.ValidServerName(name)
		if _, server, err := freshen.ParseUserID("@bob:" + name); len(name) < 200 && (err == nil) != valid || err == nil && server != name {
			t.Fatalf("%q: a user on it is told with %q and %v, but it is valid: %t", name, server, err, valid)
		}
		parsed, err := parseName(name)
		if !valid {
			return
		}
		if err != nil {
			return // it is valid, but no name that can be looked up: it is refused before anything is done with it
		}
		to := parsed.target()
		if to.port == 0 || to.host == "" || strings.ContainsAny(to.host, "[]/@?#% \r\n\x00") || len(name) > 255 {
			t.Fatalf("%q leads to %+v", name, to)
		}
		if !httpguts.ValidHostHeader(name) {
			t.Fatalf("%q is no Host header", name)
		}
		for _, c := range []byte(name) {
			if c <= ' ' || c > '~' {
				t.Fatalf("%q was accepted", name)
			}
		}
		at, err := url.Parse("https://" + name + "/path")
		if err != nil || at.Host != name || at.Hostname() != to.host || at.Path != "/path" || at.User != nil {
			t.Fatalf("in a URL %q is %+v, %v, and the target is %+v", name, at, err, to)
		}
		if at.Port() != "" {
			if port, err := strconv.Atoi(at.Port()); err != nil || port != int(to.port) {
				t.Fatalf("in a URL %q has the port %s, and the target is %+v", name, at.Port(), to)
			}
		}
		if _, err := netip.ParseAddr(to.host); (err == nil) != parsed.literal {
			t.Fatalf("%q is an address: %t, and was taken for one: %t", name, err == nil, parsed.literal)
		}
	})
}

// FuzzDelegation: whatever a web server answers for a well-known, body and headers, what is taken from it is a server
// name by all of its rules, for a time within our bounds.
func FuzzDelegation(f *testing.F) {
	for _, name := range serverNames {
		f.Add([]byte(`{"m.server": `+strconv.QuoteToASCII(name)+`}`), "max-age=3600", "", "")
	}
	for _, body := range []string{
		`null`, `[]`, `{"m.server": 5}`, `{"m.server": null}`, `{"m.server":"b.org","m.server":"c.org"}`, `{"M.SERVER": "b.org"}`, "\xef\xbb\xbf{}",
		`{"m.server": "b.org"}{}`, `{"m.server": "b.org"} x`, `<html>`, `{`, strings.Repeat(`{"m.server":`, 100),
	} {
		f.Add([]byte(body), "no-store", "0", "-1")
	}
	f.Add([]byte(`{"m.server": "b.org"}`), `max-age="99999999999999999999", max-age=-5`, "Wed, 21 Oct 2015 07:28:00 GMT", "99999999999999999999")
	f.Fuzz(func(t *testing.T, body []byte, cacheControl, expires, age string) {
		header := http.Header{"Cache-Control": {cacheControl, cacheControl}, "Expires": {expires}, "Age": {age}}
		if got := wellKnownLifetime(header, time.Unix(1e9, 0)); got < wellKnownShortest || got > wellKnownLongest {
			t.Fatalf("%q is used for %s", header, got)
		}
		server, err := parseWellKnown(body)
		if err != nil {
			if server != "" {
				t.Fatalf("there is %q beside the error %v", server, err)
			}
			return
		}
		if !freshen.ValidServerName(server) || !httpguts.ValidHostHeader(server) {
			t.Fatalf("%q was taken for a server name", server)
		}
		if name, err := parseName(server); err != nil || name.target().port == 0 || name.host == "" {
			t.Fatalf("%q cannot be dialled: %+v, %v", server, name, err)
		}
	})
}

// FuzzSigningKeyFile: no file that resembles a signing key makes the start panic, and no error says anything of the key
// that is in it: errors are logged, and eight characters of a seed are too many. secret chooses the seed, format how it
// is written; at is where the file is damaged by putting junk there, dropping cut bytes.
func FuzzSigningKeyFile(f *testing.F) {
	for format := range byte(6) {
		for at := range uint16(8) {
			f.Add("secret", format, at*12, uint8(at), " ")
		}
		f.Add("secret", format, uint16(0), uint8(0), "")
		f.Add("secret", format, uint16(20), uint8(0), "\n")
		f.Add("secret", format, uint16(11), uint8(0), "\x00\xff")
	}
	f.Fuzz(func(t *testing.T, secret string, format byte, at uint16, cut uint8, junk string) {
		seed := sha256.Sum256([]byte(secret))
		padded, plain := base64.StdEncoding.EncodeToString(seed[:]), base64.RawStdEncoding.EncodeToString(seed[:])
		text := []string{
			"ed25519 a_x " + plain + "\n",
			"ed25519 a_x " + padded + "\r\n",
			"-----BEGIN MATRIX PRIVATE KEY-----\nKey-ID: ed25519:a_x\n\n" + padded + "\n-----END MATRIX PRIVATE KEY-----\n",
			plain,
			plain + " a_x ed25519",
			"ed25519 " + plain + " " + plain,
		}[format%6]
		from := min(int(at), len(text))
		to := min(from+int(cut), len(text))
		key, err := parseSigningKey([]byte(text[:from] + junk + text[to:]))
		if err == nil {
			if _, err := key.SignJSON(map[string]string{"a": "b"}); err != nil {
				t.Fatal(err)
			}
			return
		}
		if key != nil {
			t.Fatal("there is a key beside the error")
		}
		for _, form := range []string{plain, string(seed[:]), hex.EncodeToString(seed[:])} {
			for i := range len(form) - 7 {
				if strings.Contains(err.Error(), form[i:i+8]) {
					t.Fatalf("the error %q holds part of the key", err)
				}
			}
		}
	})
}
