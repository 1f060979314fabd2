package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// dayFigures are those of a simulated day; the test that simulates it says what each is.
type dayFigures struct {
	Debts, Servers, Most int
	Late                 [3]time.Duration // p50, p99, worst
	Paid                 [2]time.Duration // p50, worst
	WorstPaid            time.Duration    // that is allowed
	DeadMost, TriesMost  int
	HeapFirst, HeapLast  uint64
	Real, CPU            time.Duration
	Written              int64
}

// days runs the test that simulates a day, in full: only a test has a clock of its own.
func days(b *bench) error {
	path := filepath.Join(b.TempDir(), "day.json")
	cmd := exec.CommandContext(b.ctx, "go", "test", "-count", "1", "-timeout", "90m", "-run", "^TestDeadServersCostTheOthersNothing$",
		"freshen/internal/bench", "-args", "-day", path)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the simulated day: %w", err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var d dayFigures
	if err := json.Unmarshal(raw, &d); err != nil {
		return err
	}
	b.out.add(row{
		name:    fmt.Sprintf("a day, %d debts at %d servers: a server that is back is paid within, p50, worst", d.Debts, d.Servers),
		freshen: fmt.Sprintf("%.1f s, %.1f s", d.Paid[0].Seconds(), d.Paid[1].Seconds()),
		target:  fmt.Sprintf("≤ %.0f s", d.WorstPaid.Seconds()), met: d.Paid[1] <= d.WorstPaid,
	})
	b.out.add(row{
		name:    "a day: its probes come late by, p50, p99, worst",
		freshen: fmt.Sprintf("%.1f s, %.1f s, %.1f s", d.Late[0].Seconds(), d.Late[1].Seconds(), d.Late[2].Seconds()),
	})
	b.out.add(row{
		name: "a day: fetches from a server that stays dead, at the most", freshen: strconv.Itoa(d.DeadMost),
		target: fmt.Sprintf("≤ %d", d.TriesMost), met: d.DeadMost <= d.TriesMost,
	})
	grown := float64(d.HeapLast) / float64(d.HeapFirst)
	b.out.add(row{
		name: "a day: memory in use, after the first hour and the last", direct: fmt.Sprintf("%.1f MB", float64(d.HeapFirst)/1e6),
		freshen: fmt.Sprintf("%.1f MB", float64(d.HeapLast)/1e6), ratio: times(grown), target: "≤ 1.5×", met: grown <= 1.5,
	})
	b.out.add(row{
		name:    "a day: most fetches at once; real time, CPU, written to disk",
		freshen: fmt.Sprintf("%d; %.0f s, %.0f s, %.0f MB", d.Most, d.Real.Seconds(), d.CPU.Seconds(), float64(d.Written)/1e6),
	})
	return nil
}
