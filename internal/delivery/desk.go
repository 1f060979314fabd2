package delivery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/retry"
	"freshen/internal/store"
)

const (
	// atOnce is how many deliveries run at the same time, each of another server.
	atOnce = 16
	// afterMark is when a delivery is due that was marked, and of which nothing more was heard: freshen died.
	afterMark = time.Minute
	// lease is longer than any delivery takes.
	lease = 5 * time.Minute
	// lookEvery is how often it is looked whether something is due.
	lookEvery = 5 * time.Second
	// away is how long a homeserver that does not answer is left alone.
	away = 15 * time.Second
	// firstWait and mostWait bound the wait of a list that the homeserver did not fetch.
	firstWait = 30 * time.Second
	mostWait  = time.Hour
	// recordTimeout bounds the recording of an outcome, which is done while freshen stops as well.
	recordTimeout = 10 * time.Second
)

// Homeserver is ours, which is to announce lists itself: [homeserver.Synapse] or [homeserver.Dendrite].
type Homeserver interface {
	// Mark notes with it that its list of target is stale.
	Mark(ctx context.Context, target id.UserID) error
	// Deliver has it fetch a list. It takes minutes at the most.
	Deliver(ctx context.Context, d homeserver.Delivery) homeserver.Outcome
}

// Config is what a [Desk] needs.
type Config struct {
	Homeserver Homeserver
	Store      *store.Store
	// GiveUpAfter is how long after it was last asked for a delivery is tried.
	GiveUpAfter time.Duration
	Log         *slog.Logger
	Now         func() time.Time
}

// Desk is where deliveries are handed in, and worked off while it runs. It is safe for concurrent use.
type Desk struct {
	cfg  Config
	poke chan struct{}

	mu    sync.Mutex
	busy  map[string]bool // destinations of which a delivery runs
	pause time.Time       // the homeserver is left alone until then
}

// New returns a desk that does nothing until Run.
func New(cfg Config) *Desk {
	return &Desk{cfg: cfg, poke: make(chan struct{}, 1), busy: map[string]bool{}}
}

// Mark notes, durably, that the homeserver is to fetch a list, and with the homeserver that its own is stale. The error is a
// *[freshen.Error] where freshen's own database is away.
func (d *Desk) Mark(ctx context.Context, list *freshen.DeviceList) error {
	if err := d.cfg.Homeserver.Mark(ctx, list.UserID); err != nil {
		return err
	}
	now := d.cfg.Now()
	err := d.cfg.Store.OweDelivery(ctx, list.UserID, len(list.Dropped) > 0, now, now.Add(afterMark))
	if err != nil && !errors.Is(err, store.ErrManyDeliveries) {
		return store.Away(err)
	}
	return err
}

// Deliver has the homeserver fetch the list of a target who was marked, in the background.
func (d *Desk) Deliver(ctx context.Context, target id.UserID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := d.cfg.Store.HastenDelivery(ctx, target, d.cfg.Now()); err != nil {
		d.cfg.Log.Warn("the homeserver is told of a device list a minute later than it could be", "target", target, "err", err)
		return
	}
	d.Poke()
}

// Poke has it looked whether something is due. It does not block.
func (d *Desk) Poke() {
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// Run works until ctx is done, and returns when nothing runs any more.
func (d *Desk) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		claimed, err := d.claim(ctx)
		if err != nil && ctx.Err() == nil {
			d.cfg.Log.Error("cannot read which device lists the homeserver is to fetch; trying again", "err", err)
		}
		for _, one := range claimed {
			wg.Go(func() {
				d.work(ctx, one)
				d.mu.Lock()
				delete(d.busy, one.Destination)
				d.mu.Unlock()
				d.Poke()
			})
		}
		select {
		case <-d.poke:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (d *Desk) claim(ctx context.Context) ([]store.Delivery, error) {
	now := d.cfg.Now()
	d.mu.Lock()
	running, paused := len(d.busy), now.Before(d.pause) && d.pause.Sub(now) <= away
	d.mu.Unlock()
	if paused || running == atOnce {
		return nil, nil
	}
	isBusy := func(destination string) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.busy[destination]
	}
	claimed, err := d.cfg.Store.ClaimDeliveries(ctx, now, lease, isBusy, running, atOnce-running)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, one := range claimed {
		d.busy[one.Destination] = true
	}
	return claimed, err
}

// work makes one delivery and records what came of it. What it had in hand when freshen stops, is tried when the lease ends.
func (d *Desk) work(ctx context.Context, one store.Delivery) {
	list, err := d.cfg.Store.KeptList(ctx, one.Target)
	if err != nil {
		if ctx.Err() == nil {
			d.cfg.Log.Error("cannot read a device list that the homeserver is to fetch; trying again", "target", one.Target, "err", err)
		}
		return
	}
	outcome := d.cfg.Homeserver.Deliver(ctx, homeserver.Delivery{Target: one.Target, List: list, Loose: one.Loose})
	if ctx.Err() != nil {
		return
	}
	recording, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if outcome.Hole == homeserver.HoleNone {
		err = d.cfg.Store.SettleDelivery(recording, one)
		if one.Reason != "" && err == nil {
			d.cfg.Log.Info("the homeserver has a device list that it could not be brought to before", "target", one.Target)
		}
	} else {
		err = d.cfg.Store.PutOffDelivery(recording, d.putOff(one, outcome))
	}
	if err != nil {
		d.cfg.Log.Error("what came of telling the homeserver of a device list cannot be recorded; it is told again", "target", one.Target, "err", err)
	}
}

// putOff is what is recorded of a delivery that was not made, and told in the log once for each reason.
func (d *Desk) putOff(one store.Delivery, outcome homeserver.Outcome) store.Delivery {
	now := d.cfg.Now()
	attrs := []any{"target", one.Target, "hole", outcome.Hole, "sentence", outcome.Sentence}
	if outcome.Err != nil {
		attrs = append(attrs, "err", outcome.Err)
	}
	news := one.Reason != string(outcome.Hole)
	one.Reason, one.Sentence = string(outcome.Hole), outcome.Sentence
	switch {
	case outcome.Hole == homeserver.HoleAway:
		one.DueAt = now.Add(away)
		d.mu.Lock()
		d.pause = one.DueAt
		d.mu.Unlock()
	case outcome.Hole.Passes():
		one.Tries++
		one.DueAt = now.Add(retry.Wait(one.Tries, firstWait, mostWait))
	default:
		one.DueAt = time.Time{}
	}
	if outcome.Hole.Passes() && now.Sub(one.AskedAt) > d.cfg.GiveUpAfter {
		one.DueAt = time.Time{}
		d.cfg.Log.Warn("gave up telling the homeserver of a device list", attrs...)
		return one
	}
	if news {
		d.cfg.Log.Warn("the homeserver's clients do not hear of a device list", attrs...)
	}
	return one
}
