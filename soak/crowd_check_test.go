//go:build unix

package soak

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// late is how long after a client has given up a request freshen may still begin to answer it.
const late = time.Second

// heardWithin is how long an instance may take to hear of what another has announced, on a busy machine.
const heardWithin = 3 * time.Second

// change is one list that was fetched and announced between from and to.
type change struct {
	target   id.UserID
	by       id.UserID // who asked
	all      bool      // it was another list than before: for all who share a room with the target, and for asked
	from, to time.Time
	asked    map[id.UserID]bool // for the target, until then
}

// changesSeen completes the changes by what the remote servers served in that time: they number their lists.
func (w *crowd) changesSeen(h *history) []change {
	w.mu.Lock()
	all := slices.Clone(w.changed)
	w.mu.Unlock()
	for i := range all {
		c := &all[i]
		before := -1 // none was fetched
		for _, f := range h.fetches[c.target] {
			switch {
			case !f.ok, f.arrived.After(c.to):
			case f.arrived.Before(c.from):
				before = f.list
			default:
				c.all = c.all || f.list != before
			}
		}
	}
	slices.SortFunc(all, func(a, b change) int { return a.from.Compare(b.from) })
	asked := map[id.UserID]map[id.UserID]bool{}
	for i := range all {
		c := &all[i]
		c.asked = maps.Clone(asked[c.target])
		if c.asked == nil {
			c.asked = map[id.UserID]bool{}
		}
		c.asked[c.by] = true
		asked[c.target] = c.asked
	}
	return all
}

// told is what a crowd was told, in numbers.
type told struct {
	entries, acknowledged int
	twice                 int             // again, after an acknowledgement, by one of several instances
	such                  string          // one of those
	waited                []time.Duration // from the 202 to the device
}

// check is what holds of a crowd in the end:
//
//   - Each device of each user whom a change concerns was told of it: by a sync that it kept, or by a /keys/query.
//   - None is told of a change again in the answer to a request that it made once it had acknowledged it: by the token of an
//     answer that carried it, and that no other answer can have ended in which did not; by a /keys/query; or since it had
//     been given it three times under a token that stood still. After the first, it may come once more; but seldom.
//   - None is told of somebody who does not concern its user.
//   - Who has signed out is told nothing.
func (w *crowd) check(h *history) (complaints []string, numbers told) {
	changes := w.changesSeen(h)
	for _, c := range w.clients {
		mine := map[id.UserID][]change{}
		for _, one := range changes {
			if w.concerns(c.user, one) {
				mine[one.target] = append(mine[one.target], one)
			}
		}
		complaints = append(complaints, c.overheard(mine)...)
		for target, changes := range mine {
			complaints = append(complaints, c.checkTarget(target, changes, &numbers)...)
		}
	}
	most := numbers.acknowledged * w.twiceAtMost / 1000
	if w.twiceAtMost > 0 {
		most = max(most, 2) // of a small crowd
	}
	if numbers.twice > most {
		complaints = append(complaints, fmt.Sprintf("of %d acknowledgements, %d were followed by the same once more, such as: %s", numbers.acknowledged, numbers.twice, numbers.such))
	}
	return append(some(h.complaints), some(complaints)...), numbers
}

func (w *crowd) concerns(user id.UserID, c change) bool {
	return c.by == user || c.all && (c.asked[user] || w.members[user][c.target])
}

func (c *crowdClient) overheard(mine map[id.UserID][]change) (complaints []string) {
	named := slices.Clone(c.asked)
	for _, e := range c.exchanges {
		named = append(named, e.changed...)
		if len(e.changed) > 0 && !c.out.IsZero() && e.sent.After(c.out.Add(heardWithin)) {
			complaints = append(complaints, fmt.Sprintf("%s signed out at %s and was told of %v at %s", c, clock(c.out), e.changed, clock(e.received)))
		}
	}
	for _, target := range named {
		if len(mine[target]) == 0 {
			complaints = append(complaints, fmt.Sprintf("%s heard of %s, who does not concern them", c, target))
		}
	}
	return complaints
}

// acknowledgement is from when on a request of the device's must not be told of a change again.
type acknowledgement struct {
	at  time.Time
	how string
	// itself: the request that is the acknowledgement counts as well.
	itself *exchange
}

