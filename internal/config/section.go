package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// section is one mapping of the file. Its methods, here and in values.go, each take one key; done reports the keys that
// nobody took.
//
// The tree is walked by hand because the library's own decoding stops at mistakes of one kind before it looks for those
// of another, and knows no lines afterwards.
type section struct {
	report *report
	path   string
	line   int
	values map[string]entry
	known  []string
	needs  map[string]bool // the required ones
	// variables are those of the environment by the key that they override; what and allowed are for the key that is taken next.
	variables     map[string]string
	what, allowed string
	// broken is set where the mapping could not be read: its keys are then not reported as missing.
	broken bool
}

// entry is the value of one key, from the file or (node nil) from an environment variable.
type entry struct {
	line     int
	node     *yaml.Node
	variable string
	text     string
}

// parseYAML returns the top of the one document in data, or nil after reporting why there is none.
func parseYAML(report *report, data []byte) *section {
	if len(data) > MaxBytes {
		report.add(Mistake{Text: "is larger than 1 MiB, which no configuration is"})
		return nil
	}
	var document yaml.Node
	if err := yaml.Load(data, &document); err != nil && !isEmpty(data) {
		report.add(syntaxMistake(err))
		return nil
	}
	root := &section{report: report, line: 1, values: map[string]entry{}}
	if len(document.Content) > 0 {
		root.fill(document.Content[0])
	}
	return root
}

// isEmpty says whether there are but comments, blank lines and document markers, which the library refuses.
func isEmpty(data []byte) bool {
	for line := range strings.Lines(string(data)) {
		if text := strings.TrimSpace(line); text != "" && text[0] != '#' && text != "---" {
			return false
		}
	}
	return true
}

// syntaxMistake says what the library said, without its prefixes, and where.
func syntaxMistake(err error) Mistake {
	mistake := Mistake{Text: "cannot be parsed as YAML"}
	var failure *yaml.LoadError
	if !errors.As(err, &failure) {
		return mistake
	}
	mistake.Line = failure.Mark.Line
	if failure.ContextMsg != "" && strings.Contains(failure.Message, "unexpected end of stream") {
		// What was opened and never closed is worth more than the last line of the file.
		mistake.Line = failure.ContextMark.Line
		mistake.Text += ": " + failure.ContextMsg
	}
	mistake.Text += ": " + strings.TrimPrefix(failure.Message, "yaml: ")
	return mistake
}

// fill takes the members of node. A key that stands twice counts once, and is reported.
func (s *section) fill(node *yaml.Node) {
	node = target(node)
	switch {
	case isNull(node):
		return
	case node.Kind != yaml.MappingNode:
		s.broken = true
		s.report.add(Mistake{Line: node.Line, Key: s.path, Text: "must be a mapping of keys to values, is " + kindOf(node)})
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			s.report.add(Mistake{Line: key.Line, Key: s.path, Text: "has a key that is no plain word, but " + kindOf(target(key))})
			continue
		}
		if first, twice := s.values[key.Value]; twice {
			s.report.add(Mistake{Line: key.Line, Key: s.key(key.Value), Text: "stands here a second time, first on line " + strconv.Itoa(first.line)})
			continue
		}
		s.values[key.Value] = entry{line: key.Line, node: value}
	}
}

// override puts the value of an environment variable, if it has one, in the place of the file's.
func (s *section) override(key, variable string, getenv func(string) string) {
	if s.variables == nil {
		s.variables = map[string]string{}
	}
	s.variables[key] = variable
	if text := getenv(variable); text != "" {
		s.values[key] = entry{variable: variable, text: text}
	}
}

// section takes the mapping at key; where it is absent it is empty.
func (s *section) section(key string) *section {
	s.known = append(s.known, key)
	sub := &section{report: s.report, path: s.key(key), line: s.line, values: map[string]entry{}, broken: s.broken}
	if e, ok := s.values[key]; ok {
		sub.line = e.line
		sub.fill(e.node)
	}
	return sub
}

