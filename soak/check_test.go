//go:build unix

package soak

import (
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	// aftermath is how long after a disturbance a connection may turn out to be broken: a client on a busy machine
	// notices late.
	aftermath = 2 * time.Second
	// hour and more is what a debt waits whose user is to blame: a test does not outlast it.
	userWaits = 30 * time.Minute
	// shownAtMost is how many complaints of one kind are written out.
	shownAtMost = 5
)

// check is what holds of a whole run, in the end. devices are those of each user.
//
//   - What an asker was told is retried, is paid: the target's server was asked successfully after the request.
//   - Who was told so, and who was answered 202, hears of it in /sync on each device, after the request, and after the
//     list was first served; or has been given that list by a /keys/query since.
//   - Nothing is fetched again that is paid: after a success another request is made only if somebody is asking just
//     then, or was told of a failure since, or if a process ended before the success was in its database.
//   - No client's request breaks, nor is answered with an error of freshen's own, but by a disturbance.
func (h *history) check(devices map[id.UserID][]*device) []string {
	var all []string
	all = append(all, some(h.complaints)...)
	all = append(all, some(h.unpaid())...)
	all = append(all, some(h.unheard(devices))...)
	all = append(all, some(h.needless())...)
	all = append(all, some(h.unexcused())...)
	return all
}

func some(complaints []string) []string {
	if n := len(complaints); n > shownAtMost {
		return append(slices.Clone(complaints[:shownAtMost]), fmt.Sprintf("and %d more of that kind", n-shownAtMost))
	}
	return complaints
}

// success is the first fetch of target that arrived after that moment and brought its list.
func (h *history) success(target id.UserID, after time.Time) (f fetch, ok bool) {
	for _, f := range h.fetches[target] {
		if f.ok && f.arrived.After(after) {
			return f, true
		}
	}
	return fetch{}, false
}

// unpaid are the promises that were not kept.
func (h *history) unpaid() (complaints []string) {
	for i := range h.asks {
		a := &h.asks[i]
		if a.outcome != promised {
			continue
		}
		if _, ok := h.success(a.target, a.sent); !ok {
			complaints = append(complaints, fmt.Sprintf("%s, was told at %s that it is tried again in %v, and it never was with success: %s",
				a, clock(a.ended), a.retryIn, a.text))
		}
	}
	return complaints
}

// unheard are the announcements that did not reach a device of the user whom they are for.
func (h *history) unheard(devices map[id.UserID][]*device) (complaints []string) {
	type heard struct {
		device *device
		target id.UserID
	}
	answers := map[heard][]answer{}
	for _, a := range h.answers {
		for _, target := range a.changed {
			answers[heard{a.device, target}] = append(answers[heard{a.device, target}], a)
		}
	}
	for i := range h.asks {
		a := &h.asks[i]
		after, list, told := h.mustHear(a)
		if !told {
			continue
		}
		for _, d := range devices[a.user] {
			if !slices.ContainsFunc(answers[heard{d, a.target}], func(s answer) bool {
				return s.received.After(after) && (s.lists == nil || s.lists[a.target] >= list)
			}) {
				var last time.Time
				for _, s := range answers[heard{d, a.target}] {
					last = s.received
				}
				complaints = append(complaints, fmt.Sprintf("%s, was answered at %s (%.100s), and %s has neither heard of it in a /sync after %s nor been given list %d by a /keys/query; the last that it heard was at %s",
					a, clock(a.ended), a.text, d, clock(after), list, clock(last)))
			}
		}
	}
	return complaints
}

// mustHear is after when the devices of who asked must hear of it, and which list they must get if they ask for the keys
// before they do. told is false for an ask that was told nothing to that effect.
func (h *history) mustHear(a *ask) (after time.Time, list int, told bool) {
	switch a.outcome {
	case fresh:
		for _, f := range h.fetches[a.target] {
			if f.ok && f.ended.Before(a.ended) {
				list = f.list
			}
		}
		return a.sent, list, true
	case promised:
		after = a.sent
		if at, ok := h.firstServed(a); ok && at.After(after) {
			after = at
		}
		paid, _ := h.success(a.target, a.sent)
		return after, paid.list, true
	}
	return after, 0, false
}

