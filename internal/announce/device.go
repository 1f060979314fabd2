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
)

// device is what is known of one device. Fields below mu are guarded by it.
type device struct {
	who freshen.Requester

	mu     sync.Mutex
	loaded bool
	failed bool // loading has failed; the next poll tries again
	// floor: everything up to this position is acknowledged or does not concern the user.
	floor int64
	// above: what is acknowledged of single targets beyond the floor.
	above     map[id.UserID]int64
	responses []response
	carries   map[id.UserID]carry
	// hurried is the highest position that a response was hurried for.
	hurried int64
	polls   map[*Poll]struct{}
	dirty   bool
	usedAt  time.Time
	savedAt time.Time
}

// Entry is an announcement that a response carries.
type Entry struct {
	Target   id.UserID
	Position int64
}

// response is one that carried something: for which since, and with which next_batch.
type response struct {
	since, nextBatch string
	entries          []Entry
}

// carry counts how often an announcement was carried under one token.
type carry struct {
	position int64
	token    string
	times    int
}

func newDevice(who freshen.Requester) *device {
	return &device{who: who, above: map[id.UserID]int64{}, carries: map[id.UserID]carry{}, polls: map[*Poll]struct{}{}}
}

// known says whether user is known to share a room with target.
type known func(user, target id.UserID) (shares, known bool)

// owed works out what the device is owed, one entry a target, and which targets it cannot tell about yet. On the way
// it raises the floor over what is settled.
func (d *device) owed(s *stream, ask known) (entries []Entry, unknown []id.UserID) {
	found, head := s.above(d.floor, d.who.UserID)
	settled := head
	byTarget := map[id.UserID]int{}
	for _, a := range found {
		if d.above[a.Target] >= a.Position {
			continue
		}
		shares, sure := true, true
		if a.Audience == "" {
			shares, sure = ask(d.who.UserID, a.Target)
		}
		switch {
		case !sure:
			unknown = append(unknown, a.Target)
		case !shares:
			continue
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
	return entries, unknown
}

// raise lifts the floor and forgets what it covers.
func (d *device) raise(floor int64) {
	if floor <= d.floor {
		return
	}
	d.floor, d.dirty = floor, true
	maps.DeleteFunc(d.above, func(_ id.UserID, acked int64) bool { return acked <= floor })
	maps.DeleteFunc(d.carries, func(_ id.UserID, c carry) bool { return c.position <= floor })
}

func (d *device) ack(target id.UserID, position int64) {
	if position > d.floor && position > d.above[target] {
		d.above[target] = position
		d.dirty = true
		delete(d.carries, target)
	}
}

// syncedWith learns from the since of a request which response has arrived.
func (d *device) syncedWith(since string) {
	if since == "" {
		return
	}
	for i, r := range slices.Backward(d.responses) {
		if r.nextBatch != since || r.since == since {
			continue
		}
		for _, e := range r.entries {
			d.ack(e.Target, e.Position)
		}
		d.responses = slices.Delete(d.responses, 0, i+1)
		return
	}
}

// carried records that a response with these entries went out whole.
func (d *device) carried(entries []Entry, since, nextBatch string) {
	if nextBatch == since {
		for _, e := range entries {
			c := d.carries[e.Target]
			if c.position != e.Position || c.token != nextBatch {
				c = carry{position: e.Position, token: nextBatch}
			}
			c.times++
			d.carries[e.Target] = c
			if c.times >= enoughCarries {
				d.ack(e.Target, e.Position)
			}
		}
		return
	}
	if len(d.responses) >= maxResponses {
		d.responses = slices.Delete(d.responses, 0, 1)
	}
	d.responses = append(d.responses, response{since: since, nextBatch: nextBatch, entries: entries})
}

func (d *device) snapshot(now time.Time) store.DevicePosition {
	return store.DevicePosition{UserID: d.who.UserID, DeviceID: d.who.DeviceID, Acked: d.floor, Above: maps.Clone(d.above), SeenAt: now}
}
