package announce

import (
	"slices"
	"sort"
	"sync"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store"
)

// stream holds the announcements in memory, by position. Moving a target to the head leaves a stale entry behind,
// which is skipped, and swept out once half of the entries are stale.
type stream struct {
	mu      sync.RWMutex
	entries []store.Announcement
	current map[subject]int64
	head    int64
}

// subject is whom an announcement is about and whom it is for.
type subject struct{ target, audience id.UserID }

func newStream(all []store.Announcement, head int64) *stream {
	s := &stream{current: make(map[subject]int64, len(all))}
	s.add(all)
	s.head = max(s.head, head)
	return s
}

// add appends announcements, whose positions come in order. What it has already is passed over; the rest it returns.
func (s *stream) add(all []store.Announcement) (added []store.Announcement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range all {
		if a.Position <= s.head {
			continue
		}
		added = append(added, a)
		s.entries = append(s.entries, a)
		s.current[subject{a.Target, a.Audience}] = a.Position
		s.head = a.Position
	}
	if len(s.entries) > 64 && len(s.entries) > 2*len(s.current) {
		s.entries = slices.DeleteFunc(s.entries, s.stale)
	}
	return added
}

// forget drops the announcements that are older than before, in milliseconds since 1970.
func (s *stream) forget(before int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = slices.DeleteFunc(s.entries, func(a store.Announcement) bool {
		if a.At.UnixMilli() >= before {
			return s.stale(a)
		}
		if !s.stale(a) {
			delete(s.current, subject{a.Target, a.Audience})
		}
		return true
	})
}

func (s *stream) stale(a store.Announcement) bool {
	return s.current[subject{a.Target, a.Audience}] != a.Position
}

func (s *stream) position() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.head
}

// above returns what stands above floor for user, by position, and the head that this is true of.
func (s *stream) above(floor int64, user id.UserID) (found []store.Announcement, head int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if floor >= s.head {
		return nil, s.head
	}
	first := sort.Search(len(s.entries), func(i int) bool { return s.entries[i].Position > floor })
	for _, a := range s.entries[first:] {
		if (a.Audience == "" || a.Audience == user) && !s.stale(a) {
			found = append(found, a)
		}
	}
	return found, s.head
}
