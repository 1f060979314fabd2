package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

//go:generate go run ./document ../../docs/configuration.md

// Key is one key of the file, as the reference in docs/configuration.md and the comments that freshen init writes tell of
// it. All of it is noted down where the parser takes the key, so that it cannot be otherwise.
type Key struct {
	// Path is its whole path, such as limits.per_user.burst.
	Path string
	// Default is its value where it is absent, as the file would have it; "" where that is none, or where it is required.
	Default  string
	Required bool
	// What and Allowed are Markdown: what it is, and which values it takes.
	What, Allowed string
	// Variable is the environment variable that overrides it, or empty.
	Variable string
	// Reloads says whether a running freshen takes it over at a SIGHUP.
	Reloads bool
}

// Reference tells of every key, in the order in which the parser takes them.
func Reference() []Key {
	noted := &report{places: map[string]Mistake{}}
	root := &section{report: noted, line: 1, values: map[string]entry{}}
	Default().read(root, ".", func(string) string { return "" })
	return noted.keys
}

// The lines in docs/configuration.md between which the table stands.
const (
	tableBegins = "<!-- The table is written by make docs, from internal/config. -->\n"
	tableEnds   = "<!-- End of the table. -->\n"
)

// Document returns the text of docs/configuration.md with its table of keys as the code has them. All else in it is written by
// hand and stays as it is.
func Document(text string) (string, error) {
	before, rest, begins := strings.Cut(text, tableBegins)
	_, after, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		return "", fmt.Errorf("there is no place for the table of keys, which are the lines %q and %q", tableBegins, tableEnds)
	}
	return before + tableBegins + "\n" + table() + "\n" + tableEnds + after, nil
}

func table() string {
	var b strings.Builder
	b.WriteString("| key | default | what it is | allowed | a change needs |\n|---|---|---|---|---|\n")
	for _, key := range Reference() {
		def, what, needs := "`"+key.Default+"`", key.What, "restart"
		switch {
		case key.Required:
			def = "required"
		case key.Default == "":
			def = "none"
		}
		if key.Variable != "" {
			what += "; `" + key.Variable + "` overrides it"
		}
		if key.Reloads {
			needs = "SIGHUP"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", key.Path, def, what, key.Allowed, needs)
	}
	return b.String()
}

// is says what the key is that is taken next, in Markdown. allowed, if it is given, takes the place of what the parser tells
// of the values by itself.
func (s *section) is(what string, allowed ...string) *section {
	s.what, s.allowed = what, strings.Join(allowed, "")
	return s
}

// note tells the reference of a key. def and allowed are what the parser goes by.
func (s *section) note(key, def, allowed string) {
	path := s.key(key)
	s.report.keys = append(s.report.keys, Key{
		Path: path, Default: def, Required: s.needs[key],
		What: s.what, Allowed: cmp.Or(s.allowed, allowed), Variable: s.variables[key], Reloads: reloads(path),
	})
	s.what, s.allowed = "", ""
}

func between(least, most time.Duration) string {
	return "`" + short(least) + "` to `" + short(most) + "`"
}

func oneOfThese(names ...string) string { return "`" + strings.Join(names, "`, `") + "`" }

func levelName(level slog.Level) string { return strings.ToLower(level.String()) }

func burstBounds(least, most int) string { return strconv.Itoa(least) + " to " + strconv.Itoa(most) }
