// Package kept knows which device lists are kept, so that the path of every /sync and /keys/query can tell in one
// lookup that nothing is; the lists themselves stay in the database.
package kept

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

const (
	// MaxAge is how long a kept list is served without fetching it again.
	MaxAge = time.Hour
	// writeTimeout bounds one write in the background.
	writeTimeout = 10 * time.Second
	// sweepEvery is how often lists that are to be forgotten are looked for.
	sweepEvery = 5 * time.Minute
	// forgetAfter is how long a list stays that no key query has had fetched again.
	forgetAfter = 90 * 24 * time.Hour
	// readSlow is from when on a read that its caller gave up says that the database hangs.
	readSlow = time.Second
	// readAgain is how long no list is read after that.
	readAgain = 10 * time.Second
)

// ErrNotRead is what [Lists.Read] fails with while the database is not asked, because it has just not answered in time.
var ErrNotRead = errors.New("the database did not answer in time a moment ago, so the kept device list was not read")

// Lists is the index of kept lists. Its methods are safe for concurrent use.
type Lists struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time

	writes sync.WaitGroup

	mu       sync.RWMutex
	infos    map[id.UserID]store.KeptInfo
	fetching map[id.UserID]*fetching
	retiring map[id.UserID]time.Time // fetched then, and retired, which is not known to be stored yet
	closed   bool
	watched  atomic.Int64
	unread   time.Time // when a read last took too long
}

// fetching is a fetch that is under way.
type fetching struct {
	times     int
	announced bool // by the homeserver, since it began
}

// Load reads the index. now is the clock.
func Load(ctx context.Context, s *store.Store, log *slog.Logger, now func() time.Time) (*Lists, error) {
	infos, err := s.KeptLists(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lists{store: s, log: log, now: now, infos: make(map[id.UserID]store.KeptInfo, len(infos)), fetching: map[id.UserID]*fetching{}, retiring: map[id.UserID]time.Time{}}
	l.Put(infos)
	return l, nil
}

// Put records what has just been stored, by this instance or another. It may come again, and it may come late: what is
// older than what is known already changes nothing, and of one list it is never forgotten that it is suspect, of use or
// retired, since that is known here before it is stored.
func (l *Lists) Put(infos []store.KeptInfo) {
	if len(infos) == 0 {
		return
	}
	var suspect []store.KeptInfo
	l.mu.Lock()
	for _, info := range infos {
		have, known := l.infos[info.UserID]
		retiring, retired := l.retiring[info.UserID]
		if retired && (info.Retired || !info.FetchedAt.Equal(retiring)) {
			delete(l.retiring, info.UserID)
			retired = false
		}
		switch {
		case retired: // what was stored of it just before
			continue
		case known && info.Version < have.Version:
			continue
		case info.Retired:
			delete(l.infos, info.UserID)
			continue
		case known && info.FetchedAt.Equal(have.FetchedAt):
			info.Suspect = info.Suspect || have.Suspect
			info.Shared = info.Shared || have.Shared
		}
		if f := l.fetching[info.UserID]; f != nil && f.announced && !info.Suspect {
			info.Suspect = true
			suspect = append(suspect, info)
		}
		l.infos[info.UserID] = info
	}
	l.recount()
	l.mu.Unlock()
	l.recordSuspect(suspect)
}

// Fetching says that user's list is being fetched, until done is called, which must come after the list was put: what
// the homeserver announces meanwhile may be newer than the list.
func (l *Lists) Fetching(user id.UserID) (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.fetching[user]
	if f == nil {
		f = &fetching{}
		l.fetching[user] = f
	}
	f.times++
	l.recount()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if f.times--; f.times == 0 {
			delete(l.fetching, user)
			l.recount()
		}
	}
}

func (l *Lists) recount() { l.watched.Store(int64(len(l.infos) + len(l.fetching))) }

// Len is how many lists are kept or being fetched; one may count twice.
func (l *Lists) Len() int { return int(l.watched.Load()) }

// Has says whether user's list is kept or being fetched.
func (l *Lists) Has(user id.UserID) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, ok := l.infos[user]
	return ok || l.fetching[user] != nil
}

// Info is what is known of user's kept list.
func (l *Lists) Info(user id.UserID) (store.KeptInfo, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	info, ok := l.infos[user]
	return info, ok
}

// Users names everybody whose list is kept or being fetched, in no order; one may stand twice.
func (l *Lists) Users() []id.UserID {
	l.mu.RLock()
	defer l.mu.RUnlock()
	users := make([]id.UserID, 0, len(l.infos)+len(l.fetching))
	users = slices.AppendSeq(users, maps.Keys(l.infos))
	return slices.AppendSeq(users, maps.Keys(l.fetching))
}

