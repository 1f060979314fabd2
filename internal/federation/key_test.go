package federation_test

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
)

// seed is 32 bytes; its base64 must never turn up in an error.
var seed = []byte("0123456789abcdefghijklmnopqrstuv")

var seedText = base64.RawStdEncoding.EncodeToString(seed)

func synapseFile() string { return "ed25519 a_Xy12 " + seedText + "\n" }

func dendriteFile() string {
	return "-----BEGIN MATRIX PRIVATE KEY-----\nKey-ID: ed25519:Zx9_q\n\n" + base64.StdEncoding.EncodeToString(seed) +
		"\n-----END MATRIX PRIVATE KEY-----\n"
}

func keyFile(t testing.TB, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "signing.key")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReadSigningKey: the key must be the homeserver's own, from either kind of file, or every server answers 401.
func TestReadSigningKey(t *testing.T) {
	want := fedtest.KeyFromSeed("a_Xy12", seed)
	for _, row := range []struct{ name, content, keyID string }{
		{"Synapse", synapseFile(), "ed25519:a_Xy12"},
		{"Synapse, padded, CRLF", "ed25519 a_Xy12 " + seedText + "=\r\n", "ed25519:a_Xy12"},
		{"Synapse, several keys", synapseFile() + "ed25519 b " + seedText + "\n", "ed25519:a_Xy12"},
		{"Synapse, before it made versions up", "ed25519 auto " + seedText, "ed25519:auto"},
		{"Synapse, a number", "ed25519 0 " + seedText, "ed25519:0"},
		{"Dendrite", dendriteFile(), "ed25519:Zx9_q"},
		{"Dendrite, before it kept to the specification", strings.ReplaceAll(dendriteFile(), "Zx9_q", "i+b2/="), "ed25519:i+b2/="},
		{"mautrix", "ed25519 -x_Y-w " + seedText, "ed25519:-x_Y-w"},
	} {
		t.Run(row.name, func(t *testing.T) {
			key, warning, err := federation.ReadSigningKey(keyFile(t, row.content, 0o600))
			if err != nil || warning != "" {
				t.Fatalf("error %v, warning %q", err, warning)
			}
			if string(key.ID()) != row.keyID || key.Public() != want.Pub {
				t.Errorf("got key %s with public key %s, want %s with %s", key.ID(), key.Public(), row.keyID, want.Pub)
			}
		})
	}
}

// TestSigningKeyOpenToOthers: an administrator learns that any local user could act as the homeserver.
func TestSigningKeyOpenToOthers(t *testing.T) {
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o644: true, 0o602: true} {
		_, warning, err := federation.ReadSigningKey(keyFile(t, synapseFile(), mode))
		if err != nil || (warning != "") != warned {
			t.Errorf("mode %04o: warning %q, error %v", mode, warning, err)
		}
	}
}

// TestMalformedSigningKey: the error names the file and what is expected, and never repeats what it holds.
func TestMalformedSigningKey(t *testing.T) {
	for name, content := range map[string]string{
		"empty":           "",
		"white space":     "\n \n",
		"short seed":      "ed25519 a_Xy12 " + seedText[:20],
		"long seed":       "ed25519 a_Xy12 " + seedText[:42] + seedText,
		"no base64":       "ed25519 a_Xy12 !" + seedText,
		"two words":       "ed25519 " + seedText,
		"seed alone":      seedText,
		"other algorithm": seedText + " a_Xy12 ed25519",
		"bad version":     "ed25519 a:b " + seedText,
		"a comma":         "ed25519 a,b " + seedText,
		"a quote":         `ed25519 a"b ` + seedText,
		"a backslash":     `ed25519 a\b ` + seedText,
		"a control":       "ed25519 a\x01b " + seedText,
		"not ASCII":       "ed25519 aé " + seedText,
		"PEM bad version": strings.ReplaceAll(dendriteFile(), "Zx9_q", `a"b`),
		"cut PEM":         dendriteFile()[:60],
		"other PEM":       strings.ReplaceAll(dendriteFile(), "MATRIX PRIVATE", "RSA PRIVATE"),
		"PEM without ID":  strings.ReplaceAll(dendriteFile(), "Key-ID: ed25519:Zx9_q\n\n", ""),
		"PEM short seed":  strings.ReplaceAll(dendriteFile(), base64.StdEncoding.EncodeToString(seed), "AAAA"),
		"binary":          "\x00\xff\xfe",
		"too big":         strings.Repeat("#", 70<<10),
	} {
		t.Run(name, func(t *testing.T) {
			path := keyFile(t, content, 0o600)
			key, _, err := federation.ReadSigningKey(path)
			if err == nil {
				t.Fatalf("it was read as %v", key)
			}
			if !strings.Contains(err.Error(), path) {
				t.Errorf("%q does not name the file", err)
			}
			if strings.Contains(err.Error(), seedText[:20]) {
				t.Errorf("%q holds key material", err)
			}
		})
	}
	for name, path := range map[string]string{"directory": t.TempDir(), "missing": filepath.Join(t.TempDir(), "none"), "device": os.DevNull} {
		if _, _, err := federation.ReadSigningKey(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}

// TestSigningKeyIsNotPrinted: a key that lands in a log or a panic must not give the homeserver away.
func TestSigningKeyIsNotPrinted(t *testing.T) {
	key := federation.NewSigningKey(fedtest.KeyFromSeed("a_Xy12", seed))
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("started", "key", key)
	cfg := federation.Config{Key: key}
	for _, text := range []string{log.String(), fmt.Sprintf("%v %+v %#v %s", key, key, key, key), fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg)} {
		if strings.Contains(text, seedText) || strings.Contains(text, "48 49 50 51") || strings.Contains(text, "0x30, 0x31") {
			t.Errorf("the key stands in %q", text)
		}
	}
}

// TestLoadRoots: a private CA is trusted beside the system's, and a wrong file is told at the start.
func TestLoadRoots(t *testing.T) {
	pool, err := federation.LoadRoots(fedtest.NewCA(t).File())
	if err != nil || pool == nil {
		t.Fatal(err)
	}
	if _, err := federation.LoadRoots(""); err != nil {
		t.Errorf("the system's own: %v", err)
	}
	for name, path := range map[string]string{"no PEM": keyFile(t, "hello", 0o600), "directory": t.TempDir(), "missing": "/nonexistent/ca.pem"} {
		if _, err := federation.LoadRoots(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}

// TestKeyVersionsSign: whatever version a key has, the X-Matrix header that names it is read back by the other side.
func TestKeyVersionsSign(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"a_Xy12", "auto", "0", "i+b2", "a/b", "-x_Y-w", "a.b", "~", strings.Repeat("v", 255)} {
		t.Run(version[:min(len(version), 10)], func(t *testing.T) {
			t.Parallel()
			key, _, err := federation.ReadSigningKey(keyFile(t, "ed25519 "+version+" "+seedText, 0o600))
			if err != nil {
				t.Fatal(err)
			}
			w := newWorldWith(t, key)
			server := fedtest.NewHomeserver("127.1.0.1:1", ourName, fedtest.KeyFromSeed(version, seed))
			fedtest.ServeTLS(t, w.net.Listen("127.1.0.1:1"), w.ca.Issue("127.1.0.1"), server)
			w.good("@bob:127.1.0.1:1")
		})
	}
}
