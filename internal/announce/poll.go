package announce

import (
	"sync/atomic"

	"freshen"
	"freshen/internal/homeserver"
)

// Poll is one /sync request of a device while it is being answered.
type Poll struct {
	a     *Announcer
	d     *device
	cred  homeserver.Credentials
	since string
	first bool // no since: such a response carries no device lists, and acknowledges nothing
	wakes func()
	woken atomic.Bool
}

// Begin registers a poll. since is the request's token, "" for a first sync; wake is called at most once, from another
// goroutine or before Begin returns, when the answer should be hurried. End must be called once the answer is out.
func (a *Announcer) Begin(who freshen.Requester, cred homeserver.Credentials, since string, wake func()) *Poll {
	p := &Poll{a: a, cred: cred, since: since, first: since == "", wakes: wake}
	a.mu.Lock()
	d := a.deviceLocked(who)
	p.d = d
	d.mu.Lock()
	a.mu.Unlock()
	d.polls[p] = struct{}{}
	d.usedAt = a.now()
	if d.failed {
		d.failed = false
		d.mu.Unlock()
		a.load(d)
		d.mu.Lock()
	}
	if d.loaded {
		d.syncedWith(since)
	}
	d.mu.Unlock()
	a.consider(d)
	return p
}

func (p *Poll) wake() {
	if p.woken.CompareAndSwap(false, true) {
		p.wakes()
	}
}

// Owed is what this poll's response is to carry, as far as that is known now.
func (p *Poll) Owed() []Entry {
	if p.first {
		return nil
	}
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	if !p.d.loaded {
		return nil
	}
	entries, _ := p.d.owed(p.a.stream, p.a.rooms.Known)
	return entries
}

// Delivered records that the response went out whole. nextBatch is its token if it carried these entries, and "" if it
// could not be made to: then they stay owed, but no further response is hurried for them.
func (p *Poll) Delivered(entries []Entry, nextBatch string) {
	if len(entries) == 0 {
		return
	}
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	for _, e := range entries {
		p.d.hurried = max(p.d.hurried, e.Position)
	}
	if nextBatch == "" {
		return
	}
	p.d.carried(entries, p.since, nextBatch)
	p.d.owed(p.a.stream, p.a.rooms.Known)
}

// End is called once the response is out, or has failed.
func (p *Poll) End() {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	delete(p.d.polls, p)
	p.d.usedAt = p.a.now()
}
