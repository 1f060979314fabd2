package announce

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

const (
	// heldAtMost is how long an announcement waits for what other instances say, at the most, however often the device
	// comes; and how long their answers are waited for.
	heldAtMost = time.Second
	// askedAtOnce is about how many devices others are asked at a time, and perQuestion about how many in one message.
	askedAtOnce, perQuestion = 128, 4
	// askedAbout bounds the announcements to one device about which others are asked. The rest is told again.
	askedAbout = 24
)

// others are the instances that share the database, and positions what stands there of devices. *store.Store is both, but
// to tests.
type (
	others interface {
		Ask(ctx context.Context, questions []string) (store.Replies, error)
	}
	positions interface {
		DevicePositions(ctx context.Context, devices []freshen.Requester) ([]store.DevicePosition, error)
	}
)

// about is what an instance asks others of a device, as JSON: what it has announcements of that it would carry.
type about struct {
	User   id.UserID   `json:"u"`
	Device id.DeviceID `json:"d"`
	Owed   []Entry     `json:"o"`
}

// reply is what one knows of the device. Entries are told by their index in Owed; ages are in nanoseconds.
type reply struct {
	Acked     []int           `json:"a,omitempty"`
	Responses []replyResponse `json:"r,omitempty"`
	Carries   []replyCarry    `json:"c,omitempty"`
	Answers   []replyAnswer   `json:"l,omitempty"`
	// Horizon is since when all answers are in Answers.
	Horizon int64 `json:"h"`
}

type replyResponse struct {
	Token   token         `json:"t"`
	Asked   time.Duration `json:"s"`
	Carried []int         `json:"c"`
	Doubted []int         `json:"u,omitempty"`
}

type replyCarry struct {
	Index int   `json:"i"`
	Token token `json:"t"`
	Times int   `json:"n"`
}

type replyAnswer struct {
	Upto int64         `json:"u"`
	But  []int64       `json:"b,omitempty"`
	Age  time.Duration `json:"s"`
	// Token is 0 if it is not known, as it mostly is not.
	Token token `json:"t,omitempty"`
}

// held says whether an announcement may have reached the device through another instance, or been acknowledged there,
// without our knowing yet. One that was made after the request came cannot have been what the response before carried.
func (d *device) held(a store.Announcement) bool {
	if !slices.ContainsFunc(d.arrivals, func(b arrival) bool { return b.open(a.Position) && !b.at.Before(a.At) }) {
		return false
	}
	switch now := d.clock(); {
	case d.heldSince.IsZero():
		d.heldSince = now
	case now.Sub(d.heldSince) >= heldAtMost: // rather twice than late
		for i := range d.arrivals {
			one := &d.arrivals[i]
			one.upto = max(one.upto, a.Position)
			one.but = slices.DeleteFunc(one.but, func(position int64) bool { return position == a.Position })
		}
		return false
	}
	return true
}

// askOthers has it found out what the tokens prove that the device came with, from other instances if there are any. The caller has
// locked it.
func (a *Announcer) askOthers(d *device) {
	if d.asking {
		return
	}
	d.asking = true
	a.underway.Add(1)
	select {
	case a.inquiries <- d:
	default:
		go func() { // so many are being asked about that it is sooner told again
			defer a.underway.Done()
			d.mu.Lock()
			now := d.moment()
			d.mu.Unlock()
			a.learn(d, arrival{at: now, upto: a.stream.position()}, nil, nil, now)
		}()
	}
}

// inquire asks other instances about devices until ctx is done.
func (a *Announcer) inquire(ctx context.Context) {
	var late sync.WaitGroup
	defer late.Wait()
	for {
		var devices []*device
		select {
		case d := <-a.inquiries:
			devices = append(devices, d)
		case <-ctx.Done():
			return
		}
		for more := true; more && len(devices) < askedAtOnce; {
			select {
			case d := <-a.inquiries:
				devices = append(devices, d)
			default:
				more = false
			}
		}
		a.inquireAbout(ctx, devices, &late)
	}
}

