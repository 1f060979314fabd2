package kept_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/kept"
	"freshen/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bob, dave = id.UserID("@bob:b.org"), id.UserID("@dave:b.org")

var start = time.UnixMilli(1_700_000_000_000)

// clock is the time at which the homeserver announces somebody.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time      { return start.Add(time.Duration(c.at.Load())) }
func (c *clock) set(d time.Duration) { c.at.Store(int64(d)) }

func open(t *testing.T) (*store.Store, *kept.Lists) {
	t.Helper()
	return openAt(t, new(clock))
}

func openAt(t *testing.T, c *clock) (*store.Store, *kept.Lists) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "freshen.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := loadAt(t, s, c)
	s.OnCommit(func(c store.Committed) { l.Put(c.Kept) })
	t.Cleanup(func() {
		l.Close()
		if err := s.Ready(context.Background()); err != nil {
			return // the test has closed it
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, l
}

func load(t *testing.T, s *store.Store) *kept.Lists {
	t.Helper()
	return loadAt(t, s, new(clock))
}

func loadAt(t *testing.T, s *store.Store, c *clock) *kept.Lists {
	t.Helper()
	l, err := kept.Load(t.Context(), s, slog.New(slog.DiscardHandler), c.now)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func keep(t *testing.T, s *store.Store, user id.UserID, at time.Time) {
	t.Helper()
	list, err := freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id":%q,"stream_id":1,"devices":[]}`, user), user)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Keep(t.Context(), store.Fetched{List: list, At: at}); err != nil {
		t.Fatal(err)
	}
}

// The index must say what the database holds, or a list is not served, or looked for in vain on every query.
func TestTheIndexFollowsTheDatabase(t *testing.T) {
	s, l := open(t)
	if l.Len() != 0 || l.Has(bob) || len(l.Users()) != 0 {
		t.Error("an empty database has lists")
	}
	keep(t, s, bob, start)
	info, ok := l.Info(bob)
	if l.Len() == 0 || !ok || !info.FetchedAt.Equal(start) || info.Suspect || l.Has(dave) || len(l.Users()) != 1 {
		t.Errorf("after one was kept: %+v %v", info, ok)
	}
	if list, err := l.Read(t.Context(), bob); err != nil || list == nil || list.UserID != bob {
		t.Errorf("read %v (%v)", list, err)
	}
	if again := load(t, s); again.Len() == 0 || !again.Has(bob) {
		t.Error("a restart loses the list")
	}
	l.Retire(bob, start)
	if l.Len() != 0 || l.Has(bob) {
		t.Error("a retired list is still in the index")
	}
	l.Close()
	if load(t, s).Len() != 0 {
		t.Error("a retired list is back after a restart")
	}
	if list, err := l.Read(t.Context(), bob); list != nil || err != nil {
		t.Errorf("read a retired list: %v (%v)", list, err)
	}
}

// A list that the homeserver has overtaken is doubted until it is fetched again, also over a restart.
func TestSuspicion(t *testing.T) {
	clock := new(clock)
	s, l := openAt(t, clock)
	keep(t, s, bob, start)
	clock.set(time.Second)
	l.Announced([]id.UserID{bob, dave, bob})
	if info, _ := l.Info(bob); !info.Suspect || l.Has(dave) {
		t.Error("what the homeserver announced is not suspect, or somebody else is")
	}
	keep(t, s, bob, start.Add(time.Minute))
	if info, _ := l.Info(bob); info.Suspect {
		t.Error("a list that was fetched again is suspect")
	}
	clock.set(2 * time.Minute)
	l.Announced([]id.UserID{bob})
	l.Close()
	if info, _ := load(t, s).Info(bob); !info.Suspect {
		t.Error("the suspicion is gone after a restart")
	}
}

// A contact who signs in while their list is on its way here must not be hidden behind that list for an hour: it may be
// from just before.
func TestAnAnnouncementDuringAFetchMakesTheListSuspect(t *testing.T) {
	s, l := open(t)
	for i, announced := range []bool{true, false} {
		start := start.Add(time.Duration(i) * time.Second)
		done := l.Fetching(bob)
		if l.Len() == 0 || !l.Has(bob) || l.Has(dave) {
			t.Error("nobody watches for announcements of a user who is being fetched")
		}
		if announced {
			l.Announced([]id.UserID{bob, dave})
		}
		keep(t, s, bob, start)
		done()
		if info, ok := l.Info(bob); !ok || info.Suspect != announced {
			t.Errorf("announced during the fetch: %v, the list is kept: %v, suspect: %v", announced, ok, info.Suspect)
		}
		l.Retire(bob, start)
		if l.Len() != 0 || l.Has(bob) {
			t.Error("the fetch is still watched after its end")
		}
	}
}

// The homeserver healed as of an older list; a newer one that came meanwhile must stay.
func TestRetiringSparesANewerList(t *testing.T) {
	s, l := open(t)
	keep(t, s, bob, start)
	keep(t, s, bob, start.Add(time.Second))
	l.Retire(bob, start)
	l.Retire(dave, start)
	l.Close()
	for _, index := range []*kept.Lists{l, load(t, s)} {
		if info, ok := index.Info(bob); !ok || !info.FetchedAt.Equal(start.Add(time.Second)) {
			t.Errorf("the newer list is gone: %+v %v", info, ok)
		}
	}
}

// What another change of the list says, stored just before and heard just after, must not bring back a list that was
// retired: for a moment clients would be served from it again.
func TestRetiredIsNotForgotten(t *testing.T) {
	s, l := open(t)
	keep(t, s, bob, start)
	before, ok := l.Info(bob)
	if !ok {
		t.Fatal("the list is not there")
	}
	l.Retire(bob, start)
	before.Shared, before.Version = true, before.Version+1
	l.Put([]store.KeptInfo{before})
	if l.Has(bob) {
		t.Error("a late word of the list brings it back")
	}
	l.Close()
	keep(t, s, bob, start.Add(time.Second))
	if !l.Has(bob) {
		t.Error("a newer list is not kept")
	}
}

// Each user's last list wins, however retiring, doubting and keeping race; and the database says so too.
func TestRaces(t *testing.T) {
	s, l := open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		user := id.UserID(fmt.Sprintf("@u%d:b.org", i))
		wg.Go(func() {
			for j := range 5 {
				keep(t, s, user, start.Add(time.Duration(j)*time.Second))
			}
		})
		wg.Go(func() {
			for j := range 4 { // never the last
				l.Retire(user, start.Add(time.Duration(j)*time.Second))
				l.Announced([]id.UserID{user})
				l.Has(user)
			}
		})
	}
	wg.Wait()
	l.Close()
	for _, index := range []*kept.Lists{l, load(t, s)} {
		if n := len(index.Users()); n != 20 {
			t.Errorf("%d lists are left of 20", n)
		}
	}
}

// Requests can outlast the shutdown: what they note then is dropped, and nothing runs on after Close.
func TestAfterClose(t *testing.T) {
	s, l := open(t)
	keep(t, s, bob, start)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { l.Announced([]id.UserID{bob}); l.Retire(bob, start) })
		wg.Go(l.Close)
	}
	wg.Wait()
	l.Close()
	if l.Has(bob) {
		t.Error("retiring does nothing in memory")
	}
}

