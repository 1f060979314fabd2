package freshen_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The documentation must explain each reason that programs and logs are given, and each that the sources name no more
// must go from it: an administrator looks it up there.
func TestDocumentedReasons(t *testing.T) {
	text, err := os.ReadFile("docs/federation.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct{ kind, file, heading string }{
		{"Reason", "error.go", "## When it fails"},
		{"DropReason", "devicelist.go", "### Left out"},
		{"Oddity", "signatures.go", "### Kept although it is odd"},
	} {
		source, err := os.ReadFile(part.file)
		if err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for _, match := range regexp.MustCompile(`(?m)^\t\w+ +`+part.kind+` += "(\w+)"`).FindAllSubmatch(source, -1) {
			known[string(match[1])] = true
		}
		if len(known) < 5 {
			t.Fatalf("%s names only %d of kind %s", part.file, len(known), part.kind)
		}
		_, section, found := strings.Cut(string(text), part.heading+"\n")
		if !found {
			t.Fatalf("docs/federation.md has no %q", part.heading)
		}
		if end := regexp.MustCompile(`(?m)^#`).FindStringIndex(section); end != nil {
			section = section[:end[0]]
		}
		documented := map[string]bool{}
		for _, match := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(section, -1) {
			documented[match[1]] = true
			if !known[match[1]] {
				t.Errorf("%q explains %q, which is none", part.heading, match[1])
			}
		}
		for reason := range known {
			if !documented[reason] {
				t.Errorf("%q does not explain %q", part.heading, reason)
			}
		}
	}
}
