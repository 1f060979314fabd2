package freshen_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"freshen/internal/config"
)

// An administrator types what stands in the documentation: every command must exist, with the flags that it is given.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "freshen")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/freshen").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	helps := map[string]string{}
	help := func(command ...string) string {
		name := strings.Join(command, " ")
		if _, known := helps[name]; !known {
			out, err := exec.CommandContext(t.Context(), program, append(command, "--help")...).CombinedOutput()
			if err != nil {
				out = nil
			}
			helps[name] = string(out)
		}
		return helps[name]
	}
	commands := 0
	for _, p := range pages(t) {
		for _, line := range p.commandLines() {
			words := strings.Fields(line)
			command := words[1:2]
			if len(words) > 2 && slices.Contains([]string{"list", "drop", "retry"}, words[2]) {
				command = words[1:3]
			}
			text := help(command...)
			if text == "" {
				t.Errorf("%s: there is no command freshen %s", p.path, strings.Join(command, " "))
				continue
			}
			commands++
			for _, word := range words[1:] {
				flag, _, _ := strings.Cut(word, "=")
				if strings.HasPrefix(flag, "-") && !regexp.MustCompile(regexp.QuoteMeta(flag)+`\b`).MatchString(text) {
					t.Errorf("%s: freshen %s has no flag %s", p.path, strings.Join(command, " "), flag)
				}
			}
		}
	}
	if commands < 40 {
		t.Errorf("only %d commands were looked at", commands)
	}
}

// commandLines are the command lines of freshen's on a page, each without what follows it.
func (p *page) commandLines() (lines []string) {
	ends := regexp.MustCompile(`[#;|&<>()…]`)
	take := func(line string) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
		if at := ends.FindStringIndex(line); at != nil {
			line = line[:at[0]]
		}
		if regexp.MustCompile(`^freshen [a-z-]+( |$)`).MatchString(line) {
			lines = append(lines, line)
		}
	}
	for _, span := range p.spans() {
		take(span)
	}
	for _, b := range p.blocks {
		if b.language == "sh" {
			for line := range strings.Lines(b.text) {
				take(line)
			}
		}
	}
	return lines
}

// A key that freshen does not know keeps it from starting: every one that stands in the documentation must exist.
func TestDocumentedConfiguration(t *testing.T) {
	t.Parallel()
	known := map[string]bool{} // keys and their sections
	for _, key := range config.Reference() {
		for path := key.Path; path != ""; path = path[:max(0, strings.LastIndexByte(path, '.'))] {
			known[path] = true
		}
	}
	spans, files := 0, 0
	dotted := regexp.MustCompile(`^[a-z_]+(\.[a-z_]+)+$`)
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			first, _, _ := strings.Cut(span, ".")
			if !dotted.MatchString(span) || !known[first] || strings.HasSuffix(span, ".yaml") {
				continue
			}
			spans++
			if !known[span] {
				t.Errorf("%s: there is no key %s", p.path, span)
			}
		}
		for _, b := range p.blocks {
			first, _, isMapping := strings.Cut(b.text, ":")
			if b.language != "yaml" || !isMapping || !known[first] {
				continue
			}
			files++
			_, err := config.Parse("freshen.yaml", []byte(strings.ReplaceAll(b.text, "…", "x")), func(string) string { return "" })
			mistakes, wrong := errors.AsType[*config.Mistakes](err)
			if !wrong {
				continue
			}
			for _, mistake := range mistakes.List {
				// A part of a file may lack what is required.
				if !strings.HasSuffix(mistake.Text, "is required and missing") {
					t.Errorf("%s: %s: %s, in\n%s", p.path, mistake.Key, mistake.Text, b.text)
				}
			}
		}
	}
	if spans < 40 || files < 4 {
		t.Errorf("only %d keys and %d files were looked at", spans, files)
	}
}

// Who doubts a claim looks up the test that holds it.
func TestDocumentedTestsExist(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, root := range []string{".", "cmd", "internal", "e2e", "soak"} {
		err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && root == "." && path != ".":
				return filepath.SkipDir
			case !strings.HasSuffix(path, "_test.go"):
				return nil
			}
			data, err := os.ReadFile(path)
			for _, match := range declared.FindAllSubmatch(data, -1) {
				tests[string(match[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	named := 0
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			if !regexp.MustCompile(`^(Test|Fuzz)[A-Z]\w*$`).MatchString(span) {
				continue
			}
			named++
			if !tests[span] {
				t.Errorf("%s: there is no test %s", p.path, span)
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d tests are named", named)
	}
}

// Who searches the log for a message must find it as it is written.
func TestDocumentedMessages(t *testing.T) {
	t.Parallel()
	var sources strings.Builder
	for _, root := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			sources.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "### Messages in the log\n")
	table, _, _ = strings.Cut(table, "\n#")
	messages := regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(table, -1)
	if len(messages) < 5 {
		t.Fatalf("only %d messages are explained", len(messages))
	}
	for _, match := range messages {
		if !strings.Contains(sources.String(), `"`+match[1]) {
			t.Errorf("docs/troubleshooting.md explains %q, which freshen never logs", match[1])
		}
	}
}

// Paths of the sources that are named must be there.
func TestDocumentedPathsExist(t *testing.T) {
	t.Parallel()
	source := regexp.MustCompile(`^(internal|cmd|e2e|soak|docs)/[\w./-]+$`)
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			if !source.MatchString(span) {
				continue
			}
			if _, err := os.Stat(span); err != nil {
				t.Errorf("%s: there is no %s", p.path, span)
			}
		}
	}
}