// A database that is away keeps nobody waiting and loses no list from memory.
func TestTheDatabaseAway(t *testing.T) {
	s, l := open(t)
	keep(t, s, bob, start)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l.Announced([]id.UserID{bob})
	if !l.Has(bob) {
		t.Error("the list is gone from the index")
	}
	if _, err := l.Read(t.Context(), bob); err == nil {
		t.Error("a database that is closed was read")
	}
	if _, err := kept.Load(context.Background(), s, slog.New(slog.DiscardHandler), time.Now); err == nil {
		t.Error("a database that is closed was loaded")
	}
}

// What instances tell each other comes again, and what this one knows of a list may not be stored yet.
func TestNewsOfOtherInstances(t *testing.T) {
	_, l := open(t)
	info := func(minute int, version int64) store.KeptInfo {
		return store.KeptInfo{UserID: bob, FetchedAt: start.Add(time.Duration(minute) * time.Minute), Version: version}
	}
	doubted := func(k store.KeptInfo) store.KeptInfo { k.Suspect = true; return k }
	useful := func(k store.KeptInfo) store.KeptInfo { k.Shared = true; return k }
	retired := func(k store.KeptInfo) store.KeptInfo { k.Retired = true; return k }
	for _, step := range []struct {
		what string
		put  store.KeptInfo
		want store.KeptInfo
	}{
		{"a list", doubted(info(0, 5)), doubted(info(0, 5))},
		{"the same list, found to be of use by somebody who has not heard of the doubt", useful(info(0, 6)), doubted(useful(info(0, 6)))},
		{"news from before that", info(0, 4), doubted(useful(info(0, 6)))},
		{"a newer list", info(1, 7), info(1, 7)},
		{"an older list that comes late", doubted(info(0, 6)), info(1, 7)},
		{"a list that was fetched after a clock was set back", info(-60, 8), info(-60, 8)},
		{"the end of it", retired(info(-60, 9)), store.KeptInfo{}},
		{"another", info(2, 10), info(2, 10)},
		{"the end of the one before, once more", retired(info(-60, 9)), info(2, 10)},
	} {
		l.Put([]store.KeptInfo{step.put})
		if got, ok := l.Info(bob); got != step.want || ok != (step.want != store.KeptInfo{}) {
			t.Errorf("after %s: %+v, want %+v", step.what, got, step.want)
		}
	}
}
