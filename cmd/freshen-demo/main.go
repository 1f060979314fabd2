//go:build goolm

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/scenario"
)

// closeWithin bounds the end of the demo; what is left then is killed.
const closeWithin = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr, isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "")
	stop()
	os.Exit(status)
}

func run(ctx context.Context, args []string, out, errs io.Writer, color bool) int {
	flags := flag.NewFlagSet("freshen-demo", flag.ContinueOnError)
	flags.SetOutput(errs)
	keep := flags.Bool("keep", os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0",
		"leave everything running after the last step, to play with (also KEEP=1)")
	before := flags.String("homeserver", cmp.Or(os.Getenv("HOMESERVER"), "dendrite"), "which homeserver A is, with freshen before it: dendrite or synapse (also HOMESERVER=)")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(errs, "freshen-demo takes no arguments, only --keep and --homeserver; %q is one.\n", flags.Arg(0))
		return 2
	}
	kind, ok := map[string]testbed.Kind{"dendrite": testbed.Dendrite, "synapse": testbed.Synapse}[strings.ToLower(*before)]
	if !ok {
		fmt.Fprintf(errs, "--homeserver must be dendrite or synapse, is %q.\n", *before)
		return 2
	}
	s := &screen{out: out, color: color}
	switch err := show(ctx, s, kind, *keep); {
	case errors.Is(err, errInterrupted):
		fmt.Fprintln(out, "\nStopped before the end, and cleaned up.")
		return 1
	case err != nil:
		s.failed(err)
		return 1
	}
	return 0
}

// errInterrupted says that the viewer has had enough.
var errInterrupted = errors.New("interrupted")

// show runs the demo and cleans up after it. Data and logs stay where something went wrong.
func show(ctx context.Context, s *screen, before testbed.Kind, keep bool) (err error) {
	started := time.Now()
	s.header()
	dir, err := testbed.TempDir()
	if err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil && err != nil {
			err = errInterrupted
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			err = fmt.Errorf("%w\nThe data and logs of all programs are kept in %s", err, dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	for _, kind := range []testbed.Kind{before, testbed.Dendrite} {
		if _, err := kind.Build(ctx, s.out); err != nil {
			return err
		}
	}
	built := time.Now()
	world, err := testbed.Start(ctx, testbed.Options{Dir: dir, A: before, Freshen: true, Progress: s.out})
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
		defer cancel()
		err = errors.Join(err, world.Close(closing))
	}()
	s.running(world, time.Since(built))
	cast, err := scenario.Run(ctx, world, s)
	cast.Close() // from here on their tokens, and what is to be seen in /sync, are the viewer's
	if err != nil {
		return err
	}
	s.done(time.Since(started))
	if keep {
		s.kept(world, cast)
		<-ctx.Done()
		fmt.Fprintln(s.out, "\nStopping everything …")
	}
	return nil
}

func isTerminal(file *os.File) bool {
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
