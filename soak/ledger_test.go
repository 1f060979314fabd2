//go:build unix

package soak

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// ledger is what has happened in one run. Its methods are safe for concurrent use.
type ledger struct {
	mu           sync.Mutex
	asks         []*ask
	answers      []answer
	fetches      map[id.UserID][]*fetch // by target, in order of arrival
	disturbances []*disturbance
	failures     []failure
	complaints   []string
	polls        int
	lost         int
	lastFetch    time.Time
}

func newLedger() *ledger { return &ledger{fetches: map[id.UserID][]*fetch{}} }

// outcome is what an asker was told.
type outcome int

const (
	open     outcome = iota // nothing yet
	fresh                   // 202
	promised                // a failure that freshen will try again
	refused                 // an error that promises nothing
	broken                  // the connection broke, or a proxy answered
)

// ask is one request to refresh. ended is zero while it is open.
type ask struct {
	user        id.UserID
	target      id.UserID
	via         string // the instance, or "" for the proxy
	sent, ended time.Time
	outcome     outcome
	retryIn     time.Duration // as promised
	text        string
}

// behindProxy is how long an instance may still be at a request after the proxy has given it up: it may have been
// paused meanwhile.
const behindProxy = 30 * time.Second

// over is when the ask was at an end for freshen as well, at the latest; zero while it is open.
func (a *ask) over() time.Time {
	if a.outcome == broken && a.via == "" {
		return a.ended.Add(behindProxy)
	}
	return a.ended
}

// openAt says whether the ask was under way at that moment.
func (a *ask) openAt(at time.Time) bool {
	return !a.sent.After(at) && (a.ended.IsZero() || !a.over().Before(at))
}

func (a *ask) String() string {
	return fmt.Sprintf("%s asked for %s at %s", a.user, a.target, clock(a.sent))
}

// answer is one /sync that named somebody in device_lists.changed, and that the client had the time to work off; or one
// /keys/query, whose answer tells no less, so that freshen does not announce it again.
type answer struct {
	device *device
	// received is when its last byte had come. When it was put together is not known: freshen adds at the last moment.
	received time.Time
	changed  []id.UserID
	lists    map[id.UserID]int // which list a /keys/query brought; nil for a /sync
}

// fetch is one request at a remote server. ended is zero while it is open.
type fetch struct {
	target         id.UserID
	by             string // which life of which instance
	arrived, ended time.Time
	// answered: with a list or an error. Where it was not, the same may have been sent once more by HTTP itself.
	answered bool
	ok       bool // with a list
	list     int  // which list of the target was served
	done     chan struct{}
	over     *line // nil for one that no other request shares
}

// line is a connection of freshen's to a remote server, over HTTP/2.
type line struct {
	closed chan struct{}
	at     time.Time // it was closed
}

func (l *line) end() {
	l.at = time.Now()
	close(l.closed)
}

// sentAgain says whether next is the same request over another connection: one that is shared is given up if any request on
// it gets no whole answer, and the others are sent again. The server may have answered them, and learns late that it is
// closed: until late, that is waited for.
func (f *fetch) sentAgain(next *fetch, late <-chan time.Time) bool {
	if f.over == nil || f.over == next.over || next.arrived.Sub(f.arrived) > fetchTimeout {
		return false
	}
	select {
	case <-f.over.closed:
	case <-late:
	}
	select {
	case <-f.over.closed:
		return !f.over.at.After(next.arrived.Add(lateEnd))
	default:
		return false
	}
}

// disturbance is a time in which connections may break: from before a signal was sent until freshen was ready again.
type disturbance struct {
	what     string
	at       string // the instance; "" for the database of all
	life     string // whose end or trouble it is; "" for the database of all
	from, to time.Time
	gone     time.Time // when the process had ended
	database bool      // what is lost is the database alone: only refreshes need it
	locks    bool      // it may have left locks in the database, for which refreshes at others wait
	// owed is what the database held when the process had ended; nil where it was not looked at.
	owed map[id.UserID]debt
}

// failure is a request that broke or was answered with an error.
type failure struct {
	what        string
	via         string // the instance, or "" for the proxy
	isAsk       bool   // for a refresh, which needs freshen's database
	began, seen time.Time
	err         error
}

func (l *ledger) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.complaints = append(l.complaints, fmt.Sprintf(format, args...))
}

func (l *ledger) ask(user, target id.UserID, via string) *ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &ask{user: user, target: target, via: via, sent: time.Now()}
	l.asks = append(l.asks, a)
	return a
}

func (l *ledger) asked(a *ask, what outcome, retryIn time.Duration, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.ended, a.outcome, a.retryIn, a.text = time.Now(), what, retryIn, text
}

func (l *ledger) unsent(a *ask) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asks = slices.DeleteFunc(l.asks, func(other *ask) bool { return other == a })
}

func (l *ledger) failed(f failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.seen = time.Now()
	l.failures = append(l.failures, f)
}

// polled counts an answer to /sync; one that the client lost again is not heard.
func (l *ledger) polled(a answer, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.polls++
	switch {
	case lost:
		l.lost++
	case len(a.changed) > 0:
		l.answers = append(l.answers, a)
	}
}

// queried records a /keys/query that was answered.
func (l *ledger) queried(a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, a)
}

// arrives records a request at a remote server, and returns those for the same target that are open.
func (l *ledger) arrives(target id.UserID, by string, over *line) (f *fetch, others []*fetch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f = &fetch{target: target, by: by, arrived: time.Now(), done: make(chan struct{}), over: over}
	for _, other := range l.fetches[target] {
		if other.ended.IsZero() {
			others = append(others, other)
		}
	}
	l.fetches[target] = append(l.fetches[target], f)
	l.lastFetch = f.arrived
	return f, others
}

func (l *ledger) ends(f *fetch, answered, ok bool, list int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.ended, f.answered, f.ok, f.list = time.Now(), answered, ok, list
	close(f.done)
}

func (l *ledger) served(f *fetch) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.ok
}

func (l *ledger) disturb(d disturbance) *disturbance {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.from = time.Now()
	l.disturbances = append(l.disturbances, &d)
	return &d
}

func (l *ledger) over(d *disturbance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.to = time.Now()
}

func (l *ledger) gone(d *disturbance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.gone = time.Now()
}

func (l *ledger) found(d *disturbance, owed map[id.UserID]debt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.owed = owed
}

// history is a copy of the ledger that stands still.
type history struct {
	asks         []ask
	answers      []answer
	fetches      map[id.UserID][]fetch
	disturbances []disturbance
	failures     []failure
	complaints   []string
	polls, lost  int
}

func (l *ledger) history() history {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := history{
		answers: slices.Clone(l.answers), failures: slices.Clone(l.failures), complaints: slices.Clone(l.complaints),
		fetches: map[id.UserID][]fetch{}, polls: l.polls, lost: l.lost,
	}
	for _, a := range l.asks {
		h.asks = append(h.asks, *a)
	}
	for _, d := range l.disturbances {
		h.disturbances = append(h.disturbances, *d)
	}
	for target, fetches := range l.fetches {
		for _, f := range fetches {
			h.fetches[target] = append(h.fetches[target], *f)
		}
	}
	return h
}

// quietFor is how long no remote server has been asked.
func (l *ledger) quietFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.lastFetch)
}

// clock is a time of day as freshen's log has it, to a tenth of a millisecond.
func clock(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format("15:04:05.0000")
}
