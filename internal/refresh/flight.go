package refresh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/store"
)

// flight is one fetch and all who wait for it. Its fields are guarded by Engine.mu until done is closed, and do not
// change after that.
type flight struct {
	target      id.UserID
	destination string
	requesters  map[id.UserID]homeserver.Credentials
	lease       string // of the retry that rides along, if one does
	sealed      bool   // nobody can come aboard any more: the outcome is being recorded
	done        chan struct{}

	how     string
	failure *freshen.Failure
	next    time.Time // of the failure: when it is tried again
	told    time.Time // when the outcome was there
	err     *freshen.Error
}

func (f *flight) has(user id.UserID) bool {
	_, ok := f.requesters[user]
	return ok
}

func (f *flight) answer() error {
	switch {
	case f.err != nil:
		return f.err
	case f.failure != nil:
		return tell(f.failure, f.next, f.told)
	}
	return nil
}

// join boards the flight to target, or starts one. user is empty for a fetch that nobody is promised anything of. wait
// is set, and the flight nil, if the destination's limit forbids a new one.
func (e *Engine) join(target, user id.UserID, cred homeserver.Credentials) (f *flight, wait time.Duration) {
	return e.board(target, func(f *flight) {
		if user != "" {
			f.requesters[user] = cred
		}
	})
}

// board is join for anybody: aboard runs, under the lock, where the flight still takes passengers.
func (e *Engine) board(target id.UserID, aboard func(*flight)) (f *flight, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.flights[target]; f != nil {
		if !f.sealed {
			aboard(f)
		}
		return f, 0
	}
	f = &flight{
		target:      target,
		destination: freshen.Destination(target),
		requesters:  map[id.UserID]homeserver.Credentials{},
		done:        make(chan struct{}),
	}
	aboard(f)
	if e.closed {
		f.how = "failed"
		f.err = &freshen.Error{Code: freshen.CodeDatabaseAway, Message: "freshen is shutting down: please try again in a minute."}
		close(f.done)
		return f, 0
	}
	if wait := e.dests.take(f.destination, e.cfg.Now()); wait > 0 {
		return nil, wait
	}
	e.flights[target] = f
	e.wg.Go(func() {
		if list := e.fly(f); list != nil {
			e.tellOddities(list)
		}
	})
	return f, 0
}

// fly returns the list if it says something new.
func (e *Engine) fly(f *flight) *freshen.DeviceList {
	defer e.cfg.Fetching(f.target)()
	ctx, cancel := context.WithTimeout(e.ctx, e.cfg.Timeout)
	defer cancel()
	gen, err := e.store.DebtGen(ctx, f.target)
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return nil
	}
	list, err := e.ask(ctx, f)

	e.mu.Lock()
	f.sealed = true
	e.mu.Unlock()

	// The answer is recorded even while we shut down: the fetch has been made, and somebody may wait to be told.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err != nil {
		e.fail(ctx, f, err)
		return nil
	}
	if !e.succeed(ctx, f, list, gen) {
		return nil
	}
	return list
}

// tellOddities checks the signatures of a list. It costs some milliseconds and drops nothing, so it is done once for the
// same list, and when all who wait for the list have their answer.
func (e *Engine) tellOddities(list *freshen.DeviceList) {
	if odd := list.Oddities(); len(odd) > 0 {
		e.log.Info("a device list is odd, and kept as it came", "target", list.UserID, "devices", len(list.Devices), "odd", odd)
	}
}

// succeed says whether the list could be recorded and says something new.
func (e *Engine) succeed(ctx context.Context, f *flight, list *freshen.DeviceList, gen int64) bool {
	now := e.cfg.Now()
	kept, err := e.store.Keep(ctx, store.Fetched{
		List: list, At: now, Requesters: slices.Sorted(maps.Keys(f.requesters)), PaidGen: gen,
		HashOnly: list.Size() > longList && !e.concerns(ctx, f),
	})
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return false
	}
	if len(list.Dropped) > 0 {
		e.log.Warn("left out parts of a device list that do not belong in it", "target", f.target, "dropped", list.Dropped)
	}
	if kept.Recovered {
		e.log.Info("a destination answers again", "destination", f.destination)
	}
	if kept.Paid {
		e.log.Info("paid a debt", "target", f.target, "devices", len(list.Devices), "changed", kept.Changed)
	}
	e.recent.put(f.target, outcome{at: now})
	e.land(f, func() {
		f.how, f.told = "fetched, unchanged", now
		if kept.Changed {
			f.how = "fetched, changed"
		}
	})
	if kept.Changed {
		for user, cred := range f.requesters {
			e.rooms.Explore(user, cred, f.target)
		}
	}
	return kept.Changed
}

