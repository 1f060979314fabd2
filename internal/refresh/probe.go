package refresh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"freshen"
	"freshen/internal/store"
)

// probe lets one request at a time through to a destination that is backing off, until it answers. waiting and well are
// guarded by Engine.mu, the failure by the turn.
type probe struct {
	turn    chan struct{}
	well    chan struct{} // closed once it has answered
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
	case <-p.well:
		return e.fetch.FetchDeviceList(ctx, f.target)
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
	failure, failed := errors.AsType[*freshen.Failure](err)
	switch {
	case err == nil, failed && failure.Blames() == freshen.BlameUser:
		e.recovered(f.destination, p)
	case failed && failure.Blames() == freshen.BlameDestination:
		p.failure, p.failed = failure, e.cfg.Now()
	}
	return list, err
}

func (e *Engine) queue(destination string) *probe {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.probes[destination]
	if p == nil {
		p = &probe{turn: make(chan struct{}, 1), well: make(chan struct{})}
		e.probes[destination] = p
	}
	p.waiting++
	return p
}

// recovered lets all go who wait. Whoever comes later and still finds the destination backing off queues anew.
func (e *Engine) recovered(destination string, p *probe) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.probes[destination] == p {
		close(p.well)
		delete(e.probes, destination)
	}
}

func (e *Engine) leave(destination string, p *probe) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.waiting--; p.waiting == 0 && e.probes[destination] == p {
		delete(e.probes, destination)
	}
}
