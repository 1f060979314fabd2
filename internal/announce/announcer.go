package announce

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

const (
	// flushEvery is how long an acknowledgement may stay in memory alone.
	flushEvery = time.Second
	// idleAfter is how long a device that does not sync stays in memory.
	idleAfter = 10 * time.Minute
	// idleCarrying is the same for one that has not acknowledged yet what it was sent.
	idleCarrying = 24 * time.Hour
	// keepFor is how long announcements and the positions of devices that are not seen are kept.
	keepFor = 90 * 24 * time.Hour
	// seenEvery is how exactly it is recorded when a device was last seen.
	seenEvery = 24 * time.Hour
	// questionsWaiting bounds the users whose rooms are still to be asked about. Past it they are asked about at their
	// next poll.
	questionsWaiting = 10_000
	// askers is how many users' rooms are asked about at a time.
	askers = 4
	// savedAtOnce is how many devices' positions go into one change of the database.
	savedAtOnce = 256
)

// Announcer tells what each device is owed and wakes the polls that wait for it. Its methods are safe for concurrent
// use, and those that the path of a response calls do not wait for the database or the homeserver.
type Announcer struct {
	store     *store.Store
	positions positions
	others    others // nil where the database is for this instance alone
	opened    time.Time
	rooms     *rooms.Rooms
	log       *slog.Logger
	now       func() time.Time

	stream *stream
	asks   chan question
	// explores are the questions that may settle many of the others, and so come first.
	explores chan question
	asking   sync.Map // userTarget → struct{}: questions that are under way
	loads    chan *device
	// inquiries are the devices of which it is to be found out what their tokens prove.
	inquiries chan *device
	failing   bool // saving failed last; flush's own
	// unreadable: the last device that was to be read from the database could not be.
	unreadable atomic.Bool
	// underway counts the questions and loads that wait or run.
	underway sync.WaitGroup

	counters counters

	unseen unseens

	mu      sync.Mutex
	devices map[freshen.Requester]*device
	users   map[id.UserID][]*device // the same
}

// question is whether announcements concern a user: in whose rooms are the targets?
type question struct {
	user    id.UserID
	cred    homeserver.Credentials
	about   []store.Announcement
	askedAt time.Time
	explore bool // from the requester's view: settle it for everybody in the shared rooms
}

// covers says that the question was put after the announcement was made, whatever came of it.
func (q *question) covers(user id.UserID, a store.Announcement) bool {
	return q.user == user && !a.At.After(q.askedAt) &&
		slices.ContainsFunc(q.about, func(asked store.Announcement) bool { return asked.Target == a.Target })
}

// Open reads the stream. Run must run for anything to be learnt, loaded or saved. What is committed while Open reads
// must be given to Announced after it: nothing may be announced between Open and [store.Store.OnCommit].
func Open(ctx context.Context, s *store.Store, r *rooms.Rooms, log *slog.Logger, now func() time.Time) (*Announcer, error) {
	all, head, err := s.Announcements(ctx)
	if err != nil {
		return nil, err
	}
	a := &Announcer{
		store: s, positions: s, rooms: r, log: log, now: now, opened: now(),
		stream:   newStream(all, head),
		asks:     make(chan question, questionsWaiting),
		explores: make(chan question, questionsWaiting),
		loads:    make(chan *device, questionsWaiting),

		inquiries: make(chan *device, questionsWaiting),
		devices:   map[freshen.Requester]*device{},
		users:     map[id.UserID][]*device{},
	}
	if s.Shared() {
		a.others = s
		s.OnAsked(a.Answer)
	}
	return a, nil
}

// forgotten is up to when nothing is known of the answers to a device that is not in memory.
func (a *Announcer) forgotten() time.Time {
	if before := a.now().Add(-idleAfter); before.After(a.opened) {
		return before
	}
	return time.Time{} // others that ran here before are another's concern: see store.Replies
}

// Announced adds what has just been committed, by this instance or another, and wakes the polls that it concerns. It comes
// in the order of the positions; what comes again is passed over. It does not block.
func (a *Announcer) Announced(all []store.Announcement) {
	if all = a.stream.add(all); len(all) == 0 {
		return
	}
	a.counters.announced.Add(int64(len(all)))
	var users []id.UserID
	for _, one := range all {
		if one.Audience == "" {
			a.reconsider(a.all(), question{})
			return
		}
		users = append(users, one.Audience)
	}
	a.reconsider(a.of(users), question{})
}

// Explore finds out which local users a change of target's concerns, from the view of who, and wakes them.
func (a *Announcer) Explore(who id.UserID, cred homeserver.Credentials, target id.UserID) {
	a.enqueue(question{user: who, cred: cred, about: []store.Announcement{{Target: target, At: a.now()}}, explore: true})
}

// Shares asks whether who shares a room with target.
func (a *Announcer) Shares(ctx context.Context, who id.UserID, cred homeserver.Credentials, target id.UserID) (bool, error) {
	return a.rooms.Shares(ctx, who, cred, target)
}

// SharesOf asks with which of the targets who shares a room. It asks anew which rooms who is in.
func (a *Announcer) SharesOf(ctx context.Context, who id.UserID, cred homeserver.Credentials, targets []id.UserID) ([]id.UserID, error) {
	shares := func(target id.UserID) bool {
		yes, known := a.rooms.Known(who, target)
		return yes && known
	}
	var err error
	if unsure := slices.DeleteFunc(slices.Clone(targets), shares); len(unsure) > 0 {
		err = a.rooms.Resolve(ctx, who, cred, unsure, a.now())
	}
	return slices.DeleteFunc(slices.Clone(targets), func(target id.UserID) bool { return !shares(target) }), err
}

