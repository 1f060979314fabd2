package store_test

import (
	"database/sql"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

// fails owes a target as a real failure of its destination would.
func fails(t *testing.T, s *store.Store, target id.UserID, at, retryAt, dueAt time.Time) {
	t.Helper()
	_, err := s.RecordFailure(t.Context(), store.Failed{
		Target: target, Destination: freshen.Destination(target), At: at, Requesters: []id.UserID{"@alice:a.org"},
	}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		if retryAt.After(at) {
			dest.Failures, dest.FailingSince, dest.RetryAt = dest.Failures+1, at, retryAt
			dest.Reason, dest.Sentence = freshen.ReasonConnect, "It refused the connection."
		}
		debt.DueAt, debt.Reason, debt.Sentence = dueAt, freshen.ReasonConnect, "It refused the connection."
		return dest, debt, true
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An administrator must see what is owed as it stands, and in the order in which they look for it.
func TestOwed(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		if b, err := s.Backlog(t.Context()); err != nil || b != (store.Backlog{}) {
			t.Errorf("of nothing: %+v (%v)", b, err)
		}
		hour := start.Add(time.Hour)
		fails(t, s, "@zoe:b.org", start, hour, start)
		fails(t, s, "@bob:c.org", start.Add(-time.Minute), time.Time{}, hour)
		fails(t, s, "@bob:b.org", start.Add(time.Second), hour, start)
		all, err := s.Owed(t.Context(), 10)
		if err != nil || len(all) != 3 {
			t.Fatalf("%d debts (%v)", len(all), err)
		}
		for i, want := range []id.UserID{"@bob:b.org", "@zoe:b.org", "@bob:c.org"} {
			if all[i].Target != want {
				t.Errorf("%d: %s, want %s", i, all[i].Target, want)
			}
		}
		if d := all[0]; d.Standing.Failures != 2 || !d.Standing.RetryAt.Equal(hour) || d.Standing.Reason != freshen.ReasonConnect ||
			!d.AskedAt.Equal(start.Add(time.Second)) || d.Sentence == "" {
			t.Errorf("%+v", d)
		}
		if d := all[2]; d.Standing.Failures != 0 || !d.Standing.RetryAt.IsZero() || !d.DueAt.Equal(hour) {
			t.Errorf("%+v", d)
		}
		if few, err := s.Owed(t.Context(), 2); err != nil || len(few) != 2 {
			t.Errorf("%d of at most 2 (%v)", len(few), err)
		}
		b, err := s.Backlog(t.Context())
		if want := (store.Backlog{Debts: 3, Oldest: start.Add(-time.Minute), BackingOff: 1}); err != nil || b.Debts != want.Debts ||
			!b.Oldest.Equal(want.Oldest) || b.BackingOff != want.BackingOff {
			t.Errorf("%+v (%v), want %+v", b, err, want)
		}
	})
}

// What the administrator forgives is not tried any more, and holds nobody else back.
func TestForgive(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		fails(t, s, "@bob:b.org", start, time.Time{}, start)
		fails(t, s, "@zoe:b.org", start, time.Time{}, start)
		if n, err := s.Forgive(t.Context(), "@nobody:b.org", start); n != 0 || err != nil {
			t.Errorf("%d forgiven of nobody's (%v)", n, err)
		}
		claimed := claims(t, s, start, 1)[0]
		if n, err := s.Forgive(t.Context(), claimed.Target, start); n != 1 || err != nil {
			t.Errorf("%d forgiven (%v)", n, err)
		}
		if promised, err := s.Promised(t.Context(), claimed.Target, 10); err != nil || len(promised) != 0 {
			t.Errorf("still promised to %v (%v)", promised, err)
		}
		// The try that was running fails: that must not owe it anew.
		if _, err := s.RecordFailure(t.Context(), store.Failed{Target: claimed.Target, Destination: "b.org", At: start, Lease: claimed.Lease},
			func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
				return dest, debt, true
			}); err != nil {
			t.Fatal(err)
		}
		if next := claim(t, s, start, 10); len(next) != 1 || next[0] == claimed.Target {
			t.Errorf("claimed %v, want the other one", next)
		}
	})
}

// A server that is known to be back must be asked at once, one request at a time until it has answered; what is being
// tried already is not tried twice.
func TestTryNow(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		hour := start.Add(time.Hour)
		for _, user := range []id.UserID{"@bob:b.org", "@zoe:b.org", "@bob:c.org"} {
			fails(t, s, user, start, hour, start)
		}
		fails(t, s, "@own:d.org", start, time.Time{}, hour)
		soon := start.Add(time.Minute)
		if got := claim(t, s, soon, 10); len(got) != 0 {
			t.Fatalf("claimed %v before its time", got)
		}
		if n, err := s.TryDestinationNow(t.Context(), "b.org", soon); n != 2 || err != nil {
			t.Errorf("%d of b.org's (%v)", n, err)
		}
		if got := claims(t, s, soon, 10); len(got) != 1 || got[0].Destination != "b.org" || !got[0].Probe {
			t.Errorf("claimed %+v, want one of b.org's, as a probe", got)
		}
		if n, err := s.TryDestinationNow(t.Context(), "b.org", soon); n != 2 || err != nil {
			t.Errorf("%d of b.org's (%v)", n, err)
		}
		if got := claim(t, s, soon, 10); len(got) != 0 {
			t.Errorf("claimed %v while b.org is being asked", got)
		}
		if n, err := s.TryNow(t.Context(), "@own:d.org", soon); n != 1 || err != nil {
			t.Errorf("%d of @own's (%v)", n, err)
		}
		if got := claim(t, s, soon, 10); len(got) != 1 || got[0] != "@own:d.org" {
			t.Errorf("claimed %v, want the user who had a wait of their own", got)
		}
		if n, err := s.TryNow(t.Context(), "@nobody:c.org", soon); n != 0 || err != nil {
			t.Errorf("%d of nobody's (%v)", n, err)
		}
		if got := claim(t, s, soon, 10); len(got) != 0 {
			t.Errorf("claimed %v: c.org was not to be hurried", got)
		}
	})
}

// Who only looks must leave a database as it is: an older freshen may still have to start on it.
func TestCheckPostgresChangesNothing(t *testing.T) {
	database := storetest.Shared(t).NewDatabase(t)
	for range 2 {
		if err := store.CheckPostgres(t.Context(), database); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("pgx", database.String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var tables int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables were made (%v)", tables, err)
	}
	gone := *database
	gone.Path = "/no_such_database"
	if err := store.CheckPostgres(t.Context(), &gone); err == nil || !strings.Contains(err.Error(), "no_such_database") {
		t.Errorf("a database that is not there: %v", err)
	}
}
