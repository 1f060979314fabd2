package freshen_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"freshen/internal/federation"
	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

// Lines for nginx that nginx itself does not take would leave a site without a reverse proxy.
func TestDocumentedNginxLines(t *testing.T) {
	t.Parallel()
	nginx := testbedtest.Program(t, "nginx", "nginx")
	blocks := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "nginx" {
				continue
			}
			blocks++
			port, err := testbed.FreePort(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// What begins with a location goes into the server that clients come to.
			lines := regexp.MustCompile(`listen 127\.0\.0\.1:\d+;`).ReplaceAllString(b.text, "listen "+port+";")
			above, locations, found := strings.Cut("\n"+unindented(lines), "\nlocation")
			if found {
				locations = "location" + locations
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "nginx.conf")
			text := fmt.Sprintf("pid %s/pid;\nerror_log %[1]s/log;\nevents {}\nhttp {\naccess_log off;\n%[2]s\nserver {\nlisten unix:%[1]s/sock;\n%[3]s\n}\n}\n", dir, above, locations)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), nginx, "-t", "-p", dir, "-c", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s\n%s", p.path, err, out, text)
			}
		}
	}
	if blocks < 3 {
		t.Errorf("only %d blocks were looked at", blocks)
	}
}

// unindented takes away the spaces that a block in a list begins its lines with.
func unindented(text string) string {
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	return strings.ReplaceAll(text, "\n"+indent, "\n")[len(indent):]
}

// Who runs a homeserver of the Conduit family has its key in a database: what the documentation has them do with it must give
// the key that the homeserver signs with.
func TestDocumentedExportOfAKey(t *testing.T) {
	t.Parallel()
	testbedtest.Program(t, "python3", "python3")
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	// These homeservers write the second version of PKCS#8, which has the public key behind the private one.
	der = append(append([]byte{0x30, 0x53, 0x02, 0x01, 0x01}, der[5:]...), append([]byte{0xa1, 0x23, 0x03, 0x21, 0x00}, public...)...)
	value := append([]byte("AbCd1234\xff"), der...)

	data, err := os.ReadFile("docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	const begins, ends = "python3 -c '", "' < keypair.hex > signing.key\n"
	_, script, found := strings.Cut(string(data), begins)
	script, _, ended := strings.Cut(script, ends)
	if !found || !ended {
		t.Fatal("docs/install.md does not say how to export a key")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "keypair.hex"), []byte("0x"+strings.ToUpper(hex.EncodeToString(value))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := exec.CommandContext(t.Context(), "sh", "-c", "umask 077\n"+begins+script+ends)
	shell.Dir = dir
	if out, err := shell.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	key, warning, err := federation.ReadSigningKey(filepath.Join(dir, "signing.key"))
	if err != nil || warning != "" {
		t.Fatalf("the key cannot be used: %v %s", err, warning)
	}
	if want := base64.RawStdEncoding.EncodeToString(public); string(key.Public()) != want || key.ID() != "ed25519:AbCd1234" {
		t.Errorf("it is %s with %s, want ed25519:AbCd1234 with %s", key.ID(), key.Public(), want)
	}
}
