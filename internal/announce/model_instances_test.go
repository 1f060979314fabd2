package announce_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"freshen"
	"freshen/internal/announce"
	"freshen/internal/homeserver/hstest"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

// pairOf are two instances on one database, either of which can be cut off from it or die.
type pairOf struct {
	t       *rapid.T
	w       *world // the database and the homeserver
	both    [2]*instance
	clients []*roamer
	heads   map[id.UserID]int64
	buried  time.Time // when the last that had died was taken for dead; zero for none
	limbo   bool      // one has died, and may be cut off for all that the others know
}

// instance is one of them.
type instance struct {
	of        *pairOf
	n         int
	announcer *announce.Announcer
	stop      func()
	cut       bool
	missed    []store.Announcement
}

// roamer is a device whose requests go to either instance.
type roamer struct {
	who     freshen.Requester
	token   int
	open    *roamerPoll
	left    *roamerPoll // one that the client gave up, without the instance having noticed
	told    map[id.UserID]int64
	queried map[id.UserID]int64
	acked   map[id.UserID]int64 // for certain, and known to all
	carried map[id.UserID]int64 // by any answer
	last    *given              // the answer that the token is from; nil if another may have ended in it
	stands  map[under]standing
	ended   map[ending]int64 // what all responses that ended in a token have carried
	// brought: what answers of each instance have carried since the last poll there that was not answered.
	brought [2]map[id.UserID]int64
}

type ending struct {
	token  int
	target id.UserID
}

// given is an answer that arrived.
type given struct{ entries map[id.UserID]int64 }

type roamerPoll struct {
	*poll
	at    *instance
	since int
	blind bool                // it came when its instance could not ask all others
	cut   bool                // it came when its instance could not read what the device has acknowledged
	acked map[id.UserID]int64 // when it came
	alone bool                // no other request of the device was under way when it came, nor has been since
	asked bool                // the device has asked for keys since
}

var errCut = errors.New("cut off from the database")

// Ask asks the other instance, as far as it can be reached.
func (i *instance) Ask(_ context.Context, questions []string) (store.Replies, error) {
	m, replies := i.of, store.Replies{Answers: make([][]string, len(questions)), Left: -1}
	if i.cut {
		return replies, errCut
	}
	if !m.buried.IsZero() {
		replies.Left = m.w.clock.now().Sub(m.buried)
	}
	other := m.both[1-i.n]
	replies.Silent = other.cut || m.limbo
	if !other.cut {
		for q, question := range questions {
			if len(question) > store.LongestMessage {
				return replies, errors.New("the question is too long")
			}
			replies.Answers[q] = []string{other.announcer.Answer(question)}
		}
	}
	return replies, nil
}

func (i *instance) DevicePositions(ctx context.Context, devices []freshen.Requester) ([]store.DevicePosition, error) {
	if i.cut {
		return nil, errCut
	}
	return i.of.w.store.DevicePositions(ctx, devices)
}

func (i *instance) start() {
	var err error
	m := i.of
	i.announcer, err = announce.Open(context.Background(), m.w.store, rooms.New(m.w.hc, "a.org", m.w.clock.now, nil), slog.New(slog.DiscardHandler), m.w.clock.now)
	if err != nil {
		m.t.Fatal(err)
	}
	i.announcer.Share(i)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { i.announcer.Work(ctx) })
	i.stop = func() { cancel(); wg.Wait() }
}

