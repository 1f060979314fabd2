package announce

import (
	"context"
	"errors"
	"maps"
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
	wg.Go(func() { a.loadLoop(ctx) })
	wg.Go(func() { a.flushLoop(ctx) })
	wg.Wait()
}

// answer asks about users' rooms and then has those users' polls look again.
func (a *Announcer) answer(ctx context.Context) {
	for {
		var q question
		select {
		case q = <-a.asks:
		case <-ctx.Done():
			return
		}
		concerned, err := a.ask(ctx, q)
		a.answered(q)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, context.Canceled) {
				a.log.Warn("the homeserver did not say with whom a user shares rooms; asking again at their next poll",
					"user", q.user, "err", err)
			}
			continue
		}
		a.reconsider(func(user id.UserID) bool { return concerned[user] })
	}
}

func (a *Announcer) ask(ctx context.Context, q question) (concerned map[id.UserID]bool, err error) {
	concerned = map[id.UserID]bool{q.user: true}
	if !q.explore {
		return concerned, a.rooms.Resolve(ctx, q.user, q.cred, q.targets)
	}
	for _, target := range q.targets {
		locals, err := a.rooms.Neighbours(ctx, q.user, q.cred, target)
		if err != nil {
			return nil, err
		}
		for _, local := range locals {
			concerned[local] = true
		}
	}
	return concerned, nil
}

func (a *Announcer) loadLoop(ctx context.Context) {
	for {
		var d *device
		select {
		case d = <-a.loads:
		case <-ctx.Done():
			return
		}
		position, err := a.store.DevicePosition(ctx, d.who.UserID, d.who.DeviceID)
		d.mu.Lock()
		if err != nil {
			d.failed = true
		} else {
			d.floor, d.above = position.Acked, position.Above
			d.savedAt = position.SeenAt
			d.loaded = true
		}
		d.mu.Unlock()
		if err != nil {
			if ctx.Err() == nil {
				a.log.Error("cannot read what a device has acknowledged; announcements to it wait for its next poll", "user", d.who.UserID, "err", err)
			}
			continue
		}
		a.consider(d)
	}
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

// flush saves what devices have acknowledged, and forgets those that do not sync any more.
func (a *Announcer) flush(ctx context.Context) {
	now := a.now()
	var changed []*device
	var positions []store.DevicePosition
	for _, d := range a.all() {
		d.mu.Lock()
		switch {
		case !d.loaded:
		case d.dirty, len(d.polls) > 0 && now.Sub(d.savedAt) > seenEvery:
			d.dirty = false
			changed = append(changed, d)
			positions = append(positions, d.snapshot(now))
		}
		d.mu.Unlock()
	}
	a.evict(now)
	err := a.store.SavePositions(ctx, positions)
	if err != nil && ctx.Err() == nil {
		a.log.Error("could not save what devices have acknowledged; trying again", "devices", len(positions), "err", err)
	}
	for _, d := range changed {
		d.mu.Lock()
		if err != nil {
			d.dirty = true
		} else {
			d.savedAt = now
		}
		d.mu.Unlock()
	}
}

// evict forgets devices that have not synced for a while; the database has them.
func (a *Announcer) evict(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.devices, func(_ freshen.Requester, d *device) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.loaded && !d.dirty && len(d.polls) == 0 && now.Sub(d.usedAt) > idleAfter
	})
}
