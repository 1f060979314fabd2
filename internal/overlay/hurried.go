package overlay

import (
	"maps"
	"slices"
	"sync"
)

// MaxHurried is how many hurried polls are asked again at once; on one machine 32 take a tenth longer, and 128 as long. A thousand at once
// would each need a connection of its own, and have the homeserver do a thousand syncs in one moment; so they come one soon
// after the other, over few connections.
const MaxHurried = 64

// turn is where a poll stands that is to be hurried.
type turn uint8

const (
	turnNone    turn = iota
	turnWaits        // in the queue; the homeserver may answer it of itself meanwhile
	turnRunning      // it is being asked again
	turnOver
)

// hurried are the polls in flight, and which of them are being hurried.
type hurried struct {
	mu      sync.Mutex
	polls   map[*syncExchange]struct{}
	queue   []*syncExchange
	running int
	all     bool // freshen is about to stop
}

func (h *hurried) add(x *syncExchange) {
	h.mu.Lock()
	if h.polls == nil {
		h.polls = map[*syncExchange]struct{}{}
	}
	h.polls[x] = struct{}{}
	all := h.all
	h.mu.Unlock()
	if all {
		x.hurry()
	}
}

// remove is called when the poll has its answer.
func (h *hurried) remove(x *syncExchange) {
	h.mu.Lock()
	delete(h.polls, x)
	h.mu.Unlock()
	h.done(x)
}

func (h *hurried) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.polls)
}

// hurry has the poll abandoned and asked again as soon as it is its turn.
func (h *hurried) hurry(x *syncExchange) {
	h.mu.Lock()
	if _, flies := h.polls[x]; !flies || !x.waits || x.turn != turnNone {
		h.mu.Unlock()
		return
	}
	x.turn = turnWaits
	h.queue = append(h.queue, x)
	h.mu.Unlock()
	h.next()
}

// done is called when a hurried poll's answer has begun, or it is not hurried any more.
func (h *hurried) done(x *syncExchange) {
	h.mu.Lock()
	ran := x.turn == turnRunning
	if ran {
		h.running--
	}
	x.turn = turnOver
	h.mu.Unlock()
	if ran {
		h.next()
	}
}

// next hurries those whose turn it is.
func (h *hurried) next() {
	for {
		h.mu.Lock()
		if len(h.queue) == 0 || h.running >= MaxHurried {
			h.mu.Unlock()
			return
		}
		x := h.queue[0]
		h.queue[0], h.queue = nil, h.queue[1:]
		waits := x.turn == turnWaits
		if waits {
			x.turn = turnRunning
			h.running++
		}
		h.mu.Unlock()
		if waits && !x.hurry() {
			h.mu.Lock()
			if x.turn == turnRunning {
				x.turn = turnOver
				h.running--
			}
			h.mu.Unlock()
		}
	}
}

// hurryAll hurries every poll at once, those that come later as well.
func (h *hurried) hurryAll() {
	h.mu.Lock()
	h.all = true
	polls := slices.Collect(maps.Keys(h.polls))
	h.mu.Unlock()
	for _, x := range polls {
		x.hurry()
	}
}
