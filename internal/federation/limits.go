package federation

import (
	"context"
	"errors"
	"sync"
	"time"

	"freshen/internal/federation/dial"
)

const (
	// requestMostTime bounds a request whose context has no deadline, or a later one.
	requestMostTime = 2 * time.Minute
	// stageLeastTime keeps the stages of a hurried request usable; the context ends it all the same.
	stageLeastTime = time.Second

	discoveryLeastTime = 3 * time.Second
	discoveryMostTime  = 6 * time.Second
)

// limits say how long each stage of a request may take. They are parts of the time that the request has in all, which
// its context sets (federation.timeout), and they overlap: a stage that hangs is named by the failure, and where there
// is something else to try (another address, another connection, the server without its well-known) there is time left
// for it. Nothing ever goes on past the context's deadline.
type limits struct {
	discovery time.Duration // finding the route; see [router.find] for who shares it
	connect   time.Duration // name lookup, TCP and TLS, over all targets and addresses
	handshake time.Duration // the TLS handshake with one address
	kept      time.Duration // a kept connection on which nothing comes back, before it is given up for a new one
	answer    time.Duration // from the sent request to the end of the answer's header
	body      time.Duration // the answer's body
}

// limitsOf a request that has so much time in all.
func limitsOf(total time.Duration) limits {
	atLeast := func(part time.Duration) time.Duration { return max(part, stageLeastTime) }
	return limits{
		discovery: min(max(total*6/10, discoveryLeastTime), discoveryMostTime),
		connect:   atLeast(total * 7 / 10),
		handshake: atLeast(total * 4 / 10),
		kept:      atLeast(total * 3 / 10),
		answer:    atLeast(total * 8 / 10),
		body:      atLeast(total * 6 / 10),
	}
}

// share is the part'th part of the time that ctx leaves, at most most.
func share(ctx context.Context, part int, most time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(time.Until(deadline)/time.Duration(part), most)
	}
	return most
}

// before is a little less than the time that ctx leaves, at most most: what ends then can still say what it waited for,
// where at the end of ctx nobody listens any more.
func before(ctx context.Context, most time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(time.Until(deadline)*9/10, most)
	}
	return most
}

// stage is what a request is waiting for.
type stage int

const (
	stageDiscovery stage = iota
	stageQueue           // other requests to the server have all the connections that it may have
	stageConnect
	stageAnswer
	stageBody
)

// errOverdue is the cause of a request that a stage's limit ended.
var errOverdue = errors.New("a stage of the request took too long")

// alarm is what happens if a stage takes too long.
type alarm int

const (
	alarmOff    alarm = iota
	alarmSilent       // the connection is given up if nothing came back on it
	alarmGiveUp       // the request is given up
)

// attempt is one request on its way; it travels in the request's context.
type attempt struct {
	limits limits
	giveUp context.CancelCauseFunc
	route  *route // nil until it is found
	pool   *pool  // of the route, nil until then

	mu      sync.Mutex
	stage   stage
	since   time.Time
	socket  *dial.Socket // on which the request was last sent
	guard   *guard       // above it; nil once the request is over
	dialled int          // connections for the request
	alarm   alarm
	due     time.Time   // of the alarm
	timer   *time.Timer // one for all alarms: requests are many, alarms are few
}

func newAttempt(total time.Duration, giveUp context.CancelCauseFunc) *attempt {
	return &attempt{limits: limitsOf(total), giveUp: giveUp, since: time.Now()}
}

type attemptKey struct{}

func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// at says which stage the request is in and for how long, and where it was sent, nil if it was not.
func (a *attempt) at() (stage, time.Duration, *dial.Socket) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stage, time.Since(a.since), a.socket
}

// enter begins a stage.
func (a *attempt) enter(next stage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin(next)
	if next == stageBody {
		a.set(alarmGiveUp, a.since.Add(a.limits.body))
	}
}

// dialling is told when a connection is dialled for the request; meanwhile it may have got another. The error is
// errBreaksOff where too many were already.
func (a *attempt) dialling() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dialled++; a.dialled > maxConnects {
		return errBreaksOff
	}
	if a.stage == stageQueue {
		a.begin(stageConnect)
	}
	return nil
}

// sentOn is told of the connection that the request is sent on, each time that it is sent.
func (a *attempt) sentOn(on *guard, kept bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin(stageAnswer)
	a.leave()
	on.begin()
	socket := on.socket()
	a.guard, a.socket = on, socket
	if kept && socket != nil {
		a.set(alarmSilent, a.since.Add(a.limits.kept))
	} else {
		a.set(alarmGiveUp, a.since.Add(a.limits.answer))
	}
}

// wasDropped says whether the request failed because its connection was given up, for its own sake or for that of
// another request on it, so that it can be sent again on a new one.
func (a *attempt) wasDropped() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.socket != nil && a.socket.Dropped()
}

// end stops what watches the request. The connection of one that got no whole answer (bad) is not kept: over HTTP/2, a
// server that does anything but answer could make request after request wait on it.
func (a *attempt) end(bad bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leave()
	a.alarm = alarmOff
	if a.timer != nil {
		a.timer.Stop()
	}
	if bad && a.socket != nil {
		a.socket.Drop()
	}
}

// leave is called with mu held.
func (a *attempt) leave() {
	a.guard.end()
	a.guard = nil
}

// begin is called with mu held.
func (a *attempt) begin(next stage) {
	a.stage, a.since, a.alarm = next, time.Now(), alarmOff
	if next == stageQueue {
		a.socket = nil // it may have been sent before, on a connection that was given up
	}
}

// set is called with mu held.
func (a *attempt) set(what alarm, due time.Time) {
	a.alarm, a.due = what, due
	if wait := time.Until(due); a.timer == nil {
		a.timer = time.AfterFunc(wait, a.ring)
	} else {
		a.timer.Reset(wait)
	}
}

// ring may come late, for an alarm that is off or was set anew.
func (a *attempt) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	due := a.alarm
	if due == alarmOff || time.Now().Before(a.due) {
		return
	}
	a.alarm = alarmOff
	switch {
	case due == alarmGiveUp:
		a.giveUp(errOverdue)
	case a.socket.SilentSince(a.since):
		a.socket.Drop()
	default:
		a.set(alarmGiveUp, a.since.Add(a.limits.answer))
	}
}