// firstServed is when the list that paid the ask began to be served. A request that was made just before the ask, and
// ended just after it, may have brought the same: who heard of that need not hear again.
func (h *history) firstServed(a *ask) (at time.Time, ok bool) {
	paid, ok := h.success(a.target, a.sent)
	if !ok {
		return time.Time{}, false
	}
	for _, f := range h.fetches[a.target] {
		switch {
		case !f.ok:
		case f.list != paid.list:
			at = time.Time{}
		case at.IsZero():
			at = f.arrived
		}
		if f.arrived.Equal(paid.arrived) {
			break
		}
	}
	return at, true
}

// needless are the requests for what was paid.
func (h *history) needless() (complaints []string) {
	passed := make(chan time.Time)
	close(passed)
	for target, fetches := range h.fetches {
		var last *fetch // the last success
		var began time.Time
		for i := range fetches {
			f := &fetches[i]
			if last != nil && f.arrived.After(last.arrived) && !h.justified(last, began, f) && !last.sentAgain(f, passed) {
				complaints = append(complaints, fmt.Sprintf("%s was fetched by %s at %s, although it had been fetched by %s at %s, and nobody asked for it or was promised it since",
					target, f.by, clock(f.arrived), last.by, clock(last.arrived)))
			}
			if f.ok {
				last, began = f, earliest(fetches, i)
			}
		}
	}
	return complaints
}

// earliest is when a request may have been begun at freshen, which is when it was settled what a success pays: it had to
// wait until the one before was answered, and has no more than its time to reach the server.
func earliest(fetches []fetch, i int) time.Time {
	began := fetches[i].arrived.Add(-fetchTimeout)
	for _, before := range fetches[:i] {
		if before.answered && before.ended.After(began) && before.ended.Before(fetches[i].arrived) {
			began = before.ended
		}
	}
	return began
}

// justified says whether there was a reason to make a request after a success that had been begun at began or later.
func (h *history) justified(success *fetch, began time.Time, next *fetch) bool {
	for i := range h.asks {
		a := &h.asks[i]
		if a.target != next.target || a.sent.After(next.arrived) {
			continue
		}
		// Under way just now, or told of a failure (or of nothing) after the success may have been begun, which then
		// does not pay.
		if a.openAt(next.arrived) || (a.outcome != fresh && a.over().After(began)) {
			return true
		}
	}
	for _, d := range h.disturbances {
		if (d.life != "" && d.life != success.by) || d.from.After(next.arrived) {
			continue
		}
		if d.owed != nil {
			if _, owed := d.owed[next.target]; owed && !d.gone.Before(success.arrived) {
				return true
			}
			continue
		}
		// Not looked at: did it come between the success and its commit?
		if !d.from.After(success.ended.Add(aftermath)) && (d.to.IsZero() || !d.to.Before(success.arrived)) {
			return true
		}
	}
	return false
}

// unexcused are the requests that broke or failed while nothing was disturbed.
func (h *history) unexcused() (complaints []string) {
	for _, f := range h.failures {
		if !slices.ContainsFunc(h.disturbances, func(d disturbance) bool {
			concerned := (d.at == f.via || f.via == "" || d.at == "") && (f.isAsk || !d.database)
			waits := d.locks && f.isAsk
			return (concerned || waits) && !d.from.After(f.seen) && (d.to.IsZero() || !d.to.Add(aftermath).Before(f.began))
		}) {
			complaints = append(complaints, fmt.Sprintf("%s, begun at %s and ended at %s, failed although freshen was up: %v",
				f.what, clock(f.began), clock(f.seen), f.err))
		}
	}
	return complaints
}

// kept checks what the database holds against what was told so far: a debt that a client was told of and that no
// request can have paid yet stands there, and so does every announcement that was answered for.
func (h *history) kept(in holding) (complaints []string) {
	for i := range h.asks {
		a := &h.asks[i]
		_, announced := in.announced[pair{a.user, a.target}]
		_, owed := in.debts[a.target]
		switch {
		case a.outcome == fresh && !announced:
			complaints = append(complaints, fmt.Sprintf("%s, was answered 202 at %s, and its announcement is lost", a, clock(a.ended)))
		case a.outcome == promised && !owed:
			if _, ok := h.success(a.target, a.sent); !ok {
				complaints = append(complaints, fmt.Sprintf("%s, was told at %s that it is tried again, and nothing is owed", a, clock(a.ended)))
			}
		}
	}
	return some(complaints)
}
