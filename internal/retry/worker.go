package retry

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"freshen/internal/store"
)

const (
	// atOnce is the most fetches from destinations that are fine that run at a time, of all of them together, and the
	// most that one claim takes.
	atOnce = 64
	// probesAtOnce is the same of those that are backing off. Most of them hang until the fetch times out, so these places
	// are more: when a thousand fail at once, those that come back are not to wait for the rest.
	probesAtOnce = 256
	// idle is how long the worker sleeps at most: a debt that another instance recorded is seen by then.
	idle = time.Minute
	// breath is how long it sleeps where the database said that something is due, and then gave nothing.
	breath = 20 * time.Millisecond
	// pause is the wait after the database has failed.
	pause = 5 * time.Second
)

// Config is what a [Worker] needs to know.
type Config struct {
	// Pay tries a debt that is claimed, and records what came of it.
	Pay func(context.Context, store.Debt) error
	// Lease is how long a claim holds: longer than Pay takes, so that only a crash ends it by time.
	Lease  time.Duration
	Policy Policy
	Log    *slog.Logger
	// Now is the wall clock.
	Now func() time.Time
}

// Worker tries the debts that are due. Run it once.
type Worker struct {
	cfg   Config
	store *store.Store
	poke  chan struct{}

	fine, probes chan struct{} // places that are taken

	clock   clock
	unbound bool // the clock was set, and the waits in the database do not know it yet
	failing bool // the database, last time
}

// NewWorker returns a worker that has each due debt tried.
func NewWorker(s *store.Store, cfg Config) *Worker {
	return &Worker{
		cfg: cfg, store: s, poke: make(chan struct{}, 1),
		fine: make(chan struct{}, atOnce), probes: make(chan struct{}, probesAtOnce),
	}
}

// Poke tells the worker that there may be something due earlier than it knew. It does not block.
func (w *Worker) Poke() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// Run works until ctx is done, and returns once what it began has ended.
func (w *Worker) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for ctx.Err() == nil {
		poke := w.poke
		sleep, err := w.round(ctx, &running)
		if err != nil {
			sleep, poke = pause, nil // whoever is told of a failure meanwhile does not make it better
		}
		w.tell(ctx, err)
		timer := time.NewTimer(sleep)
		select {
		case <-ctx.Done():
		case <-poke:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (w *Worker) tell(ctx context.Context, err error) {
	if err != nil && !w.failing && ctx.Err() == nil {
		w.cfg.Log.Error("cannot read what is owed; trying again every few seconds", "in", pause, "err", err)
	}
	if err == nil && w.failing {
		w.cfg.Log.Info("what is owed can be read again")
	}
	w.failing = err != nil
}

// round claims what is due, starts it, and says how long nothing will be.
func (w *Worker) round(ctx context.Context, running *sync.WaitGroup) (time.Duration, error) {
	if err := w.heedClock(ctx, running); err != nil {
		return 0, err
	}
	// Where there is no place, a fetch that ends pokes.
	free := store.Places{Fine: cap(w.fine) - len(w.fine), Failing: min(cap(w.probes)-len(w.probes), atOnce)}
	next, ok, err := w.store.NextDue(ctx, free)
	if err != nil {
		return 0, err
	}
	now := w.cfg.Now()
	if !ok || next.After(now) {
		return wait(next, now, ok), nil
	}
	debts, err := w.store.Claim(ctx, now, w.cfg.Lease, rand.Text(), free)
	if err != nil {
		return 0, err
	}
	for _, debt := range debts {
		places := w.fine
		if debt.Probe {
			places = w.probes
		}
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places; w.Poke() }()
			if err := w.cfg.Pay(ctx, debt); err != nil && ctx.Err() == nil {
				w.cfg.Log.Error("a retry could not be recorded; it is made again when its claim ends", "target", debt.Target, "err", err)
			}
		})
	}
	if len(debts) == 0 {
		return breath, nil
	}
	return 0, nil
}

// wait is how long to sleep until next, if there is one.
func wait(next, now time.Time, ok bool) time.Duration {
	if !ok {
		return idle
	}
	return min(next.Sub(now), idle)
}

// heedClock has no claim made by a clock that has been set until those made before it have ended, and brings what waits
// for a time that will not come soon back within bounds. So it does at the start, too: the clock may have been set while
// nobody looked.
func (w *Worker) heedClock(ctx context.Context, running *sync.WaitGroup) error {
	if w.clock.wasSet(w.cfg.Now()) {
		w.unbound = true
	}
	if !w.unbound {
		return nil
	}
	running.Wait()
	if err := w.store.Bound(ctx, w.cfg.Now(), w.cfg.Policy.Longest(), w.cfg.Lease); err != nil {
		return err
	}
	w.unbound = false
	return nil
}

// tolerated is how far the wall clock may be moved without notice; far less than a lease.
const tolerated = 10 * time.Second

// clock notices when the wall clock is set, by comparing it to one that only goes on.
type clock struct{ wall, steady time.Time }

// wasSet says whether the wall clock has moved otherwise than time has passed since the last call. The first says yes.
func (c *clock) wasSet(wall time.Time) bool {
	wall, steady := wall.Round(0), time.Now()
	off := wall.Sub(c.wall) - steady.Sub(c.steady)
	first := c.steady.IsZero()
	c.wall, c.steady = wall, steady
	return first || off.Abs() > tolerated
}
