package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"freshen/internal/config"
	"freshen/internal/limit"
	"freshen/internal/listen"
	"freshen/internal/owed"
	"freshen/internal/store"
)

type owedCmd struct {
	List  owedListCmd  `cmd:"" default:"withargs" help:"Show what is owed: by server, why, when it is tried next, and until when; and what the homeserver does not announce."`
	Drop  owedDropCmd  `cmd:"" help:"Forget what is owed about a user, or to a whole server."`
	Retry owedRetryCmd `cmd:"" help:"Try what is owed about a user, or to a whole server, at once."`
}

type owedListCmd struct {
	JSON bool `name:"json" help:"For programs."`
}

type owedDropCmd struct {
	Whose string `arg:"" name:"user-or-server" help:"@user:server, or a server name."`
}

type owedRetryCmd struct {
	Whose string `arg:"" name:"user-or-server" help:"@user:server, or a server name."`
}

// books is what is owed: those of the freshen that runs, or else the database.
type books interface {
	List(ctx context.Context) (*owed.List, error)
	Drop(ctx context.Context, whose owed.Whose) (n int64, err error)
	Retry(ctx context.Context, whose owed.Whose) (n int64, err error)
}

// withBooks asks the running freshen, which alone may use its SQLite file. Where none runs at admin.listen, it opens the
// database.
func withBooks(cfg *config.Config, log io.Writer, ask func(context.Context, books) error) (err error) {
	ctx := context.Background()
	base, dial, err := listen.Reach(cfg.Admin.Listen, (&net.Dialer{}).DialContext)
	if err != nil {
		return fmt.Errorf("admin.listen is %s, and %w: set %s to where it does", cfg.Admin.Listen, err, config.EnvAdminListen)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial}} // without a proxy of the environment
	defer client.CloseIdleConnections()
	err = ask(ctx, &owed.Client{Address: cfg.Admin.Listen, Base: base, HTTP: client})
	if !errors.Is(err, owed.ErrNotRunning) {
		return err
	}
	if cfg.Database.URL == nil {
		// Open would make it.
		if _, err := os.Stat(cfg.Database.Path); err != nil {
			return fmt.Errorf("freshen does not run (nothing listens on %s), and its database cannot be opened: %w", cfg.Admin.Listen, err)
		}
	}
	s, err := store.Open(ctx, store.Config{
		Path: cfg.Database.Path, URL: cfg.Database.URL, PerDestination: limit.Rate(cfg.Limits.PerDestination),
		SuccessFor: cfg.Cache.Success, FailureFor: cfg.Cache.Failure, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		return fmt.Errorf("nothing listens on %s (admin.listen), and the database cannot be used: %w", cfg.Admin.Listen, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return ask(ctx, &owed.Ledger{Store: s, GiveUpAfter: cfg.Retry.GiveUpAfter, Now: time.Now})
}

// Run shows what is owed.
func (c *owedListCmd) Run(line *cli, to console) error {
	cfg, _, err := line.load()
	if err != nil {
		return err
	}
	return withBooks(cfg, to.err, func(ctx context.Context, b books) error {
		list, err := b.List(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(to.out, list)
		}
		return showOwed(to.out, list, time.Now())
	})
}

// Run forgets what is owed. Those who were promised it hear nothing of that; they may ask again.
func (c *owedDropCmd) Run(line *cli, to console) error {
	return change(line, to, c.Whose, "dropped", books.Drop)
}

// Run has what is owed tried at once.
func (c *owedRetryCmd) Run(line *cli, to console) error {
	return change(line, to, c.Whose, "due now", books.Retry)
}

func change(line *cli, to console, text, done string, do func(books, context.Context, owed.Whose) (int64, error)) error {
	whose, err := owed.ParseWhose(text)
	if err != nil {
		return err
	}
	cfg, _, err := line.load()
	if err != nil {
		return err
	}
	return withBooks(cfg, to.err, func(ctx context.Context, b books) error {
		n, err := do(b, ctx, whose)
		switch {
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("nothing is owed for %s", whose)
		}
		fmt.Fprintf(to.out, "%s: %s %s\n", whose, lists(int(n)), done)
		return nil
	})
}

func lists(n int) string {
	if n == 1 {
		return "1 device list"
	}
	return fmt.Sprintf("%d device lists", n)
}

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

func showOwed(w io.Writer, list *owed.List, now time.Time) error {
	if list.Debts == 0 {
		fmt.Fprintln(w, "Nothing is owed.")
		return showUndelivered(w, list.Undelivered, now)
	}
	fmt.Fprintf(w, "%s owed.\n", strings.Replace(lists(list.Debts)+" are", "list are", "list is", 1))
	for _, d := range list.Destinations {
		fmt.Fprintf(w, "\n%s", d.Name)
		if d.Failures > 0 {
			fmt.Fprintf(w, ": %s\n  failed %s since %s, asked again %s", d.Error, times(d.Failures), clock(*d.FailingSince), when(*d.RetryAt, now))
		}
		fmt.Fprintln(w)
		table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, debt := range d.Debts {
			next := "next try " + when(debt.NextTry, now)
			if debt.Running {
				next = "being tried now"
			}
			fmt.Fprintf(table, "  %s\t%s\tuntil %s", debt.Target, next, clock(debt.GivenUpAt))
			if debt.Error != "" && (d.Failures == 0 || debt.Error != d.Error) {
				fmt.Fprintf(table, "\t%s", debt.Error)
			}
			fmt.Fprintln(table)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if list.Truncated {
		fmt.Fprintln(w, "\nThere are more, which are not shown.")
	}
	return showUndelivered(w, list.Undelivered, now)
}

// showUndelivered shows of whom the homeserver's clients do not hear from it. Its sentences are ours, with what our own
// homeserver's connection said; control characters are left out all the same.
func showUndelivered(w io.Writer, all []owed.Undelivered, now time.Time) error {
	if len(all) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nThe homeserver does not announce %s:\n", lists(len(all)))
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	lasting := false
	for _, one := range all {
		next := "not tried again"
		if one.NextTry != nil {
			next = "next try " + when(*one.NextTry, now)
		} else {
			lasting = true
		}
		fmt.Fprintf(table, "  %s\tsince %s\t%s\t%s\n", printable(string(one.Target)), clock(one.Since), next, sentence(one.Error))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if lasting {
		fmt.Fprintln(w, "\nWhat is not tried again, the homeserver never announces. Route /sync and /keys/query to freshen, which does; or live with\n"+
			"it: freshen owed drop forgets it.")
	}
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func clock(at time.Time) string { return at.Local().Format("2006-01-02 15:04") }

func when(at, now time.Time) string {
	wait := at.Sub(now)
	switch {
	case wait <= 0:
		return "now"
	case wait < 2*time.Minute:
		return fmt.Sprintf("in %d s", int(wait.Seconds())+1)
	case wait < 2*time.Hour:
		return fmt.Sprintf("in %d min", int(wait.Minutes())+1)
	}
	return clock(at)
}