// done reports the keys that are in the file and mean nothing.
func (s *section) done() {
	for key, e := range s.values {
		if !slices.Contains(s.known, key) {
			s.report.add(Mistake{Line: e.line, Key: s.key(key), Text: "is no key that freshen knows; here may stand " + strings.Join(s.known, ", ")})
		}
	}
}

// required reports a key that is absent.
func (s *section) required(key string) {
	if s.needs == nil {
		s.needs = map[string]bool{}
	}
	s.needs[key] = true
	e, ok := s.values[key]
	if !s.broken && (!ok || isNull(target(e.node))) {
		line := s.line
		if ok {
			line = e.line
		}
		s.report.add(Mistake{Line: line, Key: s.key(key), Text: "is required and missing"})
	}
}

// scalar takes the single value at key. It is false where the default holds: the key is absent or null, or was
// reported as something else.
func (s *section) scalar(key string) (string, bool) {
	s.known = append(s.known, key)
	e, ok := s.values[key]
	if !ok {
		return "", false
	}
	s.report.places[s.key(key)] = Mistake{Variable: e.variable, Line: e.line, Key: s.key(key)}
	if e.variable != "" {
		return e.text, true
	}
	node := target(e.node)
	switch {
	case isNull(node):
		return "", false
	case node.Kind != yaml.ScalarNode:
		s.mistake(key, "must be a single value, is %s", kindOf(node))
		return "", false
	case !isPlain(node):
		s.mistake(key, "has the tag %s, which freshen does not know", quoted(node.Tag))
		return "", false
	}
	return node.Value, true
}

// item is one member of a list, key its path: federation.allow_servers[2].
type item struct {
	line int
	key  string
	text string
}

// list takes the list at key, without its members that are no single values, which it reports.
func (s *section) list(key string) []item {
	s.known = append(s.known, key)
	e, ok := s.values[key]
	if !ok {
		return nil
	}
	node := target(e.node)
	if isNull(node) {
		return nil
	}
	if node.Kind != yaml.SequenceNode {
		s.mistake(key, "must be a list, is %s", kindOf(node))
		return nil
	}
	items := make([]item, 0, len(node.Content))
	for i, member := range node.Content {
		it := item{line: member.Line, key: fmt.Sprintf("%s[%d]", s.key(key), i)}
		member = target(member)
		if member.Kind != yaml.ScalarNode || isNull(member) || !isPlain(member) {
			s.itemMistake(it, "must be a single value, is %s", kindOf(member))
			continue
		}
		it.text = member.Value
		items = append(items, it)
	}
	return items
}

// mistake reports what is wrong with the value at key.
func (s *section) mistake(key, format string, args ...any) {
	mistake := Mistake{Line: s.line, Key: s.key(key), Text: fmt.Sprintf(format, args...)}
	if e, ok := s.values[key]; ok {
		mistake.Line, mistake.Variable = e.line, e.variable
	}
	s.report.add(mistake)
}

func (s *section) itemMistake(it item, format string, args ...any) {
	s.report.add(Mistake{Line: it.line, Key: it.key, Text: fmt.Sprintf(format, args...)})
}

// mistakes counts what has been reported so far, so that a rule over two keys can hold back where one of them is wrong.
func (s *section) mistakes() int { return len(s.report.mistakes) }

// key is the whole path of a key. One that is no plain word is quoted, so that the report stays one line.
func (s *section) key(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '"' || r > '~' }) || name == "" || len(name) > 60 {
		name = quoted(name)
	}
	if s.path == "" {
		return name
	}
	return s.path + "." + name
}

// target follows an alias (*name) to what it stands for.
func target(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode && node.Alias != nil {
		return node.Alias
	}
	return node
}

// isNull says whether nothing was given: "key:", "key: ~" and "key: null", all of which leave the default.
func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// isEmptyText says whether node is the empty string.
func isEmptyText(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.Value == "" && !isNull(node)
}

// isPlain says whether a scalar's tag is one that leaves its text as it is. "!!binary" or "!env" would promise more.
func isPlain(node *yaml.Node) bool {
	switch node.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
		return true
	}
	return false
}

func kindOf(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if isNull(node) {
			return "empty"
		}
		return "a single value"
	}
	return "something else"
}
