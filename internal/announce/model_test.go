package announce_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"freshen"
	"freshen/internal/homeserver/hstest"
)

// model is what must hold, told as simply as possible and knowing nothing of floors, caches or questions.
type model struct {
	t *rapid.T
	w *world

	stream  map[subject]int64
	rooms   map[id.RoomID]map[id.UserID]bool
	sharing map[pair]sharing
	clients []*client
	tokens  int
}

type subject struct{ target, audience id.UserID }

type pair struct{ user, target id.UserID }

// sharing is in which stretch of the stream's positions two users shared a room.
type sharing struct {
	now    bool
	since  int64 // the head when they began to
	ended  int64 // the head when they last ceased to
	before bool  // they ever ceased to
}

// client is a device from its own point of view, and what freshen may know of it.
type client struct {
	*device
	open *poll
	// since is that of the open poll.
	since string
	// told: what responses that arrived have named. queried: up to where key queries have answered.
	told, queried map[id.UserID]int64
	// acked is what freshen knows to be told in this life; saved is that of the last flush.
	acked, saved map[id.UserID]int64
	// standing counts the carries of a position under a token that did not move.
	standing map[under]standing
	// sent are the responses of this life that moved the token, by the token.
	sent map[string][]map[id.UserID]int64
	// hurried is what responses that went out have brought in this life.
	hurried map[id.UserID]int64
	idle    string // the token that the homeserver gave for the same since last, if nothing has happened since
}

type under struct {
	target id.UserID
	token  string
}

type standing struct {
	position int64
	times    int
}

var (
	modelUsers   = []id.UserID{alice, carol}
	modelTargets = []id.UserID{bob, dave, "@frank:c.org"}
	modelRooms   = []id.RoomID{room, room2}
)

// TestAgainstTheModel drives announcements, rooms, syncs, key queries and restarts in any order.
func TestAgainstTheModel(t *testing.T) {
	outer := newWorld(t, hstest.MutualNone)
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{t: t, hs: outer.hs, hc: outer.hc, clock: newClock()}
		w.hs.SetMutual(rapid.SampledFrom([]hstest.Mutual{hstest.MutualNone, hstest.MutualStable}).Draw(rt, "mutual"), 2)
		w.hs.SetRooms(nil)
		w.path = t.TempDir() + "/model.db"
		w.open()
		defer func() { w.close(true) }()
		m := &model{t: rt, w: w, stream: map[subject]int64{}, rooms: map[id.RoomID]map[id.UserID]bool{}, sharing: map[pair]sharing{}}
		for _, r := range modelRooms {
			m.rooms[r] = map[id.UserID]bool{}
		}
		for _, who := range []freshen.Requester{{UserID: alice, DeviceID: "PHONE"}, {UserID: alice, DeviceID: "TABLET"}, {UserID: carol, DeviceID: "PHONE"}} {
			c := &client{device: w.device(who.UserID, who.DeviceID), told: map[id.UserID]int64{}, queried: map[id.UserID]int64{}, saved: map[id.UserID]int64{}}
			c.token = m.token()
			m.clients = append(m.clients, c)
		}
		m.forget()
		for _, who := range slices.Concat(modelUsers, modelTargets[:2]) {
			m.flip(room, who)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"changed":  func(t *rapid.T) { m.t = t; m.changed() },
			"to one":   func(t *rapid.T) { m.t = t; m.toOne() },
			"rooms":    func(t *rapid.T) { m.t = t; m.move() },
			"poll":     func(t *rapid.T) { m.t = t; m.poll() },
			"answer":   func(t *rapid.T) { m.t = t; m.answer() },
			"answer 2": func(t *rapid.T) { m.t = t; m.answer() },
			"answer 3": func(t *rapid.T) { m.t = t; m.answer() },
			"query":    func(t *rapid.T) { m.t = t; m.query() },
			"flush":    func(*rapid.T) { m.flush() },
			"restart":  func(t *rapid.T) { m.t = t; m.restart() },
			"time":     func(*rapid.T) { w.clock.advance(time.Minute) },
			"":         func(t *rapid.T) { m.t = t; m.check() },
		})
	})
}

func (m *model) token() string {
	m.tokens++
	return fmt.Sprint("t", m.tokens)
}

// forget begins a life of the process.
func (m *model) forget() {
	for _, c := range m.clients {
		c.acked = maps.Clone(c.saved)
		c.standing, c.sent, c.hurried = map[under]standing{}, map[string][]map[id.UserID]int64{}, map[id.UserID]int64{}
		c.open = nil
	}
}