// concerns says whether one of the requesters shares a room with the target. A long list is kept only then: anybody may
// ask for strangers, whose own server makes their lists as long as it likes.
func (e *Engine) concerns(ctx context.Context, f *flight) bool {
	ctx, cancel := context.WithTimeout(ctx, concernsTimeout)
	defer cancel()
	for user, cred := range f.requesters {
		if shares, err := e.rooms.Shares(ctx, user, cred, f.target); err == nil && shares {
			return true
		}
	}
	return false
}

func (e *Engine) fail(ctx context.Context, f *flight, err error) {
	var failure *freshen.Failure
	if !errors.As(err, &failure) {
		failure = &freshen.Failure{
			Destination: f.destination, Reason: freshen.ReasonConnect, Err: err,
			Sentence: fmt.Sprintf("%s could not be asked.", f.destination),
		}
	}
	if e.ctx.Err() != nil {
		e.interrupted(ctx, f)
		return
	}
	now := e.cfg.Now()
	var before, after store.Destination
	var owed bool
	next, err := e.store.RecordFailure(ctx, store.Failed{
		Target: f.target, Destination: f.destination, At: now,
		Requesters: slices.Sorted(maps.Keys(f.requesters)), Lease: f.lease,
	}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		before = dest
		dest, debt, owed = e.cfg.Retry.Failure(dest, debt, failure, now, e.cfg.Random())
		after = dest
		return dest, debt, owed
	})
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return
	}
	if !owed && f.lease != "" {
		e.log.Warn("gave up a debt", "target", f.target, "reason", failure.Reason)
	}
	if before.Failures > 0 && after.Failures == 0 {
		e.log.Info("a destination answers again", "destination", f.destination)
	}
	if before.Failures == 0 && after.Failures > 0 {
		e.log.Warn("a destination fails and backs off", "destination", f.destination, "reason", failure.Reason,
			"sentence", failure.Sentence, "retry_at", after.RetryAt.UTC().Format(time.RFC3339))
	}
	e.recent.put(f.target, outcome{at: now, failure: failure})
	e.land(f, func() { f.how, f.failure, f.next, f.told = "failed", failure, next, now })
}

// interrupted records what was asked for and not fetched because we are shutting down. It counts against nobody.
func (e *Engine) interrupted(ctx context.Context, f *flight) {
	now := e.cfg.Now()
	next, err := now, error(nil)
	if len(f.requesters) > 0 {
		next, err = e.store.AskAgain(ctx, f.target, slices.Sorted(maps.Keys(f.requesters)), now)
	}
	if f.lease != "" {
		err = errors.Join(err, e.store.Postpone(ctx, store.Debt{Target: f.target, Destination: f.destination, Lease: f.lease}, now, now))
	}
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return
	}
	e.land(f, func() {
		f.how, f.next, f.told = "interrupted", next, now
		f.failure = &freshen.Failure{
			Destination: f.destination, Reason: freshen.ReasonTimeout,
			Sentence: fmt.Sprintf("freshen was stopped before %s answered.", f.destination),
		}
	})
}

// land ends the flight: it takes nobody aboard any more, and all who wait learn the outcome.
func (e *Engine) land(f *flight, outcome func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f.sealed = true
	outcome()
	delete(e.flights, f.target)
	close(f.done)
	e.cfg.Owed()
}

// probe lets one request at a time through to a destination that is backing off.
type probe struct {
	turn    chan struct{}
	waiting int
	failure *freshen.Failure
	failed  time.Time
}

// ask fetches the list. Requests to a destination that is backing off go one after the other; those that waited while
// one failed share its failure instead of trying the same again.
func (e *Engine) ask(ctx context.Context, f *flight) (*freshen.DeviceList, error) {
	dest, err := e.store.Backoff(ctx, f.destination)
	if err != nil || dest.Failures == 0 { // not knowing is no reason to wait
		return e.fetch.FetchDeviceList(ctx, f.target)
	}
	began := e.cfg.Now()
	p := e.queue(f.destination)
	defer e.leave(f.destination, p)
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, &freshen.Failure{
			Destination: f.destination, Reason: freshen.ReasonTimeout, Err: ctx.Err(),
			Sentence: fmt.Sprintf("%s has been failing and did not answer an earlier request in time.", f.destination),
		}
	}
	if p.failure != nil && !p.failed.Before(began) {
		return nil, p.failure
	}
	list, err := e.fetch.FetchDeviceList(ctx, f.target)
	var failure *freshen.Failure
	if errors.As(err, &failure) && failure.Blames() == freshen.BlameDestination {
		p.failure, p.failed = failure, e.cfg.Now()
	}
	return list, err
}

func (e *Engine) queue(destination string) *probe {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.probes[destination]
	if p == nil {
		p = &probe{turn: make(chan struct{}, 1)}
		e.probes[destination] = p
	}
	p.waiting++
	return p
}

func (e *Engine) leave(destination string, p *probe) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.waiting--; p.waiting == 0 {
		delete(e.probes, destination)
	}
}