// Sharing asks which of the users share a room with target, with the credentials of a poll that each has in flight. Who
// has none, and about whom the homeserver does not answer in time, is in neither.
func (a *Announcer) Sharing(ctx context.Context, users []id.UserID, target id.UserID) (yes, no []id.UserID) {
	polling := map[id.UserID]homeserver.Credentials{}
	for _, d := range a.of(users) {
		d.mu.Lock()
		if p := d.newest(); p != nil {
			polling[d.who.UserID] = p.cred
		}
		d.mu.Unlock()
	}
	for user, cred := range polling {
		switch shares, err := a.rooms.Shares(ctx, user, cred, target); {
		case err != nil:
		case shares:
			yes = append(yes, user)
		default:
			no = append(no, user)
		}
	}
	return yes, no
}

// Head is the position of the newest announcement.
func (a *Announcer) Head() int64 { return a.stream.position() }

func (a *Announcer) all() []*device {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*device, 0, len(a.devices))
	for _, d := range a.devices {
		all = append(all, d)
	}
	return all
}

// of are the devices in memory of these users.
func (a *Announcer) of(users []id.UserID) (all []*device) {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := make(map[id.UserID]struct{}, len(users))
	for _, user := range users {
		if _, again := seen[user]; !again {
			seen[user] = struct{}{}
			all = append(all, a.users[user]...)
		}
	}
	return all
}

// device returns what is in memory of a device; loading it from the database is begun if it is new there.
func (a *Announcer) device(who freshen.Requester) *device {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.deviceLocked(who)
}

func (a *Announcer) deviceLocked(who freshen.Requester) *device {
	d := a.devices[who]
	if d == nil {
		d = a.newDevice(who)
		d.usedAt = a.now()
		a.devices[who] = d
		a.users[who.UserID] = append(a.users[who.UserID], d)
		a.load(d)
	}
	return d
}

// load has the device read from the database. If too many wait for that, it is tried when there is next an occasion.
func (a *Announcer) load(d *device) {
	a.underway.Add(1)
	select {
	case a.loads <- d:
	default:
		a.underway.Done()
		d.mu.Lock()
		d.failed = true
		d.mu.Unlock()
	}
}

// reconsider has the polls of these devices look again at what they are owed. answered is the question whose answer is
// the occasion, if one is.
func (a *Announcer) reconsider(devices []*device, answered question) {
	for _, d := range devices {
		a.consider(d, answered)
	}
}

// consider wakes a poll of the device's if there is something to hurry for, and asks about what it cannot tell, but
// not at once again what has just been asked in vain. A device that could not be read from the database is read again:
// if something was announced, the database is back.
func (a *Announcer) consider(d *device, answered question) {
	d.mu.Lock()
	if answered.user != "" && d.loaded && !d.unsure {
		d.mu.Unlock()
		return // the answer tells it nothing
	}
	newest := d.newest()
	if again := d.failed && newest != nil; again || !d.loaded || newest == nil {
		d.failed = d.failed && !again
		d.mu.Unlock()
		if again {
			a.load(d)
		}
		return
	}
	entries, unknown, held := d.owed(a.stream, a.rooms.KnownSince)
	d.unsure = len(unknown) > 0
	wake := d.toWake(entries)
	if len(held) > 0 {
		a.askOthers(d)
	}
	if wake != nil {
		wake.wokenAt = a.now()
	}
	d.mu.Unlock()
	unknown = slices.DeleteFunc(unknown, func(one store.Announcement) bool { return answered.covers(d.who.UserID, one) })
	a.enqueue(question{user: d.who.UserID, cred: newest.cred, about: unknown})
	if wake != nil {
		wake.wake()
	}
}

type userTarget struct{ user, target id.UserID }

// enqueue has a question asked, without what is being asked already.
func (a *Announcer) enqueue(q question) {
	queue := a.asks
	if q.explore {
		queue = a.explores
	} else {
		q.about = slices.DeleteFunc(q.about, func(one store.Announcement) bool {
			_, busy := a.asking.LoadOrStore(userTarget{q.user, one.Target}, struct{}{})
			return busy
		})
	}
	if len(q.about) == 0 {
		return
	}
	a.underway.Add(1)
	select {
	case queue <- q:
	default:
		a.underway.Done()
		a.answered(q)
	}
}

func (a *Announcer) answered(q question) {
	if q.explore {
		return
	}
	for _, one := range q.about {
		a.asking.Delete(userTarget{q.user, one.Target})
	}
}

// Acked records that the device has asked /keys/query about targets, successfully. position is the stream's head when
// that query arrived.
func (a *Announcer) Acked(who freshen.Requester, targets []id.UserID, position int64) {
	d := a.device(who)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.usedAt = a.now()
	found, _ := a.stream.above(d.floor, who.UserID)
	if len(found) == 0 {
		return
	}
	pending := make(map[id.UserID]bool, len(found))
	for _, f := range found {
		pending[f.Target] = true
	}
	for _, target := range targets {
		if pending[target] {
			d.ack(target, position)
		}
	}
	if d.loaded {
		d.owed(a.stream, a.rooms.KnownSince)
	}
}

// Pending says whether an announcement of any of the targets may still be on its way to the device, so that a
// /keys/query about them is worth telling [Announcer.Acked] about.
func (a *Announcer) Pending(who freshen.Requester, targets []id.UserID) bool {
	if a.stream.position() == 0 {
		return false
	}
	d := a.device(who)
	d.mu.Lock()
	defer d.mu.Unlock()
	found, _ := a.stream.above(d.floor, who.UserID)
	for _, f := range found {
		for _, target := range targets {
			if f.Target == target && d.above[target] < f.Position {
				return true
			}
		}
	}
	return false
}