func (m *model) client() *client { return rapid.SampledFrom(m.clients).Draw(m.t, "device") }

func (m *model) changed() {
	m.w.announced = nil
	var asking []id.UserID
	if rapid.Bool().Draw(m.t, "asked for") {
		asking = append(asking, rapid.SampledFrom(modelUsers).Draw(m.t, "by"))
	}
	m.w.announce(rapid.SampledFrom(modelTargets).Draw(m.t, "target"), asking...)
	m.heard()
}

func (m *model) toOne() {
	m.w.announced = nil
	m.w.announceTo(rapid.SampledFrom(modelTargets).Draw(m.t, "target"), rapid.SampledFrom(modelUsers).Draw(m.t, "to"))
	m.heard()
}

func (m *model) heard() {
	for _, a := range m.w.announced {
		m.stream[subject{a.Target, a.Audience}] = a.Position
	}
}

// move lets somebody join or leave. What the homeserver said before is no longer remembered.
func (m *model) move() {
	m.flip(rapid.SampledFrom(modelRooms).Draw(m.t, "room"), rapid.SampledFrom(slices.Concat(modelUsers, modelTargets)).Draw(m.t, "who"))
}

func (m *model) flip(r id.RoomID, who id.UserID) {
	m.w.clock.advance(6 * time.Minute)
	m.rooms[r][who] = !m.rooms[r][who]
	now := map[id.RoomID][]id.UserID{}
	for name, members := range m.rooms {
		for user, in := range members {
			if in {
				now[name] = append(now[name], user)
			}
		}
	}
	m.w.rooms(now)
	head := m.w.announcer.Head()
	for _, user := range modelUsers {
		for _, target := range modelTargets {
			shares := slices.ContainsFunc(modelRooms, func(r id.RoomID) bool { return m.rooms[r][user] && m.rooms[r][target] })
			s := m.sharing[pair{user, target}]
			switch {
			case shares && !s.now:
				s.now, s.since = true, head
			case !shares && s.now:
				s.now, s.ended, s.before = false, head, true
			}
			m.sharing[pair{user, target}] = s
		}
	}
}

func (m *model) poll() {
	c := m.client()
	if c.open == nil {
		m.begin(c)
	}
}

func (m *model) begin(c *client) {
	c.since = c.token
	if rapid.IntRange(0, 9).Draw(m.t, "first") == 0 {
		c.since, c.idle = "", ""
		clear(c.sent) // it starts over, and may be given the token of a response that was lost
	}
	// What every response that ended in this token carried is acknowledged now.
	for target, position := range inAll(c.sent[c.since]) {
		c.ack(target, position)
	}
	c.open = c.begin(c.since)
}

func inAll(responses []map[id.UserID]int64) map[id.UserID]int64 {
	if len(responses) == 0 {
		return nil
	}
	common := maps.Clone(responses[0])
	for _, r := range responses[1:] {
		maps.DeleteFunc(common, func(target id.UserID, _ int64) bool { return r[target] == 0 })
		for target := range common {
			common[target] = min(common[target], r[target])
		}
	}
	return common
}

func (c *client) ack(target id.UserID, position int64) {
	c.acked[target] = max(c.acked[target], position)
}

// answer ends a poll in one of the ways in which polls end.
func (m *model) answer() {
	c := m.client()
	if c.open == nil {
		m.begin(c)
		m.checkWake(c)
	}
	p := c.open
	m.checkPoll(c)
	entries := p.Owed()
	c.open = nil
	carried := map[id.UserID]int64{}
	for _, e := range entries {
		carried[e.Target] = e.Position
	}
	how := rapid.SampledFrom([]string{"arrives", "arrives", "arrives", "lost", "fails", "cannot be edited"}).Draw(m.t, "response")
	next := c.since
	switch {
	case how == "fails":
		p.End()
		return
	case how == "cannot be edited":
		next = ""
	case c.since == "" || rapid.Bool().Draw(m.t, "token moves"):
		// A homeserver where nothing happens in between gives the same token for the same since again.
		next = c.idle
		if next == "" || !rapid.Bool().Draw(m.t, "same token") {
			next = m.token()
		}
	}
	p.Delivered(entries, next)
	p.End()
	for target, position := range carried {
		c.hurried[target] = max(c.hurried[target], position)
	}
	if how == "cannot be edited" {
		// It may have ended in any token: no response before it proves any more that this was told.
		for target, position := range carried {
			for _, responses := range c.sent {
				for _, r := range responses {
					if r[target] <= position {
						delete(r, target)
					}
				}
			}
		}
		return
	}
	m.sent(c, carried, next)
	if how == "lost" {
		c.idle = ""
		if next != c.since && c.since != "" {
			c.idle = next
		}
		return
	}
	c.idle = ""
	for target, position := range carried {
		c.told[target] = max(c.told[target], position)
	}
	c.token = next
}