// TestTwoInstancesAgainstTheModel has devices go to either of two instances, which lose their database, die, and hear of
// what is announced late, while answers get lost, and a homeserver gives one token twice. A device that never learns of a
// change is what must not be; hearing of one again may be while an instance is cut off, or was.
func TestTwoInstancesAgainstTheModel(t *testing.T) {
	outer := newWorld(t, hstest.MutualStable)
	outer.rooms(map[id.RoomID][]id.UserID{room: {alice, carol, bob, dave}})
	rapid.Check(t, func(rt *rapid.T) {
		m := &pairOf{t: rt, w: &world{t: t, hs: outer.hs, hc: outer.hc, clock: newClock()}, heads: map[id.UserID]int64{}}
		m.begin(t.TempDir() + "/model.db")
		defer m.end()
		act := func(do func()) func(*rapid.T) {
			return func(t *rapid.T) {
				m.t = t
				m.w.clock.advance(time.Millisecond)
				do()
				for _, i := range m.both {
					i.announcer.Settle()
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"changed": act(m.changed), "poll": act(m.poll), "answer": act(m.answer), "answer 2": act(m.answer), "answer 3": act(m.answer),
			"answer 4": act(m.answer), "give up": act(m.giveUp), "late answer": act(m.late), "unseen": act(m.unseen), "query": act(m.query),
			"cut": act(m.cut), "mend": act(m.mend), "mend 2": act(m.mend), "die": act(m.die), "bury": act(m.bury), "flush": act(m.flush),
		})
		m.allLearn()
	})
}

func (m *pairOf) begin(path string) {
	var err error
	if m.w.store, err = store.Open(context.Background(), store.Config{Path: path, Log: slog.New(slog.DiscardHandler)}); err != nil {
		m.t.Fatal(err)
	}
	for n := range m.both {
		m.both[n] = &instance{of: m, n: n}
		m.both[n].start()
	}
	m.w.announcer = m.both[0].announcer
	m.w.store.OnCommit(func(c store.Committed) {
		for _, a := range c.Announced {
			m.heads[a.Target] = a.Position
		}
		for _, i := range m.both {
			if i.cut {
				i.missed = append(i.missed, c.Announced...)
			} else {
				i.announcer.Announced(c.Announced)
			}
		}
	})
	for _, user := range []id.UserID{alice} { // one, so that what happens to it is not spread over several
		m.clients = append(m.clients, &roamer{
			who: freshen.Requester{UserID: user, DeviceID: "PHONE"}, token: 1, told: map[id.UserID]int64{}, queried: map[id.UserID]int64{},
			acked: map[id.UserID]int64{}, carried: map[id.UserID]int64{}, stands: map[under]standing{},
			ended: map[ending]int64{}, brought: [2]map[id.UserID]int64{{}, {}},
		})
	}
}

func (m *pairOf) end() {
	for _, c := range m.clients {
		for _, p := range []*roamerPoll{c.open, c.left} {
			if p != nil {
				p.End()
			}
		}
	}
	for _, i := range m.both {
		i.stop()
	}
	if err := m.w.store.Close(); err != nil {
		m.t.Error(err)
	}
}

// healthy says that all instances know of each other.
func (m *pairOf) healthy() bool { return !m.both[0].cut && !m.both[1].cut && !m.limbo }

func (m *pairOf) client() *roamer { return rapid.SampledFrom(m.clients).Draw(m.t, "device") }

func (m *pairOf) instance() *instance { return m.both[rapid.IntRange(0, 1).Draw(m.t, "instance")] }

func (m *pairOf) changed() {
	m.w.announcer = m.both[0].announcer
	m.w.announce(rapid.SampledFrom([]id.UserID{bob, bob, bob, dave}).Draw(m.t, "target"))
}

func (m *pairOf) poll() {
	if c := m.client(); c.open == nil {
		m.request(c)
	}
}

// request is a poll with the client's token.
func (m *pairOf) request(c *roamer) {
	i := m.instance()
	if c.last != nil && m.healthy() {
		for target, position := range c.last.entries {
			if c.ended[ending{c.token, target}] >= position {
				c.acked[target] = max(c.acked[target], position)
			}
		}
	}
	c.last = nil
	p := &poll{}
	p.Poll = i.announcer.Begin(c.who, credentials(c.who.UserID), fmt.Sprint("t", c.token), func() { p.woken.Add(1) })
	c.open = &roamerPoll{poll: p, at: i, since: c.token, blind: !m.healthy(), cut: i.cut, acked: maps.Clone(c.acked), alone: c.left == nil}
	if c.left != nil {
		c.left.alone = false
	}
	i.announcer.Settle()
	m.w.clock.advance(time.Millisecond)
}

// answer ends a poll.
func (m *pairOf) answer() {
	c := m.client()
	if c.open == nil {
		m.request(c)
	}
	p := c.open
	c.open = nil
	how := rapid.SampledFrom([]string{"arrives", "arrives", "lost", "lost", "fails"}).Draw(m.t, "response")
	if how == "fails" {
		clear(c.brought[p.at.n])
		p.End()
		return
	}
	entries, next := m.respond(c, p)
	if how == "lost" {
		return
	}
	c.token = next
	for target, position := range entries {
		c.told[target] = max(c.told[target], position)
	}
	if p.alone && m.healthy() && next != p.since {
		c.last = &given{entries}
	}
}

// respond has a poll's response go out; it is held against what must be.
func (m *pairOf) respond(c *roamer, p *roamerPoll) (carried map[id.UserID]int64, next int) {
	woken := p.woken.Load()
	entries := p.Owed()
	carried = map[id.UserID]int64{}
	for _, e := range entries {
		carried[e.Target] = e.Position
	}
	next = p.since
	if rapid.Bool().Draw(m.t, "token moves") {
		next++
	}
	anew := false
	for _, target := range []id.UserID{bob, dave} {
		head := m.heads[target]
		must := head > max(c.told[target], c.queried[target]) && !p.cut && !p.at.cut && !m.stoodThrice(c, target, head)
		switch {
		case must && carried[target] < head:
			m.t.Fatalf("%v is not told of %s at %d by %d, and with the token t%d never will be (carried: %v)", c.who, target, head, p.at.n, next, carried)
		case must && p.alone && c.carried[target] < head && woken == 0:
			m.t.Fatalf("%v was not woken for %s at %d by %d", c.who, target, head, p.at.n)
		case m.healthy() && !p.blind && carried[target] > 0 && carried[target] <= min(p.acked[target], c.acked[target]):
			m.t.Fatalf("%v is told again of %s at %d by %d, which all know to be acknowledged", c.who, target, carried[target], p.at.n)
		}
		c.carried[target] = max(c.carried[target], carried[target])
		if all, ok := c.ended[ending{next, target}]; next != p.since && (!ok || all > carried[target]) {
			c.ended[ending{next, target}] = carried[target]
		}
		anew = anew || carried[target] > c.brought[p.at.n][target]
		c.brought[p.at.n][target] = max(c.brought[p.at.n][target], carried[target])
		if carried[target] > 0 && next == p.since {
			at := under{target, fmt.Sprint("t", next)}
			s := c.stands[at]
			if s.position != carried[target] {
				s = standing{position: carried[target]}
			}
			if s.times++; s.times > 3 && m.healthy() && m.buried.IsZero() {
				m.t.Fatalf("%v is told of %s a fourth time under the token t%d", c.who, target, next)
			}
			if !m.healthy() {
				s.times = -1000
			}
			c.stands[at] = s
		}
	}
	if woken > 0 && !anew && p.alone && !p.asked {
		m.t.Fatalf("%v was woken by %d for what an answer of its had brought: it would never wait (carried: %v)", c.who, p.at.n, carried)
	}
	p.Delivered(entries, fmt.Sprint("t", next))
	p.End()
	return carried, next
}

// stoodThrice: by the contract, three responses under a token that stands still count as heard, also if all got lost.
func (m *pairOf) stoodThrice(c *roamer, target id.UserID, head int64) bool {
	for at, s := range c.stands {
		if at.target == target && s.position == head && (s.times >= 3 || s.times < 0) {
			return true
		}
	}
	return false
}

// giveUp lets the client forget a poll that the instance goes on to answer.
func (m *pairOf) giveUp() {
	if c := m.client(); c.open != nil && c.left == nil {
		c.left, c.open = c.open, nil
	}
}

// late answers one that was given up: nobody reads it.
func (m *pairOf) late() {
	if c := m.client(); c.left != nil {
		p := c.left
		c.left = nil
		m.respond(c, p)
		if c.open != nil {
			c.open.alone = false
		}
		c.last = nil
	}
}

// unseen is an answer that begins before its instance knows whose it is.
func (m *pairOf) unseen() {
	c := m.client()
	if c.open != nil {
		return
	}
	unseen := m.instance().announcer.Unseen()
	known := rapid.Bool().Draw(m.t, "known in the end")
	early := rapid.Bool().Draw(m.t, "known early")
	if known && early {
		unseen.Whose(c.who)
	}
	if rapid.Bool().Draw(m.t, "goes out whole") {
		m.wentOut(c, unseen, known)
	}
	switch {
	case !known:
		unseen.Nobodys()
	case !early:
		unseen.Whose(c.who)
	}
}

func (m *pairOf) wentOut(c *roamer, unseen *announce.Unseen, known bool) {
	next := c.token
	if rapid.Bool().Draw(m.t, "token moves") {
		next++
	}
	for _, target := range []id.UserID{bob, dave} {
		c.ended[ending{next, target}] = 0
	}
	if rapid.Bool().Draw(m.t, "token is seen") {
		unseen.Ended(fmt.Sprint("t", next))
	} else {
		unseen.Ended("")
		c.last = nil
		if !known {
			m.doubt()
		}
	}
	if next != c.token && rapid.Bool().Draw(m.t, "arrives") {
		c.token, c.last = next, nil
	}
}

// query is a key query for both targets.
func (m *pairOf) query() {
	c, i := m.client(), m.instance()
	head := i.announcer.Head()
	i.announcer.Acked(c.who, []id.UserID{bob, dave}, head)
	for _, p := range []*roamerPoll{c.open, c.left} {
		if p != nil {
			p.asked = true
		}
	}
	for target := range m.heads {
		c.queried[target] = max(c.queried[target], head)
		if m.healthy() {
			c.acked[target] = max(c.acked[target], head)
		}
	}
}

func (m *pairOf) cut() { m.instance().cut = true }

func (m *pairOf) mend() {
	for _, i := range m.both {
		i.cut = false
	}
	for _, i := range m.both {
		i.announcer.Announced(i.missed)
		i.missed = nil
	}
}

// die is the end of an instance, of which the other does not know that it is one; another takes its place.
func (m *pairOf) die() {
	i := m.instance()
	if i.cut {
		return
	}
	for _, c := range m.clients {
		for _, p := range []**roamerPoll{&c.open, &c.left} {
			if *p != nil && (*p).at == i {
				(*p).End()
				*p = nil
			}
		}
		clear(c.acked)
		c.last = nil
		clear(c.brought[i.n])
	}
	i.stop()
	m.limbo = true
	i.start()
}

func (m *pairOf) bury() {
	if !m.limbo {
		return
	}
	m.limbo, m.buried = false, m.w.clock.now()
	m.doubt() // it may have answered until now
}

// doubt: anybody may have been given an answer that lacked what there is to tell.
func (m *pairOf) doubt() {
	for _, c := range m.clients {
		c.last = nil
		if c.open != nil {
			c.open.alone = false
		}
	}
}

func (m *pairOf) flush() {
	for _, i := range m.both {
		if !i.cut {
			i.announcer.Flush(context.Background())
		}
	}
}

// allLearn ends all trouble: then every device must be told what it has not been, by the first answer that it gets.
func (m *pairOf) allLearn() {
	m.mend()
	for _, c := range m.clients {
		if c.open != nil {
			c.open.End()
			c.open = nil
		}
		for _, i := range m.both {
			p := &poll{}
			p.Poll = i.announcer.Begin(c.who, credentials(c.who.UserID), fmt.Sprint("t", c.token), func() { p.woken.Add(1) })
			i.announcer.Settle()
			var named []id.UserID
			for _, e := range p.Owed() {
				named = append(named, e.Target)
			}
			p.End()
			for _, target := range []id.UserID{bob, dave} {
				if head := m.heads[target]; head > max(c.told[target], c.queried[target]) && !m.stoodThrice(c, target, head) && !slices.Contains(named, target) {
					m.t.Fatalf("%v never learns of %s at %d", c.who, target, head)
				}
			}
		}
	}
}
