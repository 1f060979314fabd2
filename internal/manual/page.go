package manual

import (
	"regexp"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"freshen/internal/config"
)

// Edition is which freshen a page tells of.
type Edition struct {
	Version string
	// Date is when that was made; the zero time where nobody knows.
	Date time.Time
}

const (
	intro = "freshen lets the users of a Matrix homeserver refresh a remote user's device list (MSC2638). " +
		"It runs between the reverse proxy and the homeserver, asks the remote user's own server over federation, goes on trying while " +
		"that server is down, and brings the fresh list to every client that needs it."
	exits       = "Every command ends with 0 if it is done, 1 if it failed, and 2 if it was used wrongly."
	environment = `FRESHEN_LISTEN, FRESHEN_ADMIN_LISTEN, FRESHEN_DATABASE
Override the keys listen, admin.listen and database of the configuration file.
FRESHEN_TOKEN
The access token that freshen refresh asks with.
CREDENTIALS_DIRECTORY
Where credential:NAME in the configuration file is found. systemd sets it; without it, /run/credentials/freshen.service.
NOTIFY_SOCKET, LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID
Are set by systemd: where freshen serve says how it is, and the sockets that are passed to it.`
	files = `./freshen.yaml, /etc/freshen/freshen.yaml
The configuration file, where --config names no other.`
	reading = "Relative paths are relative to the folder of the file, durations have their unit (30s, 1h30m), " +
		"unknown keys are mistakes, and a key without a value has its default. freshen check reports every mistake at once."
)

// Commands is the manual page of the program, freshen(1).
func Commands(app *kong.Application, edition Edition) string {
	program := tree(app.Node)
	p := newPage(program.program, "1", edition)
	p.section("NAME")
	p.text(program.program + ` \- refreshes device lists for a Matrix homeserver`)
	p.section("SYNOPSIS")
	p.line(".B " + escape(program.program))
	p.line(`.RI [ option " ...] " command " [" argument " ...]"`)
	p.section("DESCRIPTION")
	p.text(escape(intro))
	p.section("OPTIONS")
	p.flags(program.flags)
	p.section("COMMANDS")
	program.each(func(c command) {
		if c.at != "" {
			p.command(program.program, c)
		}
	})
	p.section("EXIT STATUS")
	p.text(escape(exits))
	p.section("ENVIRONMENT")
	p.pairs(environment)
	p.section("FILES")
	p.pairs(files)
	p.section("SEE ALSO")
	p.text(`.BR freshen.yaml (5)`)
	return p.b.String()
}

// Configuration is the manual page of the configuration file, freshen.yaml(5).
func Configuration(keys []config.Key, edition Edition) string {
	p := newPage("freshen.yaml", "5", edition)
	p.section("NAME")
	p.text(`freshen.yaml \- configuration of freshen`)
	p.section("DESCRIPTION")
	p.text(escape("The configuration of freshen(1) is one YAML file. " + reading))
	p.section("KEYS")
	for _, key := range keys {
		p.line(".TP")
		p.line(".B " + escape(key.Path))
		p.text(escape(plain(key.What) + "."))
		p.line(".br")
		p.text(escape("Allowed: " + plain(key.Allowed) + "."))
		p.line(".br")
		switch {
		case key.Required:
			p.text("Required.")
		case key.Default == "":
			p.text("Default: none.")
		default:
			p.text(escape("Default: " + key.Default))
		}
	}
	p.section("SEE ALSO")
	p.text(`.BR freshen (1)`)
	return p.b.String()
}

// page is one in the macros of man(7), which every man program knows.
type page struct{ b strings.Builder }

func newPage(name, section string, edition Edition) *page {
	p := new(page)
	date := ""
	if !edition.Date.IsZero() {
		date = edition.Date.UTC().Format(time.DateOnly)
	}
	p.line(`.\" Made from the program's own definitions; do not edit.`)
	p.line(".TH " + escape(strings.ToUpper(name)) + " " + section + ` "` + date + `" "freshen ` + escape(edition.Version) + `"`)
	return p
}

func (p *page) line(text string) { p.b.WriteString(text + "\n") }

func (p *page) section(title string) { p.line(".SH " + title) }

// text writes what is escaped already.
func (p *page) text(text string) { p.line(text) }

// pairs writes a name and what it is, in turn.
func (p *page) pairs(text string) {
	for i, line := range strings.Split(text, "\n") {
		if i%2 == 0 {
			p.line(".TP\n.B " + escape(line))
		} else {
			p.line(escape(line))
		}
	}
}

func (p *page) command(program string, c command) {
	p.line(`.SS "` + escape(program+" "+c.at) + `"`)
	if len(c.args) > 0 || len(c.flags) > 0 {
		usage := []string{".B", escape(program + " " + c.at)}
		for _, f := range c.flags {
			usage = append(usage, "["+escape(f.String())+"]")
		}
		for _, a := range c.args {
			usage = append(usage, `\fI`+escape(a.name)+`\fB`)
		}
		p.line(strings.Join(usage, " "))
		p.line(".PP")
	}
	p.text(escape(c.help))
	for _, a := range c.args {
		p.line(".TP\n.I " + escape(a.name))
		p.text(escape(a.described()))
	}
	p.flags(c.flags)
}

func (p *page) flags(flags []flag) {
	for _, f := range flags {
		names := `\fB` + escape(strings.Join(f.names, ", ")) + `\fR`
		if f.value.name != "" {
			names += ` \fI` + escape(f.value.name) + `\fR`
		}
		p.line(".TP\n" + names)
		p.text(escape(f.help))
	}
}

func (v value) described() string {
	if len(v.values) == 0 {
		return v.help
	}
	return v.help + " One of " + strings.Join(v.values, ", ") + "."
}

func (f flag) String() string {
	if f.value.name == "" {
		return f.names[0]
	}
	return f.names[0] + " " + f.value.name
}

var (
	link   = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`)
	inRoff = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "`", "", "\n\n", "\n.PP\n")
)

// plain takes Markdown's marks out of a text. What stands below the table in the documentation does not stand here.
func plain(markdown string) string {
	markdown = strings.ReplaceAll(strings.ReplaceAll(markdown, ", see below", ""), "; see below", "")
	return strings.TrimSuffix(strings.ReplaceAll(link.ReplaceAllString(markdown, "$1"), "`", ""), ".")
}

// escape makes of any text one that roff shows as it is.
func escape(text string) string {
	text = inRoff.Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
