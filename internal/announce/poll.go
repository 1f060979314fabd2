package announce

import (
	"time"

	"freshen"
	"freshen/internal/homeserver"
)

// Poll is one /sync request of a device while it is being answered. Fields below wake are guarded by device.mu.
type Poll struct {
	a     *Announcer
	d     *device
	cred  homeserver.Credentials
	since string
	first bool // no since: such a response carries no device lists, and acknowledges nothing
	wake  func()

	asked    time.Time // when it came, by the device's clock
	number   int64     // counts the device's polls
	woken    bool
	wokenAt  time.Time
	answered bool    // the response has begun: what it carries is settled
	carrying []Entry // by a response that is on its way
}

// Begin registers a poll. since is the request's token, "" for a first sync; wake is called at most once, from another
// goroutine or before Begin returns, when the answer should be hurried. End must be called once the answer is out.
func (a *Announcer) Begin(who freshen.Requester, cred homeserver.Credentials, since string, wake func()) *Poll {
	p := &Poll{a: a, cred: cred, since: since, first: since == "", wake: wake}
	a.mu.Lock()
	d := a.deviceLocked(who)
	p.d = d
	d.mu.Lock()
	a.mu.Unlock()
	d.begun++
	p.number = d.begun
	d.polls[p] = struct{}{}
	d.usedAt = a.now()
	d.arrive(since)
	p.asked = d.moment()
	d.mu.Unlock()
	a.consider(d, question{})
	return p
}

// Owed is what this poll's response is to carry, as far as that is known now. It is asked once, when the response
// begins.
func (p *Poll) Owed() []Entry {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	p.answered = true
	if p.woken && p.a.counters.woken != nil {
		p.a.counters.woken(p.a.now().Sub(p.wokenAt))
	}
	if p.first || !p.d.loaded {
		p.d.answers.gave(0, nil, p.d.moment())
		return nil
	}
	upto := p.a.stream.position()
	entries, unknown, held := p.d.owed(p.a.stream, p.a.rooms.KnownSince)
	for _, one := range unknown {
		upto = min(upto, one.Position-1)
	}
	for _, one := range held {
		upto = min(upto, one.Position-1)
	}
	p.d.answers.gave(upto, entries, p.d.moment())
	p.carrying = entries
	return entries
}

// OwedSince is what an answer is to name that is no /sync: GET /keys/changes. since is a token that the device says it
// has reached. It does not wait: what is not known yet goes out with a /sync.
func (a *Announcer) OwedSince(who freshen.Requester, since string) []Entry {
	d := a.device(who)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.usedAt = a.now()
	if !d.loaded {
		return nil
	}
	d.arrive(since)
	entries, _, held := d.owed(a.stream, a.rooms.KnownSince)
	if len(held) > 0 {
		a.askOthers(d)
	}
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
	upto := p.a.stream.position()
	for _, e := range entries {
		p.d.hurried[e.Target] = max(p.d.hurried[e.Target], e.Position)
		upto = min(upto, e.Position-1)
	}
	if nextBatch == "" {
		p.d.answers.gave(upto, nil, p.d.moment())
		return
	}
	p.d.carried(entries, p.since, nextBatch, p.asked)
	if nextBatch == p.since { // then this may have acknowledged them
		p.d.owed(p.a.stream, p.a.rooms.KnownSince)
	}
}

// End is called once the response is out, or has failed: then another poll of the device takes its place. If there was
// no response, as where a proxy cuts a poll, what it would have carried is hurried again: a client behind that proxy might
// not hear of it otherwise.
func (p *Poll) End() {
	p.d.mu.Lock()
	delete(p.d.polls, p)
	if !p.answered && !p.first && p.d.loaded {
		entries, _, _ := p.d.owed(p.a.stream, p.a.rooms.KnownSince)
		for _, e := range entries {
			delete(p.d.hurried, e.Target)
		}
	}
	p.d.usedAt = p.a.now()
	p.d.mu.Unlock()
	p.a.consider(p.d, question{})
}
