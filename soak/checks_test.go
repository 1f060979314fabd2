//go:build unix

package soak

import (
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// A checker that finds nothing proves nothing: here is a run in which all is as it should be, and what is wrong with
// others.
func TestTheCheckFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const (
		alice  id.UserID = "@alice:example.org"
		target id.UserID = "@target:b.example"
	)
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	phone, laptop := &device{user: alice, id: "PHONE"}, &device{user: alice, id: "LAPTOP"}
	devices := map[id.UserID][]*device{alice: {phone, laptop}}
	heard := func(d *device, received int) answer {
		return answer{device: d, received: at(received), changed: []id.UserID{target}}
	}
	queried := func(d *device, received, list int) answer {
		a := heard(d, received)
		a.lists = map[id.UserID]int{target: list}
		return a
	}
	fetched := func(arrived int, ok bool, list int) fetch {
		return fetch{target: target, by: "ax1", arrived: at(arrived), ended: at(arrived + 10), answered: true, ok: ok, list: list}
	}
	asked := func(sent, ended int, what outcome) ask {
		return ask{user: alice, target: target, via: "a", sent: at(sent), ended: at(ended), outcome: what}
	}
	kill := func(from, gone int, owed map[id.UserID]debt) disturbance {
		return disturbance{what: "kill -9 of ax1", at: "a", life: "ax1", from: at(from), gone: at(gone), to: at(gone + 100), owed: owed}
	}
	// Told of a failure, tried again in vain, then with success, heard of on both devices.
	good := func() history {
		return history{
			asks:    []ask{asked(0, 30, promised)},
			fetches: map[id.UserID][]fetch{target: {fetched(10, false, 0), fetched(60, false, 0), fetched(100, true, 1)}},
			answers: []answer{heard(phone, 120), heard(laptop, 130)},
		}
	}
	for _, test := range []struct {
		name string
		edit func(*history)
		want string // in a complaint; "" for none
	}{
		{"nothing", func(*history) {}, ""},
		{"a debt that is never paid", func(h *history) { h.fetches[target] = h.fetches[target][:2] }, "never was with success"},
		{"a debt whose only success came before", func(h *history) { h.fetches[target] = []fetch{fetched(-50, true, 1), fetched(10, false, 0)} }, "never was with success"},
		{"a device that does not hear", func(h *history) { h.answers = h.answers[:1] }, "LAPTOP has neither heard"},
		{"one that asked for the keys and got them", func(h *history) { h.answers[1] = queried(laptop, 120, 1) }, ""},
		{"one that asked for the keys and got old ones", func(h *history) { h.answers[1] = queried(laptop, 120, 0) }, "LAPTOP has neither heard"},
		{"one that asked for the keys too early", func(h *history) { h.answers[1] = queried(laptop, 90, 1) }, "LAPTOP has neither heard"},
		{"one that heard only before", func(h *history) { h.answers[1] = heard(laptop, 90) }, "LAPTOP has neither heard"},
		{"what a fetch brought that was begun just before the ask", func(h *history) {
			h.fetches[target] = []fetch{fetched(-5, true, 1), fetched(100, true, 1)}
			h.answers = []answer{heard(phone, 50), heard(laptop, 50)}
		}, ""},
		{"another list than one heard", func(h *history) {
			h.fetches[target] = []fetch{fetched(-5, true, 1), fetched(100, true, 2)}
			h.answers = []answer{heard(phone, 50), heard(laptop, 50)}
		}, "has neither heard"},
		{"a 202 that nobody hears of", func(h *history) {
			h.asks = append(h.asks, asked(190, 240, fresh))
			h.fetches[target] = append(h.fetches[target], fetched(200, true, 1))
		}, "has neither heard"},
		{"a fetch of what is paid", func(h *history) { h.fetches[target] = append(h.fetches[target], fetched(300, true, 1)) }, "nobody asked for it"},
		{"the same request once more, since its connection was given up", func(h *history) {
			over := &line{closed: make(chan struct{}), at: at(104)}
			close(over.closed)
			h.fetches[target][2].over = over
			h.fetches[target] = append(h.fetches[target], fetched(105, true, 1))
		}, ""},
		{"a fetch of what is paid, over a connection that is kept", func(h *history) {
			h.fetches[target][2].over = &line{closed: make(chan struct{})}
			h.fetches[target] = append(h.fetches[target], fetched(105, true, 1))
		}, "nobody asked for it"},
		{"a fetch of what was asked for again while the first was on its way", func(h *history) {
			h.asks = append(h.asks, asked(85, 90, promised))
			h.fetches[target] = append(h.fetches[target], fetched(300, true, 1))
		}, ""},
		{"the same, where the fetch before was cut off, and may have been sent once more", func(h *history) {
			h.asks = append(h.asks, asked(45, 50, promised))
			h.fetches[target][1].answered = false
			h.fetches[target] = append(h.fetches[target], fetched(300, true, 1))
		}, ""},
		{"the same, where it was answered", func(h *history) {
			h.asks = append(h.asks, asked(45, 50, promised))
			h.fetches[target] = append(h.fetches[target], fetched(300, true, 1))
		}, "nobody asked for it"},
		{"the same, failing", func(h *history) { h.fetches[target] = append(h.fetches[target], fetched(300, false, 0)) }, "nobody asked for it"},
		{"the same after a crash that came before the commit", func(h *history) {
			h.disturbances = []disturbance{kill(115, 118, map[id.UserID]debt{target: {gen: 1}})}
			h.fetches[target] = append(h.fetches[target], fetched(300, true, 1))
			h.answers = []answer{heard(phone, 320), heard(laptop, 320)}
		}, ""},
		{"the same after a crash that came after the commit", func(h *history) {
			h.disturbances = []disturbance{kill(115, 118, map[id.UserID]debt{})}
			h.fetches[target] = append(h.fetches[target], fetched(300, true, 1))
		}, "nobody asked for it"},
		{"the same while somebody asks", func(h *history) {
			h.asks = append(h.asks, asked(290, 340, fresh))
			h.fetches[target] = append(h.fetches[target], fetched(300, true, 1))
			h.answers = append(h.answers, heard(phone, 350), heard(laptop, 350))
		}, ""},
		{"a request that breaks for no reason", func(h *history) {
			h.failures = []failure{{what: "/sync", via: "a", began: at(0), seen: at(10)}}
		}, "although freshen was up"},
		{"one that breaks in a crash", func(h *history) {
			h.failures = []failure{{what: "/sync", via: "a", began: at(0), seen: at(70)}}
			h.disturbances = []disturbance{kill(60, 65, nil)}
		}, ""},
		{"one that breaks in another instance's crash", func(h *history) {
			h.failures = []failure{{what: "/sync", via: "b", began: at(0), seen: at(70)}}
			h.disturbances = []disturbance{kill(60, 65, nil)}
		}, "although freshen was up"},
		{"a sync that breaks since the database is away", func(h *history) {
			h.failures = []failure{{what: "/sync", via: "a", began: at(0), seen: at(70)}}
			h.disturbances = []disturbance{{what: "stopped Postgres", database: true, from: at(60), to: at(80)}}
		}, "although freshen was up"},
		{"a refresh that is refused since the database is away", func(h *history) {
			h.failures = []failure{{what: "refresh", via: "a", isAsk: true, began: at(0), seen: at(70)}}
			h.disturbances = []disturbance{{what: "stopped Postgres", database: true, from: at(60), to: at(80)}}
		}, ""},
	} {
		h := good()
		test.edit(&h)
		got := strings.Join(h.check(devices), "\n")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: the check says %q, want %q", test.name, got, test.want)
		}
	}

	h := good()
	h.fetches[target] = h.fetches[target][:1]
	lost := holding{debts: map[id.UserID]debt{}, announced: map[pair]int64{}}
	if got := h.kept(lost); len(got) != 1 || !strings.Contains(got[0], "nothing is owed") {
		t.Errorf("a database without the debt that was told: the check says %q", got)
	}
	h.asks[0].outcome = fresh
	if got := h.kept(lost); len(got) != 1 || !strings.Contains(got[0], "announcement is lost") {
		t.Errorf("a database without the announcement that was answered for: the check says %q", got)
	}
}
