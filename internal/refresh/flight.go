package refresh

import (
	"context"
	"crypto/rand"
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
	token       string // names this fetch among those of all instances
	sealed      bool   // nobody can come aboard any more: the outcome is being recorded
	done        chan struct{}

	how      string
	recorded bool // what came of it stands in the database, for the retry that rides along too
	failure  *freshen.Failure
	next     time.Time // of the failure: when it is tried again
	told     time.Time // when the outcome was there
	err      *freshen.Error
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

// join boards the flight to target, or starts one. user is empty for a fetch that nobody is promised anything of.
func (e *Engine) join(target, user id.UserID, cred homeserver.Credentials) *flight {
	return e.board(target, func(f *flight) {
		if user != "" {
			f.requesters[user] = cred
		}
	})
}

// board is join for anybody: aboard runs, under the lock, where the flight still takes passengers.
func (e *Engine) board(target id.UserID, aboard func(*flight)) *flight {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.flights[target]; f != nil {
		if !f.sealed {
			aboard(f)
		}
		return f
	}
	f := &flight{
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
		return f
	}
	e.flights[target] = f
	e.wg.Go(func() { e.fly(f) })
	return f
}

// fly makes the fetch and records what came of it. Where another instance was faster, it is begun again, which then
// mostly finds the other's outcome.
func (e *Engine) fly(f *flight) {
	defer e.cfg.Fetching(f.target)()
	for range maxFetches {
		if err := e.tryFly(f); !errors.Is(err, store.ErrSuperseded) {
			return
		}
	}
	e.land(f, func() { f.how, f.err = "failed", store.Away(store.ErrSuperseded) })
}

// tryFly lands the flight unless it returns [store.ErrSuperseded].
func (e *Engine) tryFly(f *flight) error {
	ctx, cancel := context.WithTimeout(e.ctx, e.cfg.Timeout)
	defer cancel()
	begun, err := e.begin(ctx, f)
	if err == nil && begun.Wait > 0 {
		e.land(f, func() { f.how, f.err = "refused", limited(f.destination, begun.Wait) })
		return nil
	}
	var list *freshen.DeviceList
	if err == nil && begun.Past == nil {
		list, err = e.ask(ctx, f, begun.Destination)
	}

	e.mu.Lock()
	f.sealed = true
	e.mu.Unlock()

	// The answer is recorded even while we shut down: the fetch has been made, and somebody may wait to be told.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	switch {
	case begun.Past != nil:
		return e.landBehind(ctx, f, *begun.Past)
	case err == nil:
		return e.succeed(ctx, f, list, begun.Gen)
	}
	if away, ok := errors.AsType[*freshen.Error](err); ok && e.ctx.Err() == nil {
		e.land(f, func() { f.how, f.err = "failed", away })
		return nil
	}
	return e.fail(ctx, f, err)
}

// begin waits until no other instance is at the same, and takes a place in the destination's rate. The error is a
// *[freshen.Error] where the database is away and a *[freshen.Failure] where the time is up.
func (e *Engine) begin(ctx context.Context, f *flight) (store.Begun, error) {
	f.token = rand.Text()
	for {
		e.mu.Lock()
		claimed := f.lease != ""
		e.mu.Unlock()
		begun, err := e.store.Begin(ctx, store.Fetch{
			Target: f.target, Token: f.token, Now: e.cfg.Now(), Lease: e.cfg.Timeout + commitTimeout, Claimed: claimed,
		})
		if err != nil {
			return begun, store.Away(err)
		}
		if !begun.Busy {
			return begun, nil
		}
		select {
		case <-time.After(busyEvery):
		case <-ctx.Done():
			return begun, &freshen.Failure{
				Destination: f.destination, Reason: freshen.ReasonTimeout, Err: ctx.Err(),
				Sentence: fmt.Sprintf("%s is being asked already, and has not answered that request in time.", f.destination),
			}
		}
	}
}

