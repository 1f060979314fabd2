package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"freshen/internal/config"
)

// stateFolder is where the database goes if the configuration stands below /etc, where programs write nothing.
const stateFolder = "/var/lib/freshen"

// Text is the freshen.yaml for what was found, to be written to path: every key with a comment, what has its default
// commented out.
func (f *Found) Text(path string) string {
	set := map[string]string{
		"listen":                 f.free("127.0.0.1", 8009),
		"homeserver.name":        f.ServerName,
		"homeserver.url":         f.URL,
		"homeserver.signing_key": f.SigningKey,
		"database":               database(path),
	}
	if admin := f.free("127.0.0.1", 9009); !strings.HasSuffix(admin, ":9009") {
		set["admin.listen"] = admin
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# What freshen goes by, written by freshen init from %s.\n", strings.Join(quotedAll(f.Files), ", "))
	b.WriteString("# A key that is commented out has the value that stands there. freshen check looks this file over.\n")
	for _, note := range f.Notes {
		b.WriteString("#\n")
		comment(&b, "", "To be seen to: "+note)
	}
	section := ""
	for _, key := range config.Reference() {
		folder, name := "", key.Path
		if dot := strings.LastIndexByte(key.Path, '.'); dot >= 0 {
			folder, name = key.Path[:dot], key.Path[dot+1:]
		}
		indent := strings.Repeat("  ", strings.Count(key.Path, "."))
		if folder != section {
			f.open(&b, section, folder)
			section = folder
		} else if folder == "" {
			b.WriteString("\n")
		}
		text := strings.TrimSuffix(plain(key.What), " …") + ". Allowed: " + strings.TrimSuffix(plain(key.Allowed), ", see below") + "."
		if key.Variable != "" {
			text += " The environment's " + key.Variable + " overrides it."
		}
		comment(&b, indent, text)
		if key.Path == "database" && f.Postgres != "" {
			comment(&b, indent, "For several instances a database of its own on the homeserver's Postgres, the password by FRESHEN_DATABASE: postgres://freshen@"+
				f.Postgres+"/freshen")
		}
		if v, ok := set[key.Path]; ok {
			fmt.Fprintf(&b, "%s%s: %s\n", indent, name, scalar(v))
			continue
		}
		def := key.Default
		if def == "" {
			def = `""`
		}
		fmt.Fprintf(&b, "%s# %s: %s\n", indent, name, def)
	}
	return b.String()
}

// open begins the mappings that folder needs beyond those of the section before.
func (*Found) open(b *strings.Builder, before, folder string) {
	if folder == "" {
		b.WriteString("\n")
		return
	}
	parts, old := strings.Split(folder, "."), strings.Split(before, ".")
	for i, part := range parts {
		if before != "" && i < len(old) && slices.Equal(parts[:i+1], old[:i+1]) {
			continue
		}
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "%s%s:\n", strings.Repeat("  ", i), part)
	}
}

// free is an address on which the homeserver does not listen.
func (f *Found) free(host string, port int) string {
	for slices.Contains(f.Ports, port) {
		port++
	}
	return host + ":" + strconv.Itoa(port)
}

func database(path string) string {
	if dir := filepath.Dir(path); dir == "/etc" || strings.HasPrefix(dir, "/etc/") {
		if info, err := os.Stat(stateFolder); err == nil && info.IsDir() {
			return stateFolder + "/freshen.db"
		}
	}
	return "freshen.db"
}

// plainValue is text that YAML takes for nothing but itself.
var plainValue = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9/_.:-]*[A-Za-z0-9]$`)

// scalar writes a text as YAML. A quoted one is as JSON writes it, which YAML reads.
func scalar(text string) string {
	if plainValue.MatchString(text) && strings.ContainsAny(text, "./") {
		return text
	}
	return strconv.Quote(text)
}

func quotedAll(texts []string) (quoted []string) {
	for _, text := range texts {
		quoted = append(quoted, strings.Trim(strconv.Quote(text), `"`))
	}
	return quoted
}

var link = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`)

// plain takes Markdown's marks out of a text.
func plain(markdown string) string {
	return strings.ReplaceAll(link.ReplaceAllString(markdown, "$1"), "`", "")
}

// comment writes a text in lines of at most a hundred characters.
func comment(b *strings.Builder, indent, text string) {
	line := indent + "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 100 && line != indent+"#" {
			b.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

// Write makes the file, with that mode whatever the umask. It never overwrites one.
func Write(path, text string, mode fs.FileMode) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s is there already, and is left as it is: name another with --output, or move it away", path)
	case err != nil:
		return fmt.Errorf("the configuration cannot be written: %w", err)
	}
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close()); err != nil {
		return errors.Join(fmt.Errorf("the configuration cannot be written: %w", err), os.Remove(path))
	}
	return nil
}
