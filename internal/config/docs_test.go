package config_test

import (
	"errors"
	"flag"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v4"

	"freshen/internal/config"
)

var update = flag.Bool("update", false, "write the table of keys into docs/configuration.md")

// The table in the documentation must be what the code says: administrators go by it. go test -update writes it.
func TestTableIsGenerated(t *testing.T) {
	t.Parallel()
	const path = "../../docs/configuration.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(data), "| key | default |")
	_, after, ends := strings.Cut(rest, "\n\n")
	if !begins || !ends {
		t.Fatal("docs/configuration.md has no table of keys")
	}
	want := before + config.Table() + "\n" + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Errorf("go test ./internal/config -update mends this (-code +docs):\n%s", diff)
	}
	for _, key := range config.Reference() {
		if key.What == "" || key.Allowed == "" {
			t.Errorf("nothing says what %s is", key.Path)
		}
	}
}

// The table must name each key that the parser knows, no other, and the default that it has.
func TestDocumentedKeys(t *testing.T) {
	t.Parallel()
	text := config.Table()
	documented := map[string]bool{}
	file := map[string]any{}
	set(file, "homeserver.name", "example.org")
	set(file, "homeserver.url", "http://127.0.0.1:8008")
	set(file, "homeserver.signing_key", "/k")
	row := regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| (?:`([^`]*)`|required|none) \\|")
	for _, match := range row.FindAllStringSubmatch(text, -1) {
		documented[match[1]] = true
		switch match[2] {
		case "":
		case "[]":
			set(file, match[1], []string{})
		default:
			set(file, match[1], match[2])
		}
	}
	data, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parse(t, required), parse(t, string(data)), compareURLs, comparePrefixes, ignorePlaces, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the documented defaults are others (-real +documented):\n%s", diff)
	}
	known := map[string]bool{}
	knownKeys(t, "", known)
	if diff := cmp.Diff(known, documented); diff != "" {
		t.Errorf("the documented keys are others (-real +documented):\n%s", diff)
	}
}

// set puts value at a path such as limits.per_user.burst.
func set(into map[string]any, path string, value any) {
	first, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		into[first] = value
		return
	}
	if into[first] == nil {
		into[first] = map[string]any{}
	}
	set(into[first].(map[string]any), rest, value)
}

// knownKeys asks the parser which keys there are: it names them where it meets one that it does not know.
func knownKeys(t *testing.T, section string, into map[string]bool) {
	t.Helper()
	file := map[string]any{}
	set(file, strings.TrimPrefix(section+".nonsense", "."), 1)
	data, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = config.Parse("f", data, noEnv)
	mistakes, ok := errors.AsType[*config.Mistakes](err)
	if !ok {
		t.Fatalf("a key called nonsense gives %v", err)
	}
	for _, mistake := range mistakes.List {
		_, names, found := strings.Cut(mistake.Text, "here may stand ")
		switch {
		case found:
			for name := range strings.SplitSeq(names, ", ") {
				knownKeys(t, strings.TrimPrefix(section+"."+name, "."), into)
			}
			return
		case mistake.Key == section:
			into[section] = true // It has no keys below it: it is one itself.
			return
		}
	}
	t.Fatalf("nothing is said of %s.nonsense, but %v; so far known: %v", section, err, slices.Sorted(maps.Keys(into)))
}
