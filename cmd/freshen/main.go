// Command freshen adds MSC2638, the refreshing of a remote user's device list, to any Matrix homeserver that it stands
// in front of.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"freshen/internal/config"
)

// The exit statuses of every command.
const (
	exitDone = iota
	exitFailed
	exitUsage
)

// cli is the command line. Each command is in the file of its name.
type cli struct {
	Config string `short:"c" placeholder:"FILE" help:"The configuration file. Without it: ./freshen.yaml, or else /etc/freshen/freshen.yaml."`

	Serve   serveCmd   `cmd:"" help:"Stand in front of the homeserver and serve until SIGTERM or SIGINT."`
	Init    initCmd    `cmd:"" help:"Write a freshen.yaml for a homeserver, from its own configuration."`
	Check   checkCmd   `cmd:"" help:"Check the configuration file and the files that it names, and report every mistake."`
	Doctor  doctorCmd  `cmd:"" help:"Look at the site as it runs, and say of each thing whether it is right and what to do."`
	Refresh refreshCmd `cmd:"" help:"Refresh a user's device list as a client would, and show the devices and who signed them."`
	Owed    owedCmd    `cmd:"" help:"Show what freshen owes: the refreshes that it goes on trying."`
	Version versionCmd `cmd:"" help:"Say which freshen this is."`

	Completion completionCmd `cmd:"" help:"Write what makes a shell complete these commands."`
	Man        manCmd        `cmd:"" hidden:"" help:"Write a manual page."`
}

// console is what a command writes to: results to out, everything else to err.
type console struct {
	out, err io.Writer
}

func main() {
	os.Exit(run(os.Args[1:], console{out: os.Stdout, err: os.Stderr}))
}

// run is main without the exit, except that --help ends the program.
func run(args []string, to console) int {
	var line cli
	parser, err := kong.New(&line,
		kong.Name("freshen"),
		kong.Description("freshen lets the users of a Matrix homeserver refresh a remote user's device list (MSC2638).\n\n"+
			"Exit status: 0 done, 1 failed, 2 wrong usage."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Writers(to.out, to.err),
		kong.Bind(to, &line),
	)
	if err != nil {
		fmt.Fprintf(to.err, "freshen: %v\n", err)
		return exitFailed
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(to.err, "freshen: %v (freshen --help tells the usage)\n", err)
		return exitUsage
	}
	if err := command.Run(); err != nil {
		complain(to.err, err)
		return exitFailed
	}
	return exitDone
}

// complain writes mistakes in the configuration as they are, so that editors find their lines, and marks all else as
// freshen's.
func complain(w io.Writer, err error) {
	if mistakes, ok := errors.AsType[*config.Mistakes](err); ok {
		fmt.Fprintln(w, mistakes)
		return
	}
	fmt.Fprintf(w, "freshen: %v\n", err)
}

// configPath is the file that --config names, or the first there is of those that it defaults to.
func (c *cli) configPath() (string, error) {
	if c.Config != "" {
		return c.Config, nil
	}
	for _, path := range []string{"freshen.yaml", "/etc/freshen/freshen.yaml"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			return path, nil
		}
	}
	return "", errors.New("there is no configuration file, neither ./freshen.yaml nor /etc/freshen/freshen.yaml: write one, or name it with --config")
}

// load reads the configuration file.
func (c *cli) load() (*config.Config, string, error) {
	path, err := c.configPath()
	if err != nil {
		return nil, "", err
	}
	cfg, err := config.Load(path)
	return cfg, path, err
}