// landBehind tells those aboard what another instance's fetch brought a moment ago.
func (e *Engine) landBehind(ctx context.Context, f *flight, past store.Past) error {
	e.recent.put(f.target, outcome{at: past.At, failure: past.Failure})
	now := e.cfg.Now()
	asking := slices.Sorted(maps.Keys(f.requesters))
	var next time.Time
	var err error
	switch {
	case len(asking) == 0:
	case past.Failure == nil:
		err = e.store.AnnounceTo(ctx, f.target, asking, now)
	case past.Failure.Blames() != freshen.BlameNobody:
		next, err = e.store.AskAgain(ctx, f.target, asking, now)
	}
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return nil
	}
	e.land(f, func() {
		f.how, f.failure, f.next, f.told = "fetched by another instance", past.Failure, next, now
		if past.Failure != nil {
			f.how = "failed at another instance"
		}
	})
	return nil
}

func limited(destination string, wait time.Duration) *freshen.Error {
	return &freshen.Error{
		Code:       freshen.CodeLimited,
		Message:    fmt.Sprintf("Too many device lists of %s are being asked for just now: please try again in %s.", destination, inWords(wait)),
		RetryAfter: wait,
	}
}

func (e *Engine) succeed(ctx context.Context, f *flight, list *freshen.DeviceList, gen int64) error {
	now := e.cfg.Now()
	kept, err := e.store.Keep(ctx, store.Fetched{
		List: list, At: now, Requesters: slices.Sorted(maps.Keys(f.requesters)), PaidGen: gen, Token: f.token,
		HashOnly: list.Size() > longList && !e.concerns(ctx, f),
	})
	if errors.Is(err, store.ErrSuperseded) {
		return err
	}
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return nil
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
		f.how, f.told, f.recorded = "fetched, unchanged", now, true
		if kept.Changed {
			f.how = "fetched, changed"
		}
	})
	if kept.Changed {
		for user, cred := range f.requesters {
			e.rooms.Explore(user, cred, f.target)
		}
	}
	return nil
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

func (e *Engine) fail(ctx context.Context, f *flight, err error) error {
	var failure *freshen.Failure
	if !errors.As(err, &failure) {
		failure = &freshen.Failure{
			Destination: f.destination, Reason: freshen.ReasonConnect, Err: err,
			Sentence: fmt.Sprintf("%s could not be asked.", f.destination),
		}
	}
	if e.ctx.Err() != nil {
		e.interrupted(ctx, f)
		return nil
	}
	now := e.cfg.Now()
	var before, after store.Destination
	var owed bool
	next, err := e.store.RecordFailure(ctx, store.Failed{
		Target: f.target, Destination: f.destination, At: now,
		Requesters: slices.Sorted(maps.Keys(f.requesters)), Lease: f.lease, Token: f.token, Failure: failure,
	}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		before = dest
		dest, debt, owed = e.cfg.Retry.Failure(dest, debt, failure, now, e.cfg.Random())
		after = dest
		return dest, debt, owed
	})
	if errors.Is(err, store.ErrSuperseded) {
		return err
	}
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return nil
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
	e.land(f, func() { f.how, f.failure, f.next, f.told, f.recorded = "failed", failure, next, now, true })
	return nil
}

// interrupted records what was asked for and not fetched because we are shutting down. It counts against nobody.
func (e *Engine) interrupted(ctx context.Context, f *flight) {
	now := e.cfg.Now()
	next, err := now, e.store.Abandon(ctx, f.target, f.token)
	if len(f.requesters) > 0 {
		asked, askErr := e.store.AskAgain(ctx, f.target, slices.Sorted(maps.Keys(f.requesters)), now)
		next, err = asked, errors.Join(err, askErr)
	}
	if f.lease != "" {
		err = errors.Join(err, e.store.Postpone(ctx, store.Debt{Target: f.target, Destination: f.destination, Lease: f.lease}, now, now))
	}
	if err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return
	}
	e.land(f, func() {
		f.how, f.next, f.told, f.recorded = "interrupted", next, now, true
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

// maxFetches is how often a flight is begun anew because another instance was faster.
const maxFetches = 3

// probe lets one request at a time through to a destination that is backing off.
type probe struct {
	turn    chan struct{}
	waiting int
	failure *freshen.Failure
	failed  time.Time
}

// ask fetches the list. Requests to a destination that is backing off go one after the other; those that waited while
// one failed share its failure instead of trying the same again.
func (e *Engine) ask(ctx context.Context, f *flight, dest store.Destination) (*freshen.DeviceList, error) {
	if dest.Failures == 0 {
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
