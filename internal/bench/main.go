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
	"slices"
	"strings"
	"testing"
)

// roles are what this program plays as a process that a measurement starts.
var roles = []string{roleUpstream, roleFreshen, rolePlain, roleRemote}

// section is one part of the table.
type section struct {
	name    string
	measure func(b *bench) error
}

var sections = []section{
	{"pass", passThrough},
	{"sync", bigSyncs},
	{"idle", idlePolls},
	{"splice", splicing},
	{"wake", wakes},
	{"refresh", refreshes},
	{"federation", federating},
	{"queue", queue},
	{"day", days},
}

// bench is one run.
type bench struct {
	testing.TB // for the servers that are made for tests

	ctx     context.Context
	out     *table
	profile string
}

func main() {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt)
	defer restore()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		restore()
		os.Exit(1) //nolint:gocritic // restore has just been called
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case roleUpstream:
			return serveUpstream(ctx, os.Stdin, out)
		case roleFreshen:
			return serveFreshen(ctx, args[1:], os.Stdin, out)
		case rolePlain:
			if len(args) != 2 {
				return errors.New("the plain proxy wants the homeserver's address")
			}
			return servePlain(ctx, args[1], os.Stdin, out)
		case roleRemote:
			return serveRemote(ctx, args[1:], os.Stdin, out)
		}
	}
	testing.Init()
	names := make([]string, len(sections))
	for i, s := range sections {
		names[i] = s.name
	}
	only := flag.String("only", "", "measure these parts alone, with commas between them: "+strings.Join(names, ", "))
	profile := flag.String("profile", "", "write freshen's CPU profile of each part under load to this folder")
	if err := flag.CommandLine.Parse(args); err != nil {
		return err
	}
	wanted := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no part %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	t := newTable(out)
	if err := t.machine(); err != nil {
		return err
	}
	for _, s := range sections {
		if len(wanted) > 0 && !slices.Contains(wanted, s.name) {
			continue
		}
		fmt.Fprintf(progress, "measuring: %s …\n", s.name)
		if err := measure(ctx, s, t, *profile); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return t.print()
}

// measure runs one part inside a testing.B, which gives the servers that are made for tests what they ask for: temporary
// folders, and an end.
func measure(ctx context.Context, s section, t *table, profile string) (err error) {
	if err := flag.Set("test.benchtime", "1x"); err != nil {
		return err
	}
	err = errors.New("it ended before it began")
	var told *telling
	testing.Benchmark(func(b *testing.B) {
		told = &telling{TB: b}
		err = nil
		err = s.measure(&bench{TB: told, ctx: ctx, out: t, profile: profile})
	})
	if told != nil && len(told.failures) > 0 {
		return errors.Join(err, errors.New(strings.Join(told.failures, "; ")))
	}
	return cmp.Or(err, ctx.Err())
}

// telling keeps what a testing.B outside of go test says to nobody.
type telling struct {
	testing.TB
	failures []string
}

func (t *telling) Error(args ...any) {
	t.failures = append(t.failures, fmt.Sprint(args...))
	t.Fail()
}

func (t *telling) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }

func (t *telling) Fatal(args ...any) {
	t.failures = append(t.failures, fmt.Sprint(args...))
	t.FailNow()
}

func (t *telling) Fatalf(format string, args ...any) { t.Fatal(fmt.Sprintf(format, args...)) }