// checkTarget follows what a device was told of one target, change by change.
func (c *crowdClient) checkTarget(target id.UserID, changes []change, numbers *told) (complaints []string) {
	carriers := c.carriersOf(target)
	if c.out.IsZero() {
		complaints = c.unheard(target, changes, carriers, numbers)
	}
	// acks[i] is how the i-th change was first acknowledged; nil if it is not certain that it was.
	acks := make([]*acknowledgement, len(changes))
	for i, one := range changes {
		var carried []*exchange // this change for certain: whatever came before was acknowledged
		for _, e := range carriers {
			if e.received.Before(one.from) || (i+1 < len(changes) && e.received.After(changes[i+1].from)) {
				continue
			}
			if slices.ContainsFunc(acks[:i], func(a *acknowledgement) bool { return !a.covers(e) }) {
				continue
			}
			carried = append(carried, e)
		}
		acks[i] = c.acknowledged(target, one, carried)
	}
	for _, e := range carriers {
		numbers.entries++
		known := 0
		for known < len(changes) && !changes[known].from.After(e.received) {
			known++
		}
		if slices.ContainsFunc(acks[:known], func(a *acknowledgement) bool { return !a.covers(e) }) {
			continue
		}
		if known == 0 {
			complaints = append(complaints, fmt.Sprintf("%s heard of %s at %s, before anything was announced", c, target, clock(e.received)))
			continue
		}
		a := acks[known-1]
		complaint := fmt.Sprintf("%s was told of %s at %s by the answer to a request of %s with %q at %q, although the change of %s was acknowledged at %s %s; its syncs since:%s",
			c, target, clock(e.received), clock(e.sent), e.since, e.via, clock(changes[known-1].from), clock(a.at), a.how, c.since(changes[known-1].from.Add(-time.Second)))
		if len(c.w.instances) > 1 || a.itself != nil {
			numbers.twice++
			numbers.such = complaint
			continue
		}
		complaints = append(complaints, complaint)
	}
	for _, a := range acks {
		if a != nil {
			numbers.acknowledged++
		}
	}
	return complaints
}

func (a *acknowledgement) covers(e *exchange) bool {
	return a != nil && (e == a.itself || e.sent.After(a.at))
}

func (c *crowdClient) carriersOf(target id.UserID) (carriers []*exchange) {
	for i := range c.exchanges {
		if e := &c.exchanges[i]; slices.Contains(e.changed, target) {
			carriers = append(carriers, e)
		}
	}
	slices.SortFunc(carriers, func(a, b *exchange) int { return a.received.Compare(b.received) })
	return carriers
}

// unheard are the changes that the device was not told of.
func (c *crowdClient) unheard(target id.UserID, changes []change, carriers []*exchange, numbers *told) (complaints []string) {
	for _, one := range changes {
		i := slices.IndexFunc(carriers, func(e *exchange) bool { return !e.lost && e.received.After(one.from) })
		if i >= 0 {
			numbers.waited = append(numbers.waited, max(0, carriers[i].received.Sub(one.to)))
			continue
		}
		if !slices.ContainsFunc(c.queries, func(q queriedKeys) bool { return q.sent.After(one.to) && slices.Contains(q.users, target) }) {
			complaints = append(complaints, fmt.Sprintf("%s was never told of the change of %s that %s asked for at %s; its syncs since:%s", c, target, one.by, clock(one.from), c.since(one.from)))
		}
	}
	return complaints
}

// acknowledged finds the first acknowledgement of a change that is certain.
func (c *crowdClient) acknowledged(target id.UserID, one change, carried []*exchange) (first *acknowledgement) {
	take := func(a acknowledgement) {
		if first == nil || a.at.Before(first.at) {
			first = &a
		}
	}
	for _, q := range c.queries {
		if slices.Contains(q.users, target) && (q.sent.After(one.to.Add(heardWithin)) ||
			slices.ContainsFunc(carried, func(e *exchange) bool { return e.via == q.via && q.via != "" && q.sent.After(e.received) })) {
			take(acknowledgement{at: q.received, how: "by a /keys/query"})
		}
	}
	standing := map[string]int{}
	for _, e := range carried {
		if e.next == e.since {
			if standing[e.since]++; standing[e.since] == 3 {
				take(acknowledgement{at: e.received, how: "since it was carried three times"})
			}
			continue
		}
		for i := range c.exchanges {
			if y := &c.exchanges[i]; y.since == e.next && !y.received.IsZero() && y.sent.After(e.received) && !c.shadowed(target, one, e, y) {
				take(acknowledgement{at: y.received, how: fmt.Sprintf("by the token %q at %q", y.since, y.via), itself: y})
			}
		}
	}
	return first
}

// shadowed says whether the token with which y asked may be that of another answer than e, which carried target: of one
// to a request that was open when e was made, or was made after it; or of one that ended in it. What did not carry the change of
// target, which may be since it was before it, shadows e.
func (c *crowdClient) shadowed(target id.UserID, one change, e, y *exchange) bool {
	return slices.ContainsFunc(c.exchanges, func(o exchange) bool {
		if slices.Contains(o.changed, target) && o.received.After(one.from) {
			return false
		}
		over := o.received
		if over.IsZero() {
			over = o.ended.Add(late)
		}
		open := over.After(e.sent) && o.sent.Before(y.sent)
		return open || o.next == e.next || o.next == "" && o.since == e.since
	})
}

// since shows the first syncs of the device that ended after that moment.
func (c *crowdClient) since(from time.Time) string {
	var text strings.Builder
	shown := 0
	for _, e := range c.exchanges {
		if shown < 20 && (e.received.IsZero() || e.received.After(from)) {
			fmt.Fprintf(&text, "\n%s at %q with %q: %s, %q, %v, lost: %v", clock(e.sent), e.via, e.since, clock(e.received), e.next, e.changed, e.lost)
			shown++
		}
	}
	return text.String()
}