// inquireAbout learns of the devices what others know, and what is to be known here before a token proves anything. What
// takes its time is waited for beside: late.
func (a *Announcer) inquireAbout(ctx context.Context, devices []*device, late *sync.WaitGroup) {
	all := make([]about, len(devices))
	who := make([]freshen.Requester, len(devices))
	asked := make([]arrival, len(devices))
	tokens := make([][]token, len(devices))
	for i, d := range devices {
		who[i] = d.who
		all[i] = about{User: d.who.UserID, Device: d.who.DeviceID}
		d.mu.Lock()
		asked[i].upto = a.stream.position()
		entries, unknown, held := d.owed(a.stream, a.rooms.KnownSince)
		for _, one := range unknown {
			asked[i].but = append(asked[i].but, one.Position)
		}
		asked[i].at = d.moment()
		for _, one := range d.arrivals {
			tokens[i] = append(tokens[i], one.token)
		}
		d.mu.Unlock()
		all[i].Owed = append(all[i].Owed, held...)
		all[i].Owed = append(all[i].Owed, entries...)
		all[i].Owed = all[i].Owed[:min(len(all[i].Owed), askedAbout)]
	}
	asking, cancel := context.WithTimeout(ctx, heldAtMost)
	defer cancel()
	heard, blind := make([][]hearsay, len(devices)), time.Time{}
	positions := make([]*store.DevicePosition, len(devices))
	if a.others != nil {
		heard, blind = a.hear(asking, all, a.now())
		if found, err := a.positions.DevicePositions(asking, who); err == nil {
			for i := range found {
				positions[i] = &found[i]
			}
		}
	}
	for i, d := range devices {
		learn := func() {
			a.learn(d, asked[i], positions[i], heard[i], blind)
			a.underway.Done()
		}
		if !a.pending(tokens[i]...) {
			learn()
			continue
		}
		late.Go(func() {
			waiting, cancel := context.WithTimeout(ctx, heldAtMost)
			defer cancel()
			a.await(waiting, tokens[i])
			learn()
		})
	}
}

// hear asks the other instances. blind is until when one that did not answer may have given the devices answers; it is
// zero if all did.
func (a *Announcer) hear(ctx context.Context, all []about, began time.Time) (heard [][]hearsay, blind time.Time) {
	heard = make([][]hearsay, len(all))
	var questions []string
	var first []int // of each question, the device
	for i := 0; i < len(all); {
		n := min(perQuestion, len(all)-i)
		text, err := json.Marshal(all[i : i+n])
		for ; err == nil && len(text) > store.LongestMessage && n > 1; text, err = json.Marshal(all[i : i+n]) {
			n /= 2
		}
		if err != nil || len(text) > store.LongestMessage {
			return heard, a.now() // a device with a name of thousands of bytes
		}
		questions, first = append(questions, string(text)), append(first, i)
		i += n
	}
	replies, err := a.others.Ask(ctx, questions)
	now := a.now()
	if replies.Left >= 0 {
		blind = now.Add(-replies.Left)
	}
	if err != nil || replies.Silent {
		blind = now
	}
	for q, texts := range replies.Answers {
		end := len(all)
		if q+1 < len(first) {
			end = first[q+1]
		}
		asked := all[first[q]:end]
		for _, text := range texts {
			var replies []reply
			if json.Unmarshal([]byte(text), &replies) != nil || len(replies) != len(asked) {
				for k := range asked { // too long for it, or a newer version's
					heard[first[q]+k] = append(heard[first[q]+k], hearsay{answers: answers{horizon: now}})
				}
				continue
			}
			for k, r := range replies {
				heard[first[q]+k] = append(heard[first[q]+k], r.heard(asked[k].Owed, began, now))
			}
		}
	}
	return heard, blind
}

// heard turns ages into times, of which the answer to a question that was put at began and answered by now cannot say
// more exactly when they were.
func (r *reply) heard(owed []Entry, began, now time.Time) hearsay {
	entry := func(i int) Entry {
		if i < 0 || i >= len(owed) {
			return Entry{}
		}
		return owed[i]
	}
	h := hearsay{carries: map[under]carry{}, answers: answers{horizon: now.Add(-time.Duration(r.Horizon))}}
	if r.Horizon < 0 {
		h.answers.horizon = time.Time{}
	}
	for _, i := range r.Acked {
		h.acked = append(h.acked, entry(i))
	}
	for _, one := range r.Responses {
		response := response{nextBatch: one.Token, asked: began.Add(-one.Asked)}
		for _, i := range one.Carried {
			response.entries = append(response.entries, entry(i))
		}
		for _, i := range one.Doubted {
			response.doubted = append(response.doubted, entry(i).Target)
		}
		h.responses = append(h.responses, response)
	}
	for _, c := range r.Carries {
		at := under{entry(c.Index).Target, c.Token}
		h.carries[at] = carry{max(h.carries[at].position, entry(c.Index).Position), c.Times}
	}
	for _, one := range r.Answers {
		h.answers.given = append(h.answers.given, answer{one.Upto, one.But, began.Add(-one.Age), now.Add(-one.Age), one.Token})
	}
	return h
}

