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
	// lease is how long a claim holds: longer than any fetch, so that only a crash ends it by time.
	lease = 2 * time.Minute
	// atOnce is the most fetches of all destinations together that run at a time.
	atOnce = 64
	// idle is how long the worker sleeps at most: a debt that another instance recorded is seen by then.
	idle = time.Minute
	// pause is the wait after the database has failed.
	pause = 5 * time.Second
)

// Worker tries the debts that are due. Run it once.
type Worker struct {
	store *store.Store
	pay   func(context.Context, store.Debt) error
	log   *slog.Logger
	now   func() time.Time
	poke  chan struct{}
}

// NewWorker returns a worker that has each due debt tried by pay, which records the outcome.
func NewWorker(s *store.Store, pay func(context.Context, store.Debt) error, log *slog.Logger, now func() time.Time) *Worker {
	return &Worker{store: s, pay: pay, log: log, now: now, poke: make(chan struct{}, 1)}
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
	places := make(chan struct{}, atOnce)
	for ctx.Err() == nil {
		wait := w.round(ctx, places, &running)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-w.poke:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round claims what is due, starts it, and says how long nothing will be.
func (w *Worker) round(ctx context.Context, places chan struct{}, running *sync.WaitGroup) time.Duration {
	free := cap(places) - len(places)
	if free == 0 {
		return idle // a fetch that ends pokes
	}
	debts, err := w.store.Claim(ctx, w.now(), lease, rand.Text(), free)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Error("cannot read what is owed; trying again", "in", pause, "err", err)
		}
		return pause
	}
	for _, debt := range debts {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places; w.Poke() }()
			if err := w.pay(ctx, debt); err != nil && ctx.Err() == nil {
				w.log.Error("a retry could not be recorded; it is made again when its claim ends", "target", debt.Target, "err", err)
			}
		})
	}
	next, ok, err := w.store.NextDue(ctx)
	if err != nil || !ok {
		return idle
	}
	return min(max(next.Sub(w.now()), 0), idle)
}
