package store_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/limit"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

// patience is how long something may take that takes milliseconds on a machine that is not busy.
const patience = time.Minute

// instances opens a new Postgres database n times.
func instances(t *testing.T, n int) []*store.Store {
	t.Helper()
	cfg := shared(t)
	all := make([]*store.Store, n)
	for i := range all {
		all[i] = instance(t, cfg)
	}
	return all
}

func shared(t *testing.T) store.Config {
	t.Helper()
	return store.Config{
		URL:            storetest.Shared(t).NewDatabase(t),
		PerDestination: limit.Rate{Every: time.Second, Burst: 20}, SuccessFor: 30 * time.Second, FailureFor: 10 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	}
}

// ear collects what an instance hears.
type ear struct {
	mu    sync.Mutex
	heard store.Committed
	news  chan struct{}
}

func listen(s *store.Store) *ear {
	e := &ear{news: make(chan struct{}, 1)}
	s.OnCommit(func(c store.Committed) {
		e.mu.Lock()
		e.heard.Kept = append(e.heard.Kept, c.Kept...)
		e.heard.Announced = append(e.heard.Announced, c.Announced...)
		e.mu.Unlock()
		select {
		case e.news <- struct{}{}:
		default:
		}
	})
	return e
}

// until waits until what was heard is enough.
func (e *ear) until(t *testing.T, enough func(store.Committed) bool) store.Committed {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		e.mu.Lock()
		heard := store.Committed{Kept: slices.Clone(e.heard.Kept), Announced: slices.Clone(e.heard.Announced)}
		e.mu.Unlock()
		if enough(heard) {
			return heard
		}
		select {
		case <-e.news:
		case <-late.C:
			t.Fatalf("heard no more than %+v", heard)
		}
	}
}

func (e *ear) announced(t *testing.T, target id.UserID) {
	t.Helper()
	e.until(t, func(c store.Committed) bool {
		return slices.ContainsFunc(c.Announced, func(a store.Announcement) bool { return a.Target == target })
	})
}

func announce(t *testing.T, s *store.Store, target id.UserID) {
	t.Helper()
	if err := s.AnnounceTo(t.Context(), target, []id.UserID{"@alice:a.org"}, start); err != nil {
		t.Fatal(err)
	}
}

// Two instances with the same debt would ask the remote server twice, and more than four at once storm it.
func TestClaimsOfSeveralInstancesNeverOverlap(t *testing.T) {
	all := instances(t, 3)
	const destinations, each = 20, 6
	for d := range destinations {
		for u := range each {
			target := id.UserID(fmt.Sprintf("@u%d:d%d.org", u, d))
			if _, err := all[0].AskAgain(t.Context(), target, []id.UserID{"@alice:a.org"}, start, time.Time{}, begins); err != nil {
				t.Fatal(err)
			}
		}
	}
	var mu sync.Mutex
	claimed := map[id.UserID]int{}
	take := func(s *store.Store, token string) int {
		debts, err := s.Claim(t.Context(), start, time.Minute, token, store.Places{Fine: 7, Failing: 7})
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, d := range debts {
			claimed[d.Target]++
		}
		return len(debts)
	}
	var wg sync.WaitGroup
	for i, s := range all {
		for range 2 {
			wg.Go(func() {
				for range 12 {
					take(s, fmt.Sprintf("token %d", i))
				}
			})
		}
	}
	wg.Wait()
	for take(all[0], "the rest") > 0 { // what was left out since another looked at it
	}
	of := map[string]int{}
	for target, times := range claimed {
		if times != 1 {
			t.Errorf("%s was claimed %d times", target, times)
		}
		of[freshen.Destination(target)]++
	}
	for name, n := range of {
		if n != 4 {
			t.Errorf("%d are claimed of %s at once", n, name)
		}
	}
	if len(of) != destinations {
		t.Errorf("%d destinations of %d are being retried", len(of), destinations)
	}
}

