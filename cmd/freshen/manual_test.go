package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"freshen/internal/config"
	"freshen/internal/testbed/testbedtest"
)

// typed are lines as somebody types them, and how they can go on.
var typed = []struct {
	line string
	want []string
}{
	{"freshen ", []string{"check", "completion", "doctor", "init", "owed", "refresh", "serve", "version"}},
	{"freshen ow", []string{"owed"}},
	{"freshen owed ", []string{"drop", "retry"}},
	{"freshen owed drop --", []string{"--config", "--help"}},
	{"freshen owed --j", []string{"--json"}},
	{"freshen -c owed se", []string{"serve"}},
	{"freshen --config owed se", []string{"serve"}},
	{"freshen doctor --s", []string{"--server"}},
	{"freshen doctor --url ", nil},
	{"freshen doctor --url owed --ser", []string{"--server"}},
	{"freshen completion ", []string{"bash", "fish", "zsh"}},
	{"freshen completion f", []string{"fish"}},
	{"freshen --config fr", []string{"freshen.yaml"}},
	{"freshen refresh --token-file to", []string{"token file"}},
	{"freshen init h", []string{"homeserver.yaml"}},
}

// Each of the shells loads what is written for it, and offers what there is, and where a command or flag cannot stand, none.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for shell, script := range map[string]string{
		"bash": `source ./completion
# COMP_LINE is split as readline does, where that matters here.
COMP_WORDS=($1); [[ $1 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_freshen
printf '%s\n' "${COMPREPLY[@]}"`,
		"zsh": `compdef() { [[ "$*" == "_freshen freshen" ]] || exit 1 }
# zsh's own, which match and show; here they say what they are given.
_describe() { local array; [[ $1 == -o ]] && shift; array=("${(@P)2}"); for one in $array; do print -r -- "${one%%:*}"; done }
_files() { print -rl -- *(N) }
_message() { }
source ./completion
words=(${(z)1}); [[ $1 == *" " ]] && words+=("")
CURRENT=${#words}
_freshen`,
		"fish": `source ./completion
complete -C "$argv[1]" | string replace -r '\t.*' ''; or true`,
	} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			stdout, stderr, status := finish(t, command(t, dir, "completion", shell))
			if status != 0 {
				t.Fatal(stderr)
			}
			path := testbedtest.Program(t, shell, shell)
			for name, text := range map[string]string{"completion": stdout, "freshen.yaml": "", "homeserver.yaml": "", "token file": ""} {
				write(t, dir, name, text)
			}
			for _, c := range typed {
				args := []string{"-c", script, shell, c.line}
				if shell == "fish" {
					args = slices.Delete(args, 2, 3)
				}
				cmd := exec.CommandContext(t.Context(), path, args...)
				cmd.Dir = dir
				cmd.Env = []string{"HOME=" + dir, "LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin"}
				stdout, stderr, status := finish(t, cmd)
				if status != 0 || stderr != "" {
					t.Errorf("%q: %s ends with %d: %s", c.line, shell, status, stderr)
				}
				begun := c.line[strings.LastIndexByte(c.line, ' ')+1:]
				var got []string
				for line := range strings.Lines(stdout) {
					line = strings.NewReplacer(`\`, "", "'", "").Replace(strings.TrimSpace(line))
					if line != "" && strings.HasPrefix(line, begun) && (shell != "fish" || line != "-h" && line != "-c") {
						got = append(got, line)
					}
				}
				slices.Sort(got)
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("%s, %q (-want +got):\n%s", shell, c.line, diff)
				}
			}
		})
	}
}

// The manual tells of every command, flag and key, and man shows it without a complaint.
func TestManual(t *testing.T) {
	t.Parallel()
	mandoc := testbedtest.Program(t, "mandoc", "mandoc")
	var keys []string
	for _, key := range config.Reference() {
		keys = append(keys, key.Path, key.Default)
	}
	for page, wants := range map[string][]string{
		"freshen.1":      {"FRESHEN(1)", "v0.0.0-test", "2026-02-03", "freshen owed drop user-or-server", "--token-file FILE", "-c FILE", "FRESHEN_ADMIN_LISTEN", "One of bash, zsh, fish."},
		"freshen.yaml.5": append(keys, "FRESHEN.YAML(5)", "Synapse's signing.key or Dendrite's matrix_key.pem"),
	} {
		dir := t.TempDir()
		cmd := command(t, dir, "man", page)
		cmd.Env = append(cmd.Env, "SOURCE_DATE_EPOCH=1770120000")
		stdout, stderr, status := finish(t, cmd)
		if status != 0 {
			t.Fatal(stderr)
		}
		write(t, dir, page, stdout)
		for complaint := range strings.SplitSeq(outputOf(t, mandoc, "-Tlint", "-Wwarning", filepath.Join(dir, page)), "\n") {
			if complaint != "" {
				t.Error(complaint)
			}
		}
		shown := strings.Join(strings.Fields(outputOf(t, mandoc, "-Tascii", "-Owidth=1000", filepath.Join(dir, page))), " ")
		for i := strings.IndexByte(shown, '\b'); i >= 0; i = strings.IndexByte(shown, '\b') {
			shown = shown[:i-1] + shown[i+1:] // bold and underlined
		}
		for _, want := range wants {
			if !strings.Contains(shown, want) {
				t.Errorf("%s does not tell of %q:\n%s", page, want, shown)
			}
		}
		if strings.Contains(shown, "](") || strings.Contains(shown, "`") {
			t.Errorf("%s shows Markdown:\n%s", page, shown)
		}
	}
}

// outputOf is what a program writes.
func outputOf(t *testing.T, name string, args ...string) string {
	t.Helper()
	stdout, stderr, _ := finish(t, exec.CommandContext(t.Context(), name, args...))
	return stdout + stderr
}
