package app

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// manyPolls is from how many polls that wait on the heap is mostly theirs.
	manyPolls = 1000
	// manyPercent is by how much the heap may grow then before it is collected; otherwise by as much as before.
	manyPercent = 12
	// manyBytes is what it may grow by in any case, so that it is not collected again and again while a thousand polls are
	// answered at once.
	manyBytes = 20 << 20
	// memoryEvery is how often it is looked at.
	memoryEvery = 250 * time.Millisecond
)

// boundMemory keeps what is garbage small beside what polls that wait take, which lives for long: with ten thousand of
// them Go would let as much garbage gather as they take themselves. And it is collected in a quarter of a second in which little happens
// rather than while hundreds of polls are answered at once. An administrator's GOGC stands.
func (a *App) boundMemory(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	usual := runtimeValue("/gc/gogc:percent")
	set := usual
	defer func() { debug.SetGCPercent(usual) }()
	before := 0
	for {
		percent, live := usual, runtimeValue("/gc/heap/live:bytes")
		if a.proxy.Polls() >= manyPolls {
			percent = min(usual, max(manyPercent, manyBytes*100/max(1, live)))
		}
		if 10*max(percent-set, set-percent) > set { // setting it stops everything for a moment
			debug.SetGCPercent(percent)
			set = percent
		}
		// What there was when it was last collected counts as live, so garbage includes polls that have come since.
		garbage := runtimeValue("/memory/classes/heap/objects:bytes") - live
		room := runtimeValue("/gc/heap/goal:bytes") - live
		if little := garbage-before < room/8; little && garbage > room/2 {
			runtime.GC()
			garbage = 0
		}
		before = garbage
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
