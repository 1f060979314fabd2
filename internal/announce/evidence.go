package announce

import (
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"
)

// maxAnswers is how many answers of one device are remembered by what they lacked.
const maxAnswers = 16

// token is a hash of a token of the homeserver's: they are compared, and sent to other instances, and may be long.
type token uint64

func tokenOf(text string) token {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(text))
	return token(sum.Sum64())
}

// answers are those that one instance has begun to give a device, in their order: up to which position each carried all
// that was owed. Of what was given up to the horizon, nothing is known.
type answers struct {
	given   []answer
	horizon time.Time
}

// answer lacked what stands above upto, but for some. Where its time is not exact, it is between at and latest.
type answer struct {
	upto       int64
	but        []int64
	at, latest time.Time
	token      token // that it ended in; 0 if it was not looked at
}

func (a *answers) gave(upto int64, carried []Entry, at time.Time) {
	given := answer{upto: upto, at: at, latest: at}
	for _, e := range carried {
		if e.Position > upto {
			given.but = append(given.but, e.Position)
		}
	}
	a.add(given)
}

func (a *answers) add(given answer) {
	if len(a.given) == maxAnswers {
		a.horizon = later(a.horizon, a.given[0].latest)
		a.given = slices.Delete(a.given, 0, 1)
	}
	a.given = append(a.given, given)
}

func (g *answer) lacked(position int64) bool {
	return g.upto < position && !slices.Contains(g.but, position)
}

// lacked says whether an answer that may have ended in t may have lacked position which the device can have got once it had
// made the request that came at asked, and before it made the one that came at arrived.
func (a *answers) lacked(t token, position int64, asked, arrived time.Time) bool {
	return !a.horizon.Before(asked) || slices.ContainsFunc(a.given, func(g answer) bool {
		return g.lacked(position) && (g.token == 0 || g.token == t) && !g.latest.Before(asked) && !g.at.After(arrived)
	})
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// response is one that carried something and moved the token to nextBatch.
type response struct {
	nextBatch token
	entries   []Entry
	asked     time.Time // when the request came, or if that is not exact, the earliest that it can have come
	// doubted: beside carrying these, an instance gave an answer that did not. Of responses of our own it is not known in
	// advance.
	doubted []id.UserID
}

// hearsay is what another instance says of a device.
type hearsay struct {
	acked     []Entry
	responses []response
	carries   map[under]carry
	answers   answers
}

// arrival is a token that came with a request. Where others share the database, it is not known before they were asked
// what it proves to have arrived; of what stands above upto, and of what is in but, they were not.
type arrival struct {
	token token
	at    time.Time
	upto  int64
	but   []int64
}

// open says that others were not asked about position.
func (a *arrival) open(position int64) bool {
	return a.upto < position || slices.Contains(a.but, position)
}

// proven is what a token proves to have arrived, by what is known here and what others say: what every response that ended
// in it carried, and no answer lacked which may have ended in it as well. Answers that owe nothing are not parsed, so that
// may be any which the device got once it had made the request that the response is for.
func (d *device) proven(a arrival, others []hearsay) map[id.UserID]int64 {
	var all map[id.UserID]int64
	sure := map[id.UserID]bool{}
	also := func(r response, from int) {
		if r.nextBatch != a.token || !r.asked.Before(a.at) {
			return
		}
		carried := make(map[id.UserID]int64, len(r.entries))
		for _, e := range r.entries {
			position, ok := all[e.Target]
			switch {
			case all == nil:
				position = e.Position
			case !ok:
				continue
			}
			carried[e.Target] = min(position, e.Position)
			sure[e.Target] = sure[e.Target] || !slices.Contains(r.doubted, e.Target) && !d.lacked(a.token, e.Position, r.asked, a.at, from, others)
		}
		all = carried
	}
	for _, r := range d.responses {
		also(r, -1)
	}
	for i, h := range others {
		for _, r := range h.responses {
			also(r, i)
		}
	}
	maps.DeleteFunc(all, func(target id.UserID, _ int64) bool { return !sure[target] })
	return all
}

// lacked asks all instances but the one that gave the response, whose own are in doubted; -1 is this one.
func (d *device) lacked(t token, position int64, asked, arrived time.Time, from int, others []hearsay) bool {
	if d.answers.lacked(t, position, asked, arrived) {
		return true
	}
	for i := range others {
		if i != from && others[i].answers.lacked(t, position, asked, arrived) {
			return true
		}
	}
	return false
}
