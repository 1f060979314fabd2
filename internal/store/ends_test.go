package store_test

import (
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store"
)

// Who was promised a retry of somebody they have left is not to cost that server a request a day; who asks once more is
// to be promised it anew, also while it is being found out that nobody cares.
func TestADebtIsDropped(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		const alice, carol = id.UserID("@alice:a.org"), id.UserID("@carol:a.org")
		owe(t, s, "@bob:b.org", alice, start, 0)
		owe(t, s, "@eve:b.org", carol, start, 0)
		for range 2 { // once more changes nothing
			if err := s.MarkPromisedShared(t.Context(), "@bob:b.org", []id.UserID{alice, carol}); err != nil {
				t.Fatal(err)
			}
		}
		promised, err := s.Promised(t.Context(), "@bob:b.org", 10)
		if err != nil || len(promised) != 1 || promised[0] != (store.Promised{UserID: alice, Shared: true}) {
			t.Errorf("promised to %v (%v)", promised, err)
		}
		debt := claims(t, s, start, 1)[0]
		if _, err := s.AskAgain(t.Context(), debt.Target, []id.UserID{carol}, start, time.Time{}, begins); err != nil {
			t.Fatal(err)
		}
		if dropped, err := s.DropDebt(t.Context(), debt, start); dropped || err != nil {
			t.Errorf("dropped %v (%v) what was asked for again", dropped, err)
		}
		debt.Gen++
		lost := debt
		lost.Lease = "another"
		if dropped, err := s.DropDebt(t.Context(), lost, start); dropped || err != nil {
			t.Errorf("dropped %v (%v) what another has claimed", dropped, err)
		}
		if dropped, err := s.DropDebt(t.Context(), debt, start); !dropped || err != nil {
			t.Errorf("dropped %v (%v)", dropped, err)
		}
		if promised, err := s.Promised(t.Context(), debt.Target, 10); err != nil || len(promised) != 0 {
			t.Errorf("still promised to %v (%v)", promised, err)
		}
		if next := claim(t, s, start, 10); len(next) != 1 || next[0] == debt.Target {
			t.Errorf("claimed %v after the probe's debt was dropped: the others wait for nothing", next)
		}
	})
}

// A dead server's debts are tried one at a time; those whose turn never comes must end too, and no younger ones.
func TestOldDebtsOfADestinationAreGivenUp(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		hour := start.Add(time.Hour)
		owe(t, s, "@tried:b.org", "@alice:a.org", start.Add(-time.Second), 0)
		owe(t, s, "@old:b.org", "@alice:a.org", start, 0)
		owe(t, s, "@young:b.org", "@alice:a.org", hour, 0)
		if got := claim(t, s, hour, 1); len(got) != 1 || got[0] != "@tried:b.org" {
			t.Fatalf("claimed %v", got)
		}
		owe(t, s, "@old:c.org", "@alice:a.org", start, 0)
		if n, err := s.GiveUp(t.Context(), "b.org", start, hour); n != 1 || err != nil {
			t.Errorf("%d given up (%v), want the old one that is not being tried", n, err)
		}
		if n, err := s.Debts(t.Context()); n != 3 || err != nil {
			t.Errorf("%d debts are left (%v)", n, err)
		}
		if promised, err := s.Promised(t.Context(), "@old:b.org", 10); err != nil || len(promised) != 0 {
			t.Errorf("still promised to %v (%v)", promised, err)
		}
	})
}

// A clock that was a year ahead, and is set right, must not have anybody wait for a year.
func TestNothingWaitsForAYear(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		ahead := start.Add(365 * 24 * time.Hour)
		owe(t, s, "@bob:b.org", "@alice:a.org", ahead, time.Hour)
		if _, err := s.AskAgain(t.Context(), "@claimed:c.org", []id.UserID{"@alice:a.org"}, ahead, time.Time{}, begins); err != nil {
			t.Fatal(err)
		}
		if len(claims(t, s, ahead, 10)) != 1 {
			t.Fatal("no claim")
		}
		if err := s.Bound(t.Context(), start, 30*time.Hour, 2*time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := claim(t, s, start.Add(2*time.Minute), 10); len(got) != 1 || got[0] != "@claimed:c.org" {
			t.Errorf("claimed %v when a claim made by the wrong clock was over", got)
		}
		if got := claim(t, s, start.Add(30*time.Hour-time.Millisecond), 10); len(got) != 1 {
			t.Errorf("claimed %v before the longest wait was over", got)
		}
		if got := claim(t, s, start.Add(31*time.Hour), 10); len(got) != 2 {
			t.Errorf("claimed %v after the longest wait", got)
		}
	})
}
