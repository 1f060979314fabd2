package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Mistakes is the error for a configuration that cannot be used. It holds all that is wrong, in the order of the file.
type Mistakes struct {
	// File is the file's name without its folder.
	File string
	List []Mistake
}

// Mistake is one thing that is wrong. The text repeats nothing that can hold a password.
type Mistake struct {
	// Variable is the environment variable that gave the value, or empty if the file did.
	Variable string
	// Line counts from 1; it is 0 for a variable and for what concerns the file as a whole. A key that is missing has
	// the line of the section it is missing from.
	Line int
	// Key is the path of the key, such as limits.per_user.burst, or empty.
	Key string
	// Text goes on from the key: "must be at least 1, is 0".
	Text string
}

// Error has one line for each mistake: "freshen.yaml:12: limits.per_user.burst: must be at least 1, is 0".
func (m *Mistakes) Error() string {
	lines := make([]string, len(m.List))
	for i, mistake := range m.List {
		lines[i] = mistake.in(m.File)
	}
	return strings.Join(lines, "\n")
}

// report gathers the mistakes while a file is read, and where each key stands.
type report struct {
	mistakes []Mistake
	// places are mistakes without text yet, by key.
	places map[string]Mistake
	// keys are all that were looked for, for the reference.
	keys []Key
	// credentials is the folder of the credentials that systemd hands over.
	credentials string
}

func (r *report) add(mistake Mistake) {
	r.mistakes = append(r.mistakes, mistake)
}

// err is nil if nothing is wrong.
func (r *report) err(file string) error {
	if len(r.mistakes) == 0 {
		return nil
	}
	slices.SortStableFunc(r.mistakes, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	return &Mistakes{File: file, List: r.mistakes}
}

func (m Mistake) in(file string) string {
	var where string
	switch {
	case m.Variable != "":
		where = m.Variable + ": "
	case m.Line > 0:
		where = fmt.Sprintf("%s:%d: ", file, m.Line)
	default:
		where = file + ": "
	}
	if m.Key != "" && m.Variable == "" {
		where += m.Key + ": "
	}
	return where + m.Text
}

// quoted shows a value that cannot be a secret: on one line, escaped, shortened.
func quoted(text string) string {
	const most = 60
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return fmt.Sprintf("%q", text)
}