// A position that becomes visible after a later one is an announcement that a reader skips: a client is never told.
func TestPositionsBecomeVisibleInOrderEverywhere(t *testing.T) {
	all := instances(t, 3)
	var ears []*ear
	for _, s := range all {
		ears = append(ears, listen(s))
	}
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for i, s := range all {
		for w := range writers {
			wg.Go(func() {
				for n := range each {
					announce(t, s, id.UserID(fmt.Sprintf("@u%d.%d.%d:b.org", i, w, n)))
				}
			})
		}
	}
	wg.Wait()
	want := len(all) * writers * each
	for i, e := range ears {
		heard := e.until(t, func(c store.Committed) bool { return len(c.Announced) >= want }).Announced
		for n, a := range heard {
			if a.Position != int64(n+1) {
				t.Fatalf("instance %d heard position %d where %d comes", i, a.Position, n+1)
			}
		}
	}
}

// A client polls one instance, and its contact's list is fetched by another: it is to hear at once, not at its next poll.
func TestAnInstanceHearsTheOthers(t *testing.T) {
	cfg := shared(t)
	a, b := instance(t, cfg), instance(t, cfg)
	ear := listen(b)
	// If it heard by looking every few seconds alone, so many would take longer than the test waits.
	for i := range 30 {
		target := id.UserID(fmt.Sprintf("@u%d:b.org", i))
		announce(t, a, target)
		ear.announced(t, target)
	}
	t.Run("after the listening connections were cut", func(t *testing.T) {
		for i := range 3 {
			if err := storetest.Shared(t).Exec(t.Context(), cfg.URL.Path[1:],
				`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE '%(listens)'`); err != nil {
				t.Fatal(err)
			}
			target := id.UserID(fmt.Sprintf("@cut%d:b.org", i))
			announce(t, a, target)
			ear.announced(t, target)
		}
	})
	t.Run("after all connections were cut", func(t *testing.T) {
		if err := storetest.Shared(t).Exec(t.Context(), cfg.URL.Path[1:],
			`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		announce(t, a, "@all:b.org")
		ear.announced(t, "@all:b.org")
	})
}

// What is kept, doubted and retired by one instance must not be served, or be taken for fresh, by another.
func TestAnInstanceHearsOfTheOthersLists(t *testing.T) {
	all := instances(t, 2)
	a, ear := all[0], listen(all[1])
	last := func(want store.KeptInfo) {
		t.Helper()
		var got store.KeptInfo
		ear.until(t, func(c store.Committed) bool {
			if len(c.Kept) == 0 {
				return false
			}
			got = c.Kept[len(c.Kept)-1]
			got.Version = 0
			return got == want
		})
	}
	keep(t, a, "@bob:b.org", start)
	want := store.KeptInfo{UserID: "@bob:b.org", FetchedAt: start}
	last(want)
	if err := a.MarkShared(t.Context(), "@bob:b.org"); err != nil {
		t.Fatal(err)
	}
	want.Shared = true
	last(want)
	if err := a.MarkSuspect(t.Context(), []store.KeptInfo{want}, start.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	want.Suspect = true
	last(want)
	if err := a.Retire(t.Context(), "@bob:b.org", start); err != nil {
		t.Fatal(err)
	}
	want.Retired = true
	last(want)
}

// The homeserver announces a contact to a client of one instance while another has asked their server just before: what
// the other is about to keep may be out of date.
func TestAnAnnouncementHeardByOneInstanceDuringAFetchOfAnother(t *testing.T) {
	all := instances(t, 2)
	keep(t, all[0], "@bob:b.org", start)
	known := store.KeptInfo{UserID: "@bob:b.org", FetchedAt: start}
	for i, c := range []struct {
		name    string
		at      time.Duration // after the fetch began
		suspect bool
	}{{"before the fetch", -time.Second, false}, {"during the fetch", time.Second, true}} {
		t.Run(c.name, func(t *testing.T) {
			began := start.Add(time.Duration(i+1) * time.Hour)
			begin(t, all[0], store.Fetch{Target: "@bob:b.org", Token: c.name, Now: began, Lease: time.Minute, Claimed: true})
			if err := all[1].MarkSuspect(t.Context(), []store.KeptInfo{known}, began.Add(c.at)); err != nil {
				t.Fatal(err)
			}
			if _, err := all[0].Keep(t.Context(), store.Fetched{List: list(t, "@bob:b.org", "key"), At: began.Add(2 * time.Second), Token: c.name}); err != nil {
				t.Fatal(err)
			}
			infos, err := all[0].KeptLists(t.Context())
			if err != nil || len(infos) != 1 || infos[0].Suspect != c.suspect {
				t.Errorf("kept %+v (%v), want it suspect: %v", infos, err, c.suspect)
			}
		})
	}
}

// Ten instances that a deployment starts together must not each make the tables, or fail because another does.
func TestTenInstancesStartTogether(t *testing.T) {
	cfg := shared(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			s, err := store.Open(t.Context(), cfg)
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(s.AnnounceTo(t.Context(), "@bob:b.org", []id.UserID{"@alice:a.org"}, start), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, head, err := instance(t, cfg).Announcements(t.Context()); err != nil || head != 10 {
		t.Errorf("the head is %d (%v)", head, err)
	}
}

// An instance that hangs in the middle of a change keeps the others from theirs until Postgres ends its session; what it
// was about to record is not recorded, and its caller is told so.
func TestAnInstanceThatHangsInAChange(t *testing.T) {
	t.Parallel()
	cfg := shared(t)
	hanging, healthy := instance(t, cfg), instance(t, cfg)
	inside, resume := make(chan struct{}), make(chan struct{})
	result := make(chan error)
	go func() {
		_, err := hanging.RecordFailure(t.Context(), store.Failed{
			Target: "@bob:b.org", Destination: "b.org", At: start, Requesters: []id.UserID{"@alice:a.org"},
		}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
			close(inside)
			<-resume
			return dest, debt, true
		})
		result <- err
	}()
	<-inside
	announce(t, healthy, "@carol:c.org")
	close(resume)
	if err := <-result; err == nil {
		t.Error("the change of an instance that hung was taken for done")
	}
	if n, err := healthy.Debts(t.Context()); err != nil || n != 0 {
		t.Errorf("%d debts are recorded (%v)", n, err)
	}
	announce(t, hanging, "@dave:d.org") // it goes on by itself
}

// One that hangs while it begins a fetch keeps the others from that target for less time than they wait for an answer:
// nobody is told that the database is away.
func TestAnInstanceThatHangsInABegin(t *testing.T) {
	t.Parallel()
	cfg := shared(t)
	hanging, healthy := instance(t, cfg), instance(t, cfg)
	inside, resume := make(chan struct{}), make(chan struct{})
	result := make(chan error)
	go func() { result <- hanging.HangInBegin(t.Context(), "@bob:b.org", inside, resume) }()
	<-inside
	begin(t, healthy, store.Fetch{Target: "@bob:b.org", Token: "t", Now: start, Lease: time.Minute, Claimed: true})
	close(resume)
	if err := <-result; err == nil {
		t.Error("the transaction of an instance that hung was taken for done")
	}
}

// A lock that nobody gives back, such as one of a person in psql, ends in an error and not in a hang.
func TestALockThatIsNotGivenBack(t *testing.T) {
	t.Parallel()
	cfg := shared(t)
	u := *cfg.URL
	u.RawQuery += "&lock_timeout=200"
	cfg.URL = &u
	s := instance(t, cfg)
	holder := connect(t, cfg.URL.String()+"&idle_in_transaction_session_timeout=0")
	if _, err := holder.Exec(t.Context(), `BEGIN; SELECT pg_advisory_xact_lock(7382074285560786481)`); err != nil {
		t.Fatal(err)
	}
	err := s.AnnounceTo(t.Context(), "@bob:b.org", []id.UserID{"@alice:a.org"}, start)
	if err == nil {
		t.Error("a change did not wait for the lock")
	}
	t.Log(err)
	if _, err := holder.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	announce(t, s, "@bob:b.org")
}
