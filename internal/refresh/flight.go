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
	"freshen/internal/retry"
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
	news     *freshen.DeviceList // the list that was kept, if it says something new; the flight's own goroutine's alone
	marked   bool                // the homeserver is to fetch the list, too; likewise
}

func (f *flight) has(user id.UserID) bool {
	_, ok := f.requesters[user]
	return ok
}

// owes says whether the debt is one that stood before, and that the flight has a say in.
func (f *flight) owes(debt store.Debt) bool {
	if len(f.requesters) > 0 {
		return debt.Gen > 1
	}
	return debt.Gen > 0 && debt.Lease == f.lease
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
	e.wg.Go(func() {
		e.fly(f)
		if f.marked {
			e.cfg.Deliverer.Deliver(e.ctx, f.target)
		}
		if f.news != nil {
			e.tellOddities(f.news)
		}
	})
	return f
}

// tellOddities checks the signatures of a list. It costs some milliseconds and drops nothing, so it is done once for the
// same list, and when all who wait for the list have their answer.
func (e *Engine) tellOddities(list *freshen.DeviceList) {
	if odd := list.Oddities(); len(odd) > 0 {
		e.log.Info("a device list is odd, and kept as it came", "target", list.UserID, "devices", len(list.Devices), "odd", odd)
	}
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), commitTimeout)
	defer cancel()
	e.owe(ctx, f, "superseded", fmt.Sprintf("The answer of %s came too late several times to be recorded.", f.destination))
}

// tryFly lands the flight unless it returns [store.ErrSuperseded].
func (e *Engine) tryFly(f *flight) error {
	ctx, cancel := context.WithTimeout(e.ctx, e.cfg.Timeout)
	defer cancel()
	begun, err := e.begin(ctx, f)
	if err == nil && begun.Busy {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
		defer cancel()
		sentence := fmt.Sprintf("%s is being asked already, and has not answered that request in time.", f.destination)
		if e.stopping() {
			sentence = stopped(f)
		}
		e.owe(ctx, f, "busy", sentence)
		return nil
	}
	if err == nil && begun.Wait > 0 {
		e.land(f, func() { f.how, f.err = "refused", limited(f.destination, begun.Wait) })
		return nil
	}
	if err == nil && begun.Gen == 0 && e.sealIfForADebt(f) {
		return e.paidBefore(ctx, f)
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
	if away, ok := errors.AsType[*freshen.Error](err); ok && !e.stopping() {
		return e.landAway(f, away)
	}
	return e.fail(ctx, f, failureOf(f, err))
}

// begin takes a place in the destination's rate, and waits until no other instance is at the same; Busy if the time is
// up before. The error is a *[freshen.Error]: the database is away.
func (e *Engine) begin(ctx context.Context, f *flight) (store.Begun, error) {
	again := f.token != ""
	f.token = rand.Text()
	for {
		e.mu.Lock()
		// What another instance has brought meanwhile answers a retry, too.
		claimed := f.lease != "" && !again
		nobody := len(f.requesters) == 0 && f.lease == ""
		e.mu.Unlock()
		begun, err := e.tryBegin(ctx, store.Fetch{
			Target: f.target, Token: f.token, Now: e.cfg.Now(), Lease: e.cfg.Timeout + commitTimeout, Claimed: claimed, Spare: nobody,
		})
		switch {
		case err != nil:
			return begun, store.Away(err)
		case begun.Wait > 0 && nobody && !e.sealIfNobody(f):
			continue // somebody has come aboard: for them there may be a place
		case !begun.Busy:
			return begun, nil
		}
		select {
		case <-time.After(busyEvery):
		case <-ctx.Done():
			return begun, nil
		}
	}
}

// tryBegin has a time of its own, so that one that is up is not taken for a database that is away.
func (e *Engine) tryBegin(ctx context.Context, f store.Fetch) (store.Begun, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	return e.store.Begin(ctx, f)
}

// sealIfNobody closes the flight unless somebody has come aboard.
func (e *Engine) sealIfNobody(f *flight) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	f.sealed = len(f.requesters) == 0 && f.lease == ""
	return f.sealed
}

