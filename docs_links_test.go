package freshen_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// page is a file of the documentation.
type page struct {
	// path is relative to the repository, text is without its blocks of code, and blocks are those, with their language.
	path, text string
	blocks     []block
}

type block struct{ language, text string }

// pages are all that people read: the README, CONTRIBUTING and docs/.
func pages(t *testing.T) []page {
	t.Helper()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil || len(paths) < 10 {
		t.Fatalf("docs/ has %d pages: %v", len(paths), err)
	}
	all := make([]page, 0, len(paths)+2)
	for _, path := range append(paths, "README.md", "CONTRIBUTING.md") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p := page{path: path}
		var text, code strings.Builder
		language, inside := "", false
		for line := range strings.Lines(string(data)) {
			fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case isFence && !inside:
				language, inside = fence, true
			case isFence:
				p.blocks, inside = append(p.blocks, block{language, code.String()}), false
				code.Reset()
			case inside:
				code.WriteString(line)
			default:
				text.WriteString(line)
			}
		}
		if inside {
			t.Errorf("%s: a block of code does not end", path)
		}
		p.text = text.String()
		all = append(all, p)
	}
	return all
}

// spans are what stands between backticks in a text.
func (p *page) spans() (spans []string) {
	for _, match := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(p.text, -1) {
		spans = append(spans, match[1])
	}
	return spans
}

var heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)

// anchors are the names of a page's headings, as GitHub and most others make them.
func (p *page) anchors() map[string]bool {
	names := map[string]bool{}
	times := map[string]int{}
	for _, match := range heading.FindAllStringSubmatch(p.text, -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127 && strings.ContainsRune("äöüéèß", r):
				return r
			}
			return -1
		}, strings.ToLower(match[1]))
		if n := times[name]; n > 0 {
			names[name+"-"+strconv.Itoa(n)] = true
		} else {
			names[name] = true
		}
		times[name]++
	}
	return names
}

// A link that leads nowhere leaves a reader alone in the middle of a problem.
func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	all := pages(t)
	byPath := map[string]*page{}
	for i := range all {
		byPath[all[i].path] = &all[i]
	}
	links := 0
	for _, p := range all {
		for _, match := range regexp.MustCompile(`(?:\]\(|src=")([^)"\s]+)[)"]`).FindAllStringSubmatch(p.text, -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			file := p.path
			if target != "" {
				file = filepath.Join(filepath.Dir(p.path), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: %s leads to a file that is not there", p.path, match[1])
				continue
			}
			if anchor == "" {
				continue
			}
			if to := byPath[file]; to == nil || !to.anchors()[anchor] {
				t.Errorf("%s: %s leads to a heading that is not there", p.path, match[1])
			}
		}
	}
	if links < 80 {
		t.Errorf("only %d links were looked at", links)
	}
}

// A page to which no link leads is found by nobody.
func TestEveryPageIsLinkedFromTheREADME(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		if p.path != "README.md" && !strings.Contains(string(readme), "]("+p.path+")") {
			t.Errorf("README.md has no link to %s", p.path)
		}
	}
}
