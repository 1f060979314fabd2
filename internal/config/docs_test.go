package config_test

import (
	"errors"
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

const documentation = "../../docs/configuration.md"

// The table in the documentation must be what the code says: administrators go by it.
func TestTableIsGenerated(t *testing.T) {
	t.Parallel()
	text := document(t)
	data, err := os.ReadFile(documentation)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, string(data)); diff != "" {
		t.Errorf("make docs mends this (-code +docs):\n%s", diff)
	}
	for _, key := range config.Reference() {
		if key.What == "" || key.Allowed == "" {
			t.Errorf("nothing says what %s is: name it with is() where it is read", key.Path)
		}
	}
}

// document is docs/configuration.md as the code would have it.
func document(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(documentation)
	if err != nil {
		t.Fatal(err)
	}
	text, err := config.Document(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A document without a place for the table must be refused, and not lose what stands in it.
func TestNoPlaceForTheTable(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "# Configuration\n", strings.Replace(document(t), "<!-- End", "<!-- the end", 1)} {
		if got, err := config.Document(text); err == nil {
			t.Errorf("%.40q becomes %.40q", text, got)
		}
	}
}

// What is said to be taken over at a SIGHUP must be: a running freshen asks NeedsRestart, and reports what it names.
func TestDocumentedReloads(t *testing.T) {
	t.Parallel()
	changed := map[string]string{ // a value besides the default for each key that is taken over, and for some that are not
		"federation.allow_servers": "[a.org]", "federation.deny_servers": "[b.org]",
		"limits.per_user.every": "1s", "limits.per_user.burst": "3", "limits.per_destination.every": "2s",
		"limits.per_destination.burst": "4", "limits.shared_rooms_only": "true", "log.level": "debug",
		"cache.success": "1s", "log.format": "json", "database": "other.db",
	}
	for _, key := range config.Reference() {
		value, given := changed[key.Path]
		switch {
		case !given && key.Reloads:
			t.Errorf("%s is said to be taken over: add it to this test", key.Path)
		case !given:
			continue
		}
		restarts := parse(t, required).NeedsRestart(parse(t, required+nested(key.Path, value)))
		if taken := len(restarts) == 0; taken != key.Reloads {
			t.Errorf("%s: taken over is said to be %t, and a restart is needed for %v", key.Path, key.Reloads, restarts)
		}
	}
}

// nested is a file with one key: "a.b" becomes "{a: {b: value}}" without the outer braces.
func nested(path, value string) string {
	parts := strings.Split(path, ".")
	return strings.Join(parts, ": {") + ": " + value + strings.Repeat("}", len(parts)-1) + "\n"
}

// The table must name each key that the parser knows, no other, and the default that it has.
func TestDocumentedKeys(t *testing.T) {
	t.Parallel()
	text := document(t)
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