// sealIfForADebt closes the flight if it is a retry alone, for which nobody waits.
func (e *Engine) sealIfForADebt(f *flight) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(f.requesters) > 0 || f.lease == "" {
		return false
	}
	f.sealed = true
	return true
}

// paidBefore ends a retry whose debt was paid between its claim and now, by a request that was under way.
func (e *Engine) paidBefore(ctx context.Context, f *flight) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := e.store.Abandon(ctx, f.target, f.token); err != nil {
		e.land(f, func() { f.how, f.err = "failed", store.Away(err) })
		return nil
	}
	e.land(f, func() { f.how, f.recorded = "paid before", true })
	return nil
}

// landBehind tells those aboard what another instance's fetch brought a moment ago.
func (e *Engine) landBehind(ctx context.Context, f *flight, past store.Past) error {
	behind := outcome{at: past.At, failure: past.Failure}
	e.recent.put(f.target, behind)
	now := e.cfg.Now()
	asking := slices.Sorted(maps.Keys(f.requesters))
	var next time.Time
	var err error
	switch {
	case len(asking) == 0:
	case past.Failure == nil:
		err = e.store.AnnounceTo(ctx, f.target, asking, now)
	case past.Failure.Blames() != freshen.BlameNobody:
		next, err = e.askAgain(ctx, f.target, asking, behind, now)
	}
	if err != nil {
		return e.landAway(f, store.Away(err))
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

// mark has the homeserver know that its list is stale, before a debt is paid or anybody is told of a success: what is
// marked, the homeserver itself does not forget. Refetches for the overlay concern freshen's own list alone.
func (e *Engine) mark(ctx context.Context, f *flight, list *freshen.DeviceList) *freshen.Error {
	if e.cfg.Deliverer == nil || (len(f.requesters) == 0 && f.lease == "") {
		return nil
	}
	if err := e.cfg.Deliverer.Mark(ctx, list); err != nil {
		told, ok := errors.AsType[*freshen.Error](err)
		if !ok {
			told = &freshen.Error{
				Code:    freshen.CodeHomeserverDown,
				Message: "The device list was fetched, but that the homeserver is to announce it cannot be noted down just now: please try again in a minute.",
				Err:     err,
			}
		}
		told.Err = errors.Join(told.Err, e.store.Abandon(ctx, f.target, f.token))
		return told
	}
	f.marked = true
	return nil
}

func (e *Engine) succeed(ctx context.Context, f *flight, list *freshen.DeviceList, gen int64) error {
	if away := e.mark(ctx, f, list); away != nil {
		return e.landAway(f, away)
	}
	now := e.cfg.Now()
	kept, err := e.store.Keep(ctx, store.Fetched{
		List: list, At: now, Requesters: slices.Sorted(maps.Keys(f.requesters)), PaidGen: gen, Token: f.token,
		HashOnly: list.Size() > longList && !e.concerns(ctx, f),
	})
	if errors.Is(err, store.ErrSuperseded) {
		return err
	}
	if err != nil {
		return e.landAway(f, store.Away(err))
	}
	if len(list.Dropped) > 0 {
		e.log.Warn("left out parts of a device list that do not belong in it", "target", f.target, "dropped", list.Dropped)
	}
	if kept.Recovered {
		e.log.Info("a destination answers again", "destination", f.destination)
	}
	if kept.Paid {
		e.ended.count(retry.Paid, 1)
		e.log.Info("paid a debt", "target", f.target, "devices", len(list.Devices), "changed", kept.Changed)
	}
	e.recent.backsOff(f.destination, time.Time{})
	e.recent.put(f.target, outcome{at: now})
	e.land(f, func() {
		f.how, f.told, f.recorded = "fetched, unchanged", now, true
		if kept.Changed {
			f.how = "fetched, changed"
		}
	})
	if kept.Changed {
		f.news = list
		for user, cred := range f.requesters {
			e.rooms.Explore(user, cred, f.target)
		}
	}
	return nil
}

// failureOf is what a fetch's error is told as.
func failureOf(f *flight, err error) *freshen.Failure {
	if failure, ok := errors.AsType[*freshen.Failure](err); ok {
		return failure
	}
	return &freshen.Failure{
		Destination: f.destination, Reason: freshen.ReasonConnect, Err: err,
		Sentence: fmt.Sprintf("%s could not be asked.", f.destination),
	}
}

func (e *Engine) fail(ctx context.Context, f *flight, failure *freshen.Failure) error {
	if e.stopping() {
		e.owe(ctx, f, "interrupted", stopped(f))
		return nil
	}
	now := e.cfg.Now()
	var before, after store.Destination
	var ended retry.Ending
	next, err := e.store.RecordFailure(ctx, store.Failed{
		Target: f.target, Destination: f.destination, At: now,
		Requesters: slices.Sorted(maps.Keys(f.requesters)), Lease: f.lease, Token: f.token, Failure: failure,
	}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		before = dest
		after, debt, ended = e.cfg.Retry.Failure(dest, debt, failure, now, e.cfg.Random())
		owed := ended == retry.Owed
		if !f.owes(debt) {
			ended = retry.Owed
		}
		return after, debt, owed
	})
	if errors.Is(err, store.ErrSuperseded) {
		return err
	}
	if err != nil {
		return e.landAway(f, store.Away(err))
	}
	if ended != retry.Owed {
		e.ended.count(ended, 1)
		e.log.Warn("a debt ends unpaid", "target", f.target, "ending", ended, "reason", failure.Reason)
	}
	if before.Failures > 0 && after.Failures == 0 {
		e.log.Info("a destination answers again", "destination", f.destination)
	}
	if before.Failures == 0 && after.Failures > 0 {
		e.log.Warn("a destination fails and backs off", "destination", f.destination, "reason", failure.Reason,
			"sentence", failure.Sentence, "retry_at", after.RetryAt.UTC().Format(time.RFC3339))
	}
	if !e.store.Shared() { // else another instance may change it
		e.recent.backsOff(f.destination, after.RetryAt)
	}
	e.recent.put(f.target, outcome{at: now, next: next, failure: failure})
	e.land(f, func() { f.how, f.failure, f.next, f.told, f.recorded = "failed", failure, next, now, true })
	if after.Failures > before.Failures {
		e.giveUp(ctx, f.destination, now)
	}
	return nil
}

func (e *Engine) stopping() bool { return e.ctx.Err() != nil }

func stopped(f *flight) string {
	return fmt.Sprintf("freshen was stopped before %s answered.", f.destination)
}

// owe ends a flight that has no outcome of its own. What was asked for is owed, and it counts against nobody.
func (e *Engine) owe(ctx context.Context, f *flight, how, sentence string) {
	e.mu.Lock()
	f.sealed = true
	e.mu.Unlock()
	now := e.cfg.Now()
	next, err := now, e.store.Abandon(ctx, f.target, f.token)
	if len(f.requesters) > 0 {
		asked, askErr := e.askAgain(ctx, f.target, slices.Sorted(maps.Keys(f.requesters)), outcome{}, now)
		next, err = asked, errors.Join(err, askErr)
	}
	if f.lease != "" {
		err = errors.Join(err, e.store.Postpone(ctx, store.Debt{Target: f.target, Destination: f.destination, Lease: f.lease}, now, now))
	}
	if err != nil {
		_ = e.landAway(f, store.Away(err))
		return
	}
	e.land(f, func() {
		f.how, f.next, f.told, f.recorded = how, next, now, true
		f.failure = &freshen.Failure{Destination: f.destination, Reason: freshen.ReasonTimeout, Sentence: sentence}
	})
}

// landAway ends a flight that can promise nothing, because the database is away. That is its outcome, and no error.
func (e *Engine) landAway(f *flight, away *freshen.Error) error {
	e.land(f, func() { f.how, f.err = "failed", away })
	return nil
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
