package main

import (
	"fmt"
	"io/fs"

	"freshen/internal/config"
	"freshen/internal/setup"
)

type initCmd struct {
	Homeserver string `arg:"" name:"file" help:"The homeserver's configuration: Synapse's homeserver.yaml or Dendrite's dendrite.yaml."`
	Output     string `short:"o" default:"freshen.yaml" placeholder:"FILE" help:"What to write; never overwritten."`
	Service    bool   `help:"For the systemd service: it gets the signing key as a credential, and may read the file, which holds no secret."`
}

// The service has a user of its own, who can read neither the homeserver's key nor what only root can.
const (
	serviceKey     = "credential:signing_key"
	serviceKeyFile = "/etc/freshen/signing_key" // where the unit takes that from
)

// Run writes a configuration for the homeserver whose own configuration it reads. What it writes is checked before.
func (c *initCmd) Run(to console) error {
	found, err := setup.Read(c.Homeserver)
	if err != nil {
		return err
	}
	text := found.Text(c.Output)
	cfg, err := config.Parse(c.Output, []byte(text), func(string) string { return "" })
	if err != nil {
		return err
	}
	warning, err := checkFiles(cfg)
	if err != nil {
		return fmt.Errorf("nothing was written, since it would not do: %w", err)
	}
	mode, key := fs.FileMode(0o600), found.SigningKey
	if c.Service {
		found.SigningKey, mode = serviceKey, 0o644
		text = found.Text(c.Output)
	}
	if err := setup.Write(c.Output, text, mode); err != nil {
		return err
	}
	fmt.Fprintf(to.out, "%s: written\n", c.Output)
	for _, row := range summary(cfg) {
		fmt.Fprintf(to.out, "  %-12s %s\n", row[0], row[1])
	}
	if warning != "" {
		found.Notes = append(found.Notes, warning)
	}
	for _, note := range found.Notes {
		fmt.Fprintf(to.out, "\n%s\n", note)
	}
	if c.Service {
		fmt.Fprintf(to.out, "\nNext: ln -s %s %s, systemctl enable --now freshen, send /_matrix/ to %s in the reverse proxy, and then freshen doctor\n",
			key, serviceKeyFile, cfg.Listen)
		return nil
	}
	flag := ""
	if c.Output != "freshen.yaml" {
		flag = " --config " + c.Output
	}
	fmt.Fprintf(to.out, "\nNext: freshen serve%s, send /_matrix/ to %s in the reverse proxy, and then freshen doctor%[1]s\n", flag, cfg.Listen)
	return nil
}
