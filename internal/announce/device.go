package announce

import (
	"maps"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

const (
	// maxResponses is how many responses of one device are remembered, to recognise their next_batch.
	maxResponses = 8
	// enoughCarries is how often an announcement is carried under a token that never moves.
	enoughCarries = 3
	// maxCarries is how many counts of that are kept of one device; past it they begin anew.
	maxCarries = 1000
)

// device is what is known of one device. Fields below mu are guarded by it.
type device struct {
	who    freshen.Requester
	shared bool // it may come to other instances as well
	clock  func() time.Time
	// unseen is until when answers that may have ended in a token were given to nobody knows whom; pending, whether that is still
	// being found out of one.
	unseen  func(token) time.Time
	pending func(...token) bool

	mu     sync.Mutex
	loaded bool
	failed bool // loading has failed; the next poll, announcement or flush has it tried again
	unsure bool // of an announcement whether it concerns the user, when its polls last looked at what it is owed or since
	// floor: everything up to this position is acknowledged or does not concern the user.
	floor int64
	// above: what is acknowledged of single targets beyond the floor.
	above map[id.UserID]int64
	// relevant: which positions of single targets have been found to concern the user. That is decided once, so that
	// what a lost response carried is carried again whatever has been forgotten about rooms.
	relevant  map[id.UserID]int64
	responses []response
	carries   map[under]carry
	answers   answers
	// The last tokens that it came with of which it is not known yet what they prove. Where others share the database: the
	// positions of single targets that others say they have brought. Whether that is being found out, and since when an announcement
	// is held back for that.
	arrivals  []arrival
	brought   map[id.UserID]int64
	asking    bool
	heldSince time.Time
	// hurried: the positions of single targets that a response has brought, in time or not, so that no other is hurried.
	hurried map[id.UserID]int64
	polls   map[*Poll]struct{}
	begun   int64 // polls, ever
	dirty   bool
	usedAt  time.Time
	savedAt time.Time
	latest  time.Time // what moment said last
}

// Entry is an announcement that a response carries.
type Entry struct {
	Target   id.UserID `json:"t"`
	Position int64     `json:"p"`
}

// under is a target and a token that stood still.
type under struct {
	target id.UserID
	token  token
}

// carry counts how often an announcement was carried under one token. Two connections of a device have two.
type carry struct {
	position int64
	times    int
}

func (a *Announcer) newDevice(who freshen.Requester) *device {
	return &device{
		who: who, shared: a.others != nil, clock: a.now, unseen: a.unnoticed, pending: a.pending, answers: answers{horizon: a.forgotten()}, brought: map[id.UserID]int64{},
		above: map[id.UserID]int64{}, relevant: map[id.UserID]int64{}, carries: map[under]carry{},
		hurried: map[id.UserID]int64{}, polls: map[*Poll]struct{}{},
	}
}

// moment is the time, but never the same twice: what of two things came first must be known.
func (d *device) moment() time.Time {
	now := d.clock()
	if !now.After(d.latest) {
		now = d.latest.Add(1)
	}
	d.latest = now
	return now
}

// settle takes over what the database has. What was acknowledged before it was there stays.
func (d *device) settle(position store.DevicePosition) {
	if !d.loaded {
		d.savedAt, d.loaded = position.SeenAt, true
	}
	d.floor = max(d.floor, position.Acked)
	for target, acked := range position.Above {
		d.above[target] = max(d.above[target], acked)
	}
	d.forget()
}

// known says whether user is known to share a room with target, as of since.
type known func(user, target id.UserID, since time.Time) (shares, known bool)

// owed works out what the device is owed, one entry a target, and what it cannot tell about yet: unknown is for the
// homeserver to say, held for other instances. On the way it raises the floor over what is settled.
func (d *device) owed(s *stream, ask known) (entries []Entry, unknown []store.Announcement, held []Entry) {
	found, head := s.above(d.floor, d.who.UserID)
	settled := head
	byTarget := map[id.UserID]int{}
	for _, a := range found {
		if d.above[a.Target] >= a.Position {
			continue
		}
		shares, sure := d.concerns(a, ask)
		switch {
		case !sure:
			unknown = append(unknown, a)
		case !shares:
			continue
		case d.held(a):
			held = append(held, Entry{a.Target, a.Position})
		default:
			if i, ok := byTarget[a.Target]; ok {
				entries[i].Position = a.Position
			} else {
				byTarget[a.Target] = len(entries)
				entries = append(entries, Entry{a.Target, a.Position})
			}
		}
		settled = min(settled, a.Position-1)
	}
	d.raise(settled)
	if len(held) == 0 {
		d.heldSince = time.Time{}
	}
	d.unsure = d.unsure || len(unknown) > 0
	// Who hears of a later change of the same target need not be asked about.
	unknown = slices.DeleteFunc(unknown, func(a store.Announcement) bool {
		i, ok := byTarget[a.Target]
		return ok && entries[i].Position > a.Position
	})
	return entries, unknown, held
}

func (d *device) concerns(a store.Announcement, ask known) (concerns, sure bool) {
	if a.Audience != "" || d.relevant[a.Target] >= a.Position {
		return true, true
	}
	concerns, sure = ask(d.who.UserID, a.Target, a.At)
	if concerns && sure {
		d.relevant[a.Target] = a.Position
	}
	return concerns, sure
}

// raise lifts the floor and forgets what it covers.
func (d *device) raise(floor int64) {
	if floor > d.floor {
		d.floor, d.dirty = floor, true
		d.forget()
	}
}

func (d *device) forget() {
	covered := func(_ id.UserID, position int64) bool { return position <= d.floor }
	maps.DeleteFunc(d.above, covered)
	maps.DeleteFunc(d.relevant, covered)
	maps.DeleteFunc(d.hurried, covered)
	maps.DeleteFunc(d.brought, covered)
	maps.DeleteFunc(d.carries, func(at under, c carry) bool { return covered(at.target, c.position) })
}

func (d *device) ack(target id.UserID, position int64) {
	if position > d.floor && position > d.above[target] {
		d.above[target] = position
		d.dirty = true
		maps.DeleteFunc(d.carries, func(at under, c carry) bool { return at.target == target && c.position <= position })
	}
}

// arrive learns from the since of a request which response has arrived: at once; or where others share the database, once
// they have been asked; or where another answer may have been the device's as well, once it is known whose it was.
func (d *device) arrive(since string) {
	if since == "" {
		return
	}
	a := arrival{token: tokenOf(since), at: d.moment()}
	switch {
	case d.shared:
	case !d.ends(a):
		return // as most do, so that nothing is looked for
	case !d.pending(a.token):
		d.take(a, []hearsay{{answers: answers{horizon: d.unseen(a.token)}}})
		return
	}
	if len(d.arrivals) == maxResponses {
		d.arrivals = slices.Delete(d.arrivals, 0, 1)
	}
	d.arrivals = append(d.arrivals, a)
}

// ends says whether a response is remembered that ended in the arrival's token.
func (d *device) ends(a arrival) bool {
	return slices.ContainsFunc(d.responses, func(r response) bool { return r.nextBatch == a.token && r.asked.Before(a.at) })
}

// take acknowledges what the arrival proves.
func (d *device) take(a arrival, others []hearsay) {
	for target, position := range d.proven(a, others) {
		d.ack(target, position)
	}
	last := -1
	for i, r := range d.responses {
		if r.nextBatch == a.token && r.asked.Before(a.at) {
			last = i
		}
	}
	d.responses = slices.Delete(d.responses, 0, last+1)
}

// carried records that a response with these entries went out whole, to a request with since that came at asked.
func (d *device) carried(entries []Entry, since, nextBatch string, asked time.Time) {
	next := tokenOf(nextBatch)
	if nextBatch == since {
		for _, e := range entries {
			at := under{e.Target, next}
			c := d.carries[at]
			if c.position != e.Position {
				c = carry{position: e.Position}
			}
			c.times++
			if len(d.carries) >= maxCarries {
				clear(d.carries)
			}
			d.carries[at] = c
			if c.times >= enoughCarries {
				d.ack(e.Target, e.Position)
			}
		}
		return
	}
	if len(d.responses) >= maxResponses {
		d.responses = slices.Delete(d.responses, 0, 1)
	}
	d.responses = append(d.responses, response{nextBatch: next, entries: entries, asked: asked})
}

// toWake chooses which poll's answer is to be hurried for these entries: the newest, since an older one may be left
// over from a connection that broke. There is none if nothing is new, or if a response that will bring it is on its way.
func (d *device) toWake(entries []Entry) *Poll {
	if !slices.ContainsFunc(entries, d.isNew) {
		return nil
	}
	var newest *Poll
	for p := range d.polls {
		switch {
		case p.first, p.answered:
		case p.woken:
			return nil
		case newest == nil || p.number > newest.number:
			newest = p
		}
	}
	if newest != nil {
		newest.woken = true
	}
	return newest
}

func (d *device) isNew(e Entry) bool {
	if e.Position <= d.hurried[e.Target] {
		return false
	}
	for p := range d.polls {
		if slices.ContainsFunc(p.carrying, func(c Entry) bool { return c.Target == e.Target && c.Position >= e.Position }) {
			return false
		}
	}
	return true
}

// newest is the device's latest poll; nil if it has none.
func (d *device) newest() (newest *Poll) {
	for p := range d.polls {
		if newest == nil || p.number > newest.number {
			newest = p
		}
	}
	return newest
}

func (d *device) snapshot(now time.Time) store.DevicePosition {
	return store.DevicePosition{UserID: d.who.UserID, DeviceID: d.who.DeviceID, Acked: d.floor, Above: maps.Clone(d.above), SeenAt: now}
}