func (m *model) sent(c *client, carried map[id.UserID]int64, next string) {
	if len(carried) == 0 {
		return
	}
	if next != c.since {
		c.sent[next] = append(c.sent[next], carried)
		return
	}
	for target, position := range carried {
		s := c.standing[under{target, next}]
		if s.position != position {
			s = standing{position, 0}
		}
		s.times++
		c.standing[under{target, next}] = s
		if s.times == 3 {
			c.ack(target, position)
			c.told[target] = max(c.told[target], position) // taken for told, by the contract
		}
	}
}

// query is a key query for everybody, during which something may happen.
func (m *model) query() {
	c := m.client()
	arrived := m.w.announcer.Head()
	if rapid.Bool().Draw(m.t, "meanwhile") {
		m.changed()
	}
	m.w.announcer.Acked(c.who, modelTargets, arrived)
	m.w.announcer.Settle()
	for _, target := range modelTargets {
		c.ack(target, arrived)
		c.queried[target] = arrived
	}
}

func (m *model) flush() {
	m.w.announcer.Settle()
	m.w.announcer.Flush(context.Background())
	for _, c := range m.clients {
		c.saved = maps.Clone(c.acked)
	}
}

func (m *model) restart() {
	for _, c := range m.clients {
		if c.open != nil {
			c.open.End()
			c.open = nil
		}
	}
	if rapid.Bool().Draw(m.t, "in order") {
		m.flush()
	}
	m.w.restart(false)
	m.forget()
}

func (m *model) check() {
	for _, c := range m.clients {
		if c.open != nil {
			m.checkWake(c)
		}
	}
}

// must is what has to be carried to a client, may what can be.
func (m *model) must(c *client, target id.UserID) (position int64) {
	user := c.who.UserID
	position = m.stream[subject{target, user}]
	s := m.sharing[pair{user, target}]
	if all := m.stream[subject{target, ""}]; s.now && all > s.since {
		position = max(position, all)
	}
	if position <= max(c.told[target], c.queried[target]) {
		return 0
	}
	return position
}

func (m *model) may(c *client, target id.UserID) (position int64) {
	user := c.who.UserID
	position = m.stream[subject{target, user}]
	s := m.sharing[pair{user, target}]
	if all := m.stream[subject{target, ""}]; s.now || (s.before && s.ended >= all) {
		position = max(position, all)
	}
	if position <= c.acked[target] {
		return 0
	}
	return position
}

// checkPoll holds what the poll's response would carry against the model. A first sync carries nothing.
func (m *model) checkPoll(c *client) {
	// The poll has been woken for what it carries by now, or questions failed, which they do not here.
	entries := c.peek()
	for _, target := range modelTargets {
		carried := entries[target]
		if must := m.must(c, target); must > carried && c.since != "" {
			m.t.Fatalf("%v is not told of %s at %d (told of %d)", c.who, target, must, carried)
		}
		if may := m.may(c, target); carried > may || (c.since == "" && carried > 0) {
			m.t.Fatalf("%v is told of %s at %d, though it does not concern it or is acknowledged (%d is the most)", c.who, target, carried, may)
		}
	}
}

// checkWake: a poll is woken for what is new, soon and once.
func (m *model) checkWake(c *client) {
	anyMust, anyMay := false, false
	for _, target := range modelTargets {
		anyMust = anyMust || m.must(c, target) > c.hurried[target]
		anyMay = anyMay || m.may(c, target) > c.hurried[target] || m.stream[subject{target, ""}] > c.hurried[target] || m.stream[subject{target, c.who.UserID}] > c.hurried[target]
	}
	woken := c.open.woken.Load()
	switch {
	case woken > 1:
		m.t.Fatalf("%v was woken %d times in one poll", c.who, woken)
	case c.since == "" && woken > 0:
		m.t.Fatalf("a first sync of %v was woken", c.who)
	case anyMust && c.since != "" && woken == 0:
		m.t.Fatalf("%v was not woken", c.who)
	case woken > 0 && !anyMay:
		m.t.Fatalf("%v was woken for what a response had brought", c.who)
	}
}

// peek is what the client's open poll would carry.
func (c *client) peek() map[id.UserID]int64 {
	carried := map[id.UserID]int64{}
	for _, e := range c.open.Owed() {
		carried[e.Target] = e.Position
	}
	return carried
}
