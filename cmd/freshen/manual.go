package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/alecthomas/kong"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/manual"
)

type completionCmd struct {
	Shell string `arg:"" name:"shell" enum:"bash,zsh,fish" help:"For which shell."`
}

// Run writes what makes a shell complete freshen's commands.
func (c *completionCmd) Run(ctx *kong.Context, to console) error {
	_, err := io.WriteString(to.out, manual.Shells()[c.Shell](ctx.Model))
	return err
}

type manCmd struct {
	Page string `arg:"" name:"page" enum:"freshen.1,freshen.yaml.5" help:"Which page."`
}

// Run writes a manual page. SOURCE_DATE_EPOCH is its date, as in all that is built reproducibly.
func (c *manCmd) Run(ctx *kong.Context, to console) error {
	edition := manual.Edition{Version: app.Version()}
	if text := os.Getenv("SOURCE_DATE_EPOCH"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH must be a number of seconds, is %q", text)
		}
		edition.Date = time.Unix(seconds, 0)
	}
	page := manual.Commands(ctx.Model, edition)
	if c.Page == "freshen.yaml.5" {
		page = manual.Configuration(config.Reference(), edition)
	}
	_, err := io.WriteString(to.out, page)
	return err
}