// learn takes over what others said about a device when they were asked about the tokens that it had come with by asked.at,
// and what asked says. blind is as in hear; position is nil if the database did not answer.
func (a *Announcer) learn(d *device, asked arrival, position *store.DevicePosition, heard []hearsay, blind time.Time) {
	d.mu.Lock()
	d.asking = false
	if position != nil && d.loaded {
		d.settle(*position)
	}
	for i := range d.arrivals {
		if one := &d.arrivals[i]; !one.at.After(asked.at) {
			d.take(*one, append(heard, hearsay{answers: answers{horizon: later(blind, a.unnoticed(one.token))}}))
			if asked.upto >= one.upto {
				one.upto, one.but = asked.upto, asked.but
			}
		}
	}
	if !slices.ContainsFunc(d.arrivals, func(one arrival) bool { return one.at.After(asked.at) }) {
		d.heldSince = time.Time{} // what is held once more, for a later request, is held for as long again
	}
	for _, h := range heard {
		for _, e := range h.acked {
			d.ack(e.Target, e.Position)
		}
		for at, c := range h.carries {
			d.counted(at, c.position, heard)
			d.hasBrought(Entry{at.target, c.position})
		}
		for _, r := range h.responses {
			for _, e := range r.entries {
				d.hasBrought(e)
			}
		}
	}
	d.mu.Unlock()
	a.consider(d, question{})
}

// counted acknowledges what was carried often enough under a token that stands still, by all instances together.
func (d *device) counted(at under, position int64, heard []hearsay) {
	times := 0
	if own := d.carries[at]; own.position >= position {
		times += own.times
	}
	for _, h := range heard {
		if other := h.carries[at]; other.position >= position {
			times += other.times
		}
	}
	if times >= enoughCarries {
		d.ack(at.target, position)
	}
}

// hasBrought notes, once, that another instance's response has brought an entry, so that no other is hurried.
func (d *device) hasBrought(e Entry) {
	if e.Position > d.brought[e.Target] {
		d.brought[e.Target] = e.Position
		d.hurried[e.Target] = max(d.hurried[e.Target], e.Position)
	}
}

// Answer is what this instance knows of the devices that another asks about. It does not block.
func (a *Announcer) Answer(question string) string {
	var all []about
	if json.Unmarshal([]byte(question), &all) != nil {
		return ""
	}
	replies := make([]reply, len(all))
	for i, one := range all {
		replies[i] = a.knows(one)
	}
	text, err := json.Marshal(replies)
	if err != nil {
		return "" // it does not happen
	}
	return string(text)
}

func (a *Announcer) knows(one about) (r reply) {
	a.mu.Lock()
	d := a.devices[freshen.Requester{UserID: one.User, DeviceID: one.Device}]
	a.mu.Unlock()
	now := a.now()
	given := answers{horizon: a.forgotten()}
	if d != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		given = answers{slices.Clone(d.answers.given), d.answers.horizon}
	}
	a.addUnnoticed(&given)
	r.Horizon = -1
	if !given.horizon.IsZero() {
		r.Horizon = int64(max(0, now.Sub(given.horizon)))
	}
	newest := int64(0)
	for _, e := range one.Owed {
		newest = max(newest, e.Position)
	}
	for _, g := range given.given {
		if g.upto < newest {
			r.Answers = append(r.Answers, replyAnswer{g.upto, g.but, max(0, now.Sub(g.at)), g.token})
		}
	}
	if d != nil {
		d.tell(one.Owed, &given, now, &r)
	}
	return r
}

// tell says what is acknowledged of these entries, and what was carried of them. given are the answers that the device may have
// been given.
func (d *device) tell(owed []Entry, given *answers, now time.Time, r *reply) {
	for i, e := range owed {
		if e.Position <= max(d.floor, d.above[e.Target]) {
			r.Acked = append(r.Acked, i)
		}
		for at, c := range d.carries {
			if at.target == e.Target && c.position >= e.Position {
				r.Carries = append(r.Carries, replyCarry{i, at.token, c.times})
			}
		}
	}
	for _, response := range d.responses {
		told := replyResponse{Token: response.nextBatch, Asked: max(0, now.Sub(response.asked))}
		for i, e := range owed {
			for _, carried := range response.entries {
				if carried.Target == e.Target && carried.Position >= e.Position {
					told.Carried = append(told.Carried, i)
					if given.lacked(response.nextBatch, e.Position, response.asked, now) {
						told.Doubted = append(told.Doubted, i)
					}
				}
			}
		}
		r.Responses = append(r.Responses, told)
	}
}
