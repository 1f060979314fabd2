package announce

import (
	"context"
	"errors"
	"sync"

	"freshen"
	"freshen/internal/store"
)

// Work is Run without the loop that saves, so that a test decides when that happens.
func (a *Announcer) Work(ctx context.Context) {
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() { a.answer(ctx) })
	}
	for range askers {
		wg.Go(func() { a.inquire(ctx) })
	}
	wg.Go(func() { a.loadLoop(ctx) })
	wg.Wait()
}

// Settle waits until nothing is being asked or loaded.
func (a *Announcer) Settle() { a.underway.Wait() }

// Flush saves what has been acknowledged, and forgets idle devices.
func (a *Announcer) Flush(ctx context.Context) { a.flush(ctx) }

// Forget drops what is older than 90 days.
func (a *Announcer) Forget() { a.stream.forget(a.now().Add(-keepFor).UnixMilli()) }

// Floor is up to where the device is known to need nothing; -1 if it is not in memory.
func (a *Announcer) Floor(who freshen.Requester) int64 {
	a.mu.Lock()
	d := a.devices[who]
	a.mu.Unlock()
	if d == nil {
		return -1
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.floor
}

// Held counts what a device holds in memory beside its floor.
func (a *Announcer) Held(who freshen.Requester) int {
	d := a.device(who)
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.above) + len(d.relevant) + len(d.hurried) + len(d.carries) + len(d.responses) + len(d.polls)
}

// Polls counts the polls that are being held.
func (a *Announcer) Polls() (n int) {
	for _, d := range a.all() {
		d.mu.Lock()
		n += len(d.polls)
		d.mu.Unlock()
	}
	return n
}

// Share has the announcer take others for the instances that share its database, where it reads positions through them.
func (a *Announcer) Share(with interface {
	others
	positions
}) {
	a.others, a.positions = with, with
}

// FailReads has the next reads of devices' acknowledgements fail. It must be called before there are any.
func (a *Announcer) FailReads(times int) { a.positions = &failing{a.positions, times} }

type failing struct {
	positions
	times int
}

func (f *failing) DevicePositions(ctx context.Context, devices []freshen.Requester) ([]store.DevicePosition, error) {
	if f.times > 0 {
		f.times--
		return nil, errors.New("the connection is gone")
	}
	return f.positions.DevicePositions(ctx, devices)
}
