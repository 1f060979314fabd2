package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"freshen/internal/store"
)

// undeliver has a freshen that does not run remember two lists that its homeserver does not announce.
func undeliver(t *testing.T, dir string) {
	t.Helper()
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "freshen.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, d := range []store.Delivery{
		{Target: "@bob:b.org", Gen: 1, Reason: "no_devices", Sentence: "Synapse announces it to \x1b[2Jnobody."},
		{Target: "@carl:c.org", Gen: 1, Reason: "not_fetched", Sentence: "Synapse did not fetch the list.", DueAt: now.Add(50 * time.Minute), Tries: 9},
	} {
		if err := s.OweDelivery(ctx, d.Target, false, now.Add(-time.Hour), now); err != nil {
			t.Fatal(err)
		}
		if err := s.PutOffDelivery(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// An administrator must learn of whom their clients do not hear, why, and what can be done; and what others say must not
// steer the terminal.
func TestOwedUndelivered(t *testing.T) {
	t.Parallel()
	dir, _ := withAdmin(t, homeserverOf(t))
	undeliver(t, dir)
	list := owedList(t, dir)
	if len(list.Undelivered) != 2 || list.Debts != 0 {
		t.Fatalf("%+v", list)
	}
	bob, carl := list.Undelivered[0], list.Undelivered[1]
	if bob.Target != "@bob:b.org" || bob.Hole != "no_devices" || bob.NextTry != nil || time.Since(bob.Since) < time.Hour {
		t.Errorf("%+v", bob)
	}
	if carl.Target != "@carl:c.org" || carl.Hole != "not_fetched" || time.Until(*carl.NextTry) < 40*time.Minute || carl.Error != "Synapse did not fetch the list." {
		t.Errorf("%+v", carl)
	}
	stdout, stderr, status := finish(t, command(t, dir, "owed"))
	for _, part := range []string{
		"Nothing is owed.\n\nThe homeserver does not announce 2 device lists:\n", "  @bob:b.org   since ", "  not tried again     Synapse announces it to [2Jnobody.\n",
		"  next try in ", "  Synapse did not fetch the list.\n", "Route /sync and /keys/query to freshen",
	} {
		if !strings.Contains(stdout, part) || status != 0 || stderr != "" {
			t.Errorf("owed ends with %d and lacks %q:\n%s%s", status, part, stdout, stderr)
		}
	}
	if strings.Contains(stdout, "\x1b") {
		t.Errorf("the terminal is steered: %q", stdout)
	}

	// The same over the admin listener, with the means to end or hasten it.
	freshen := start(t, command(t, dir, "serve"))
	if _, body := freshen.do(t, "GET", freshen.admin+"/metrics"); !strings.Contains(body, "\nfreshen_undelivered_lists 2\n") {
		t.Error("the metrics do not count it")
	}
	does(t, dir, "@bob:b.org: 1 device list dropped\n", "owed", "drop", "@bob:b.org")
	does(t, dir, "c.org: 1 device list due now\n", "owed", "retry", "c.org")
	if list := owedList(t, dir); len(list.Undelivered) != 1 || time.Until(*list.Undelivered[0].NextTry) > 0 {
		t.Errorf("%+v", list)
	}
	does(t, dir, "c.org: 1 device list dropped\n", "owed", "drop", "c.org")
	does(t, dir, "Nothing is owed.\n", "owed")
}
