package app

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

const (
	// manyPolls is from how many polls that wait on the heap is mostly theirs.
	manyPolls = 1000
	// manyPercent is by how much the heap may grow then before it is collected; otherwise by as much as before.
	manyPercent = 15
)

// boundMemory keeps what is garbage small beside what polls that wait take, which lives for long: with ten thousand of
// them Go would let as much garbage gather as they take themselves. An administrator's GOGC stands.
func (a *App) boundMemory(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	many, before := false, 0
	set := func(now bool) {
		switch {
		case now && !many:
			before = debug.SetGCPercent(manyPercent)
		case !now && many:
			debug.SetGCPercent(before)
		}
		many = now
	}
	defer set(false)
	for {
		set(a.proxy.Polls() >= manyPolls)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
