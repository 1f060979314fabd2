package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/term"

	"freshen"
	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/doctor"
	"freshen/internal/federation"
)

type doctorCmd struct {
	URL    string `name:"url" placeholder:"URL" help:"The site's public base URL. Without it: found by the server name, as clients do."`
	Server string `placeholder:"NAME" help:"Another homeserver, to fetch from: matrix.org."`
	JSON   bool   `name:"json" help:"For programs."`
}

// Run looks at the site as it runs, and fails if anything does.
func (c *doctorCmd) Run(line *cli, to console) error {
	if u, err := url.Parse(c.URL); c.URL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("--url must be a URL such as https://matrix.example.org")
	}
	if c.Server != "" && !freshen.ValidServerName(c.Server) {
		return errors.New("--server must be a server name such as matrix.org")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	report, err := c.look(ctx, line)
	if err != nil {
		return err
	}
	if c.JSON {
		if err := writeJSON(to.out, report); err != nil {
			return err
		}
	} else {
		showReport(to.out, report)
	}
	if report.Failed() {
		return errors.New("not all is well")
	}
	return nil
}

// look is the visit. Without a configuration that can be used there is nothing else to look at.
func (c *doctorCmd) look(ctx context.Context, line *cli) (*doctor.Report, error) {
	path, err := line.configPath()
	if err != nil {
		return nil, err
	}
	broken := func(err error) (*doctor.Report, error) {
		report := new(doctor.Report)
		mistakes, ok := errors.AsType[*config.Mistakes](err)
		if !ok {
			return nil, err
		}
		for text := range strings.SplitSeq(mistakes.Error(), "\n") {
			report.Lines = append(report.Lines, doctor.Line{Check: "configuration", Status: doctor.Failed, Text: text, Fix: "Mend " + path + "; docs/configuration.md tells every key."})
		}
		return report, nil
	}
	cfg, err := config.Load(path)
	if err != nil {
		return broken(err)
	}
	// The database is looked at apart, since it may be used just now.
	files := *cfg
	files.Database = config.Database{URL: &url.URL{}}
	warning, err := checkFiles(&files)
	if err != nil {
		return broken(err)
	}
	key, _, err := federation.ReadSigningKey(cfg.Homeserver.SigningKey)
	if err != nil {
		return nil, err
	}
	roots, err := federation.LoadRoots(cfg.Federation.CAFile)
	if err != nil {
		return nil, err
	}
	first := doctor.Line{Check: "configuration", Status: doctor.OK, Text: path + " can be used."}
	if warning != "" {
		first.Status, first.Text, first.Fix = doctor.Warning, warning, "chmod 600 "+cfg.Homeserver.SigningKey
	}
	visit := doctor.Config{Config: cfg, Key: key, Roots: roots, Version: app.Version(), PublicURL: c.URL, Server: c.Server}
	if info, err := os.Stat(path); err == nil {
		visit.Changed = info.ModTime()
	}
	report := doctor.Run(ctx, visit)
	report.Lines = append([]doctor.Line{first}, report.Lines...)
	return report, nil
}

// showReport writes one line for each check, and below those that are not well what to do. Colours only for a person who
// has not declined them (NO_COLOR).
func showReport(w io.Writer, report *doctor.Report) {
	colour := map[doctor.Status]string{}
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == "" {
		colour = map[doctor.Status]string{doctor.OK: "\x1b[32m", doctor.Warning: "\x1b[33m", doctor.Failed: "\x1b[31m"}
	}
	for i, line := range report.Lines {
		begin, end := colour[line.Status], ""
		if begin != "" {
			end = "\x1b[0m"
		}
		fmt.Fprintf(w, "%s%-7s%s  %-14s %s\n", begin, line.Status, end, line.Check, sentence(line.Text))
		// What mends several in a row is said once, after the last.
		if again := i+1 < len(report.Lines) && report.Lines[i+1].Fix == line.Fix; line.Fix != "" && !again {
			fmt.Fprintf(w, "         %-14s → %s\n", "", sentence(line.Fix))
		}
	}
	if report.Missing != "" {
		fmt.Fprintf(w, "\nThese lines are missing in the reverse proxy:\n\n%s", report.Missing)
	}
}