// Read returns user's list; nil if none is kept. The context's deadline is what the caller has to wait. A database that
// lets it pass is not asked again for 10 s, so that one that hangs does not hold up each key query; the error is then
// [ErrNotRead].
func (l *Lists) Read(ctx context.Context, user id.UserID) (*freshen.DeviceList, error) {
	l.mu.RLock()
	unread := l.unread
	l.mu.RUnlock()
	began := l.now()
	if !unread.IsZero() && began.Sub(unread).Abs() < readAgain { // the clock may have been set back
		return nil, ErrNotRead
	}
	list, err := l.store.KeptList(ctx, user)
	if now := l.now(); err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && now.Sub(began) >= readSlow {
		l.mu.Lock()
		l.unread = now
		l.mu.Unlock()
	}
	return list, err
}

// Announced records that the homeserver itself told of changes of these users: what is kept of them may be older than
// what the homeserver has. It does not wait for the database.
func (l *Lists) Announced(users []id.UserID) {
	var fresh []store.KeptInfo
	l.mu.Lock()
	for _, user := range users {
		if f := l.fetching[user]; f != nil {
			f.announced = true
		}
		if info, ok := l.infos[user]; ok && !info.Suspect {
			info.Suspect = true
			l.infos[user] = info
			fresh = append(fresh, info)
		}
	}
	l.mu.Unlock()
	l.recordSuspect(fresh)
}

func (l *Lists) recordSuspect(fresh []store.KeptInfo) {
	if len(fresh) == 0 {
		return
	}
	at := l.now()
	l.background(func(ctx context.Context) {
		if err := l.store.MarkSuspect(ctx, fresh, at); err != nil {
			l.log.Error("could not record that kept device lists are suspect; after a restart, and at other instances, they count as fresh until they are an hour old",
				"users", len(fresh), "err", err)
		}
	})
}

// Shared records that a local user shares a room with this one. It does not wait for the database.
func (l *Lists) Shared(user id.UserID) {
	l.mu.Lock()
	info, ok := l.infos[user]
	learnt := ok && !info.Shared
	if learnt {
		info.Shared = true
		l.infos[user] = info
	}
	l.mu.Unlock()
	if !learnt {
		return
	}
	l.background(func(ctx context.Context) {
		if err := l.store.MarkShared(ctx, user); err != nil {
			l.log.Error("could not record whose kept device list is of use; it may be dropped early", "err", err)
		}
	})
}

// Run forgets, until ctx is done, lists that are an hour old and of users with whom nobody here is known to share a room
// (nobody can fill our disk by asking for strangers), and those that nobody has asked for in 90 days. now is the clock.
func (l *Lists) Run(ctx context.Context, now func() time.Time) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		l.sweep(now())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *Lists) sweep(now time.Time) {
	var forgotten []store.KeptInfo
	l.mu.RLock()
	for _, info := range l.infos {
		age := now.Sub(info.FetchedAt).Abs() // the clock may have been set back
		if age > forgetAfter || (!info.Shared && age > MaxAge) {
			forgotten = append(forgotten, info)
		}
	}
	l.mu.RUnlock()
	for _, info := range forgotten {
		l.Retire(info.UserID, info.FetchedAt)
	}
	if len(forgotten) > 0 {
		l.log.Info("forgot kept device lists of users with whom nobody here shares a room, or of whom nobody has asked for long", "lists", len(forgotten))
	}
}

// Retire drops the list that was fetched at that time: the homeserver says the same, or better, by itself. It does not
// wait for the database.
func (l *Lists) Retire(user id.UserID, fetchedAt time.Time) {
	l.mu.Lock()
	info, ok := l.infos[user]
	gone := ok && info.FetchedAt.UnixMilli() == fetchedAt.UnixMilli()
	if gone {
		delete(l.infos, user)
		l.retiring[user] = info.FetchedAt
		l.recount()
	}
	l.mu.Unlock()
	if !gone {
		return
	}
	l.background(func(ctx context.Context) {
		if err := l.store.Retire(ctx, user, fetchedAt); err != nil {
			l.log.Error("could not retire a kept device list; it is served again after a restart", "err", err)
		}
	})
}

// background writes unless the lists are closed: then the note is lost, and costs a fetch after the restart.
func (l *Lists) background(write func(context.Context)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.writes.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
		defer cancel()
		write(ctx)
	})
}

// Close waits for what is still being written, and writes no more. The store must be open.
func (l *Lists) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.writes.Wait()
}
