package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// manyPolls is from how many polls that wait on the heap is mostly theirs.
	manyPolls = 1000
	// manyPercent is by how much the heap may grow then before it is collected; otherwise by as much as before.
	manyPercent = 15
	// manyBytes is what it may grow by in any case, so that it is not collected again and again while a thousand polls are
	// answered at once.
	manyBytes = 20 << 20
)

// boundMemory keeps what is garbage small beside what polls that wait take, which lives for long: with ten thousand of
// them Go would let as much garbage gather as they take themselves. An administrator's GOGC stands.
func (a *App) boundMemory(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	usual := runtimeValue("/gc/gogc:percent")
	set := usual
	defer func() { debug.SetGCPercent(usual) }()
	for {
		percent := usual
		if a.proxy.Polls() >= manyPolls {
			percent = min(usual, max(manyPercent, manyBytes*100/max(1, runtimeValue("/gc/heap/live:bytes"))))
		}
		if 10*max(percent-set, set-percent) > set { // setting it stops everything for a moment
			debug.SetGCPercent(percent)
			set = percent
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// runtimeValue is one of the runtime's own metrics, which are whole numbers.
func runtimeValue(name string) int {
	sample := []metrics.Sample{{Name: name}}
	metrics.Read(sample)
	return int(min(sample[0].Value.Uint64(), 1<<50))
}
