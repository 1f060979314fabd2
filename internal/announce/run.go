package announce

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

// Run loads, learns and saves until ctx is done; then it saves what is left and returns.
func (a *Announcer) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() { a.answer(ctx) })
	}
	for range askers {
		wg.Go(func() { a.inquire(ctx) })
	}
	wg.Go(func() { a.loadLoop(ctx) })
	wg.Go(func() { a.flushLoop(ctx) })
	wg.Wait()
}

// answer asks about users' rooms and then has those users' polls look again.
func (a *Announcer) answer(ctx context.Context) {
	for {
		q, ok := a.nextQuestion(ctx)
		if !ok {
			return
		}
		q.askedAt = a.now()
		concerned, err := a.ask(ctx, q)
		a.answered(q)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("the homeserver did not say with whom a user shares rooms; asking again at their next poll",
				"user", q.user, "err", err)
		}
		a.reconsider(a.of(concerned), q)
		a.underway.Done()
	}
}

func (a *Announcer) nextQuestion(ctx context.Context) (q question, ok bool) {
	select {
	case q = <-a.explores:
		return q, true
	default:
	}
	select {
	case q = <-a.explores:
	case q = <-a.asks:
	case <-ctx.Done():
		return question{}, false
	}
	return q, true
}

// ask puts the question, as far as the answer has not become known by itself. It names those whom it has told about,
// also with an error.
func (a *Announcer) ask(ctx context.Context, q question) (concerned []id.UserID, err error) {
	concerned = []id.UserID{q.user}
	if q.explore {
		for _, one := range q.about {
			locals, err := a.rooms.Neighbours(ctx, q.user, q.cred, one.Target)
			concerned = append(concerned, locals...)
			if err != nil {
				return concerned, err
			}
		}
		return concerned, nil
	}
	var since time.Time
	var targets []id.UserID
	for _, one := range q.about {
		if _, known := a.rooms.KnownSince(q.user, one.Target, one.At); known {
			continue
		}
		targets = append(targets, one.Target)
		if one.At.After(since) {
			since = one.At
		}
	}
	if len(targets) == 0 {
		return concerned, nil
	}
	return concerned, a.rooms.Resolve(ctx, q.user, q.cred, targets, since)
}

func (a *Announcer) loadLoop(ctx context.Context) {
	for {
		var d *device
		select {
		case d = <-a.loads:
		case <-ctx.Done():
			return
		}
		err := a.loadOne(ctx, d)
		before := a.unreadable.Swap(err != nil)
		if err != nil && !before && ctx.Err() == nil {
			a.log.Error("cannot read what a device has acknowledged; announcements to it wait until the database is back", "user", d.who.UserID, "err", err)
		}
		a.underway.Done()
	}
}

func (a *Announcer) loadOne(ctx context.Context, d *device) error {
	positions, err := a.positions.DevicePositions(ctx, []freshen.Requester{d.who})
	d.mu.Lock()
	if err != nil {
		d.failed = true
	} else {
		d.settle(positions[0])
	}
	d.mu.Unlock()
	if err == nil {
		a.consider(d, question{})
	}
	return err
}

func (a *Announcer) flushLoop(ctx context.Context) {
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	prune := time.NewTicker(time.Hour)
	defer prune.Stop()
	for {
		select {
		case <-flush.C:
			a.flush(ctx)
		case <-prune.C:
			before := a.now().Add(-keepFor)
			a.stream.forget(before.UnixMilli())
			if err := a.store.Prune(ctx, before); err != nil && ctx.Err() == nil {
				a.log.Error("could not prune what is older than 90 days; trying again in an hour", "err", err)
			}
		case <-ctx.Done():
			a.flushLast(ctx)
			return
		}
	}
}

// flushLast saves what is left when ctx is done already.
func (a *Announcer) flushLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	a.flush(ctx)
}

// flush saves what devices have acknowledged, and then forgets those that do not sync any more. Those that could not be read
// are read again if they have a poll that waits: one, until that succeeds.
func (a *Announcer) flush(ctx context.Context) {
	now := a.now()
	var changed, unread []*device
	for _, d := range a.all() {
		d.mu.Lock()
		seen := d.usedAt
		if len(d.polls) > 0 {
			seen = now
		}
		if d.loaded && (d.dirty || seen.Sub(d.savedAt) > seenEvery) {
			changed = append(changed, d)
		}
		if d.failed && len(d.polls) > 0 && (len(unread) == 0 || !a.unreadable.Load()) {
			d.failed = false
			unread = append(unread, d)
		}
		d.mu.Unlock()
	}
	for _, d := range unread {
		a.load(d)
	}
	var failed error
	// In parts, so that a promise to a client that waits for the same database does not wait for all devices.
	for part := range slices.Chunk(changed, savedAtOnce) {
		if failed = a.save(ctx, part, now); failed != nil {
			break
		}
	}
	if failed != nil && !a.failing {
		a.log.Error("could not save what devices have acknowledged; trying again every second", "devices", len(changed), "err", failed)
	}
	a.failing = failed != nil
	a.evict(now)
}

func (a *Announcer) save(ctx context.Context, devices []*device, now time.Time) error {
	positions := make([]store.DevicePosition, len(devices))
	for i, d := range devices {
		d.mu.Lock()
		d.dirty = false
		positions[i] = d.snapshot(now)
		d.mu.Unlock()
	}
	err := a.store.SavePositions(ctx, positions)
	for _, d := range devices {
		d.mu.Lock()
		if err != nil {
			d.dirty = true
		} else {
			d.savedAt = now
		}
		d.mu.Unlock()
	}
	return err
}

// evict forgets devices that have not synced for a while; the database has them, or is away.
func (a *Announcer) evict(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.devices, func(_ freshen.Requester, d *device) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		idle := now.Sub(d.usedAt)
		// What was carried is known in memory alone: a client that slept over it may still acknowledge it.
		if len(d.responses)+len(d.carries)+len(d.hurried) > 0 && idle <= idleCarrying {
			return false
		}
		gone := (d.failed || d.loaded && !d.dirty) && len(d.polls) == 0 && idle > idleAfter
		if gone {
			a.dropLocked(d)
		}
		return gone
	})
}

// dropLocked forgets a device among its user's.
func (a *Announcer) dropLocked(d *device) {
	user := d.who.UserID
	rest := slices.DeleteFunc(a.users[user], func(other *device) bool { return other == d })
	if len(rest) == 0 {
		delete(a.users, user)
		return
	}
	a.users[user] = rest
}
