package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store"
)

func idle(string) bool { return false }

func claimDeliveries(t *testing.T, s *store.Store, now time.Time, busy func(string) bool, running, places int) []store.Delivery {
	t.Helper()
	claimed, err := s.ClaimDeliveries(t.Context(), now, time.Minute, busy, running, places)
	if err != nil {
		t.Fatal(err)
	}
	return claimed
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func undelivered(t *testing.T, s *store.Store) []store.Delivery {
	t.Helper()
	all, err := s.Undelivered(t.Context(), 10_000)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A failure means that the homeserver is never told of a list whose requester was told that all is well, or is told of an
// older one alone.
func TestDeliveries(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		ctx := t.Context()
		must(t, s.OweDelivery(ctx, "@bob:b.org", true, start, start.Add(time.Minute)))
		if claimed := claimDeliveries(t, s, start, idle, 0, 4); len(claimed) != 0 {
			t.Errorf("claimed before it is due: %+v", claimed)
		}
		must(t, s.HastenDelivery(ctx, "@bob:b.org", start))
		claimed := claimDeliveries(t, s, start, idle, 0, 4)
		if len(claimed) != 1 || claimed[0].Target != "@bob:b.org" || claimed[0].Destination != "b.org" || !claimed[0].Loose || claimed[0].Reason != "" {
			t.Fatalf("%+v", claimed)
		}
		if again := claimDeliveries(t, s, start.Add(59*time.Second), idle, 0, 4); len(again) != 0 {
			t.Errorf("claimed twice: %+v", again)
		}
		// It is fetched anew before the outcome is there.
		must(t, s.OweDelivery(ctx, "@bob:b.org", false, start.Add(time.Second), start.Add(time.Second)))
		must(t, s.SettleDelivery(ctx, claimed[0]))
		late := claimed[0]
		late.Reason = "not_fetched"
		must(t, s.PutOffDelivery(ctx, late))
		claimed = claimDeliveries(t, s, start.Add(time.Second), idle, 0, 4)
		if len(claimed) != 1 || claimed[0].Gen != 2 || claimed[0].Loose || claimed[0].Reason != "" {
			t.Fatalf("the newer one is lost: %+v", claimed)
		}
		if all := undelivered(t, s); len(all) != 0 {
			t.Errorf("what was not tried is shown as not delivered: %+v", all)
		}

		d := claimed[0]
		d.DueAt, d.Tries, d.Reason, d.Sentence = start.Add(time.Hour), 1, "not_fetched", "It backs off."
		must(t, s.PutOffDelivery(ctx, d))
		if all := undelivered(t, s); len(all) != 1 || all[0].Sentence != "It backs off." || all[0].Tries != 1 || !all[0].Since.Equal(start.Add(time.Second)) || !all[0].DueAt.Equal(start.Add(time.Hour)) {
			t.Errorf("%+v", all)
		}
		// The administrator wants it tried now; and then it turns out that trying helps nothing.
		if n, err := s.TryUndelivered(ctx, "", "b.org", start.Add(time.Minute)); n != 1 || err != nil {
			t.Errorf("%d are tried (%v)", n, err)
		}
		d = claimDeliveries(t, s, start.Add(time.Minute), idle, 0, 4)[0]
		d.DueAt = time.Time{}
		must(t, s.PutOffDelivery(ctx, d))
		if claimed := claimDeliveries(t, s, start.Add(1000*time.Hour), idle, 0, 4); len(claimed) != 0 {
			t.Errorf("tried though that changes nothing: %+v", claimed)
		}
		if b, err := s.Backlog(ctx); err != nil || b.Undelivered != 1 || b.Debts != 0 {
			t.Errorf("%+v (%v)", b, err)
		}
		// A refresh tries again, and the hole stands since it was found first.
		must(t, s.OweDelivery(ctx, "@bob:b.org", false, start.Add(time.Hour), start.Add(time.Hour)))
		if all := undelivered(t, s); len(all) != 1 || !all[0].Since.Equal(start.Add(time.Second)) || !all[0].AskedAt.Equal(start.Add(time.Hour)) {
			t.Errorf("%+v", all)
		}
		must(t, s.SettleDelivery(ctx, claimDeliveries(t, s, start.Add(time.Hour), idle, 0, 4)[0]))
		if all := undelivered(t, s); len(all) != 0 {
			t.Errorf("it is shown after it was delivered: %+v", all)
		}
	})
}

// A failure means that a server whose users keep the homeserver busy holds up the news of all others.
func TestDeliveriesOfOneServerAreOneAtATime(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		for i := range 5 {
			must(t, s.OweDelivery(t.Context(), id.UserID(fmt.Sprintf("@u%d:slow.org", i)), false, start, start))
		}
		must(t, s.OweDelivery(t.Context(), "@bob:b.org", false, start.Add(time.Second), start.Add(time.Second)))
		now := start.Add(2 * time.Second)
		if claimed := claimDeliveries(t, s, now, idle, 0, 1); len(claimed) != 1 || claimed[0].Destination != "slow.org" {
			t.Errorf("%+v", claimed)
		}
		slow := func(destination string) bool { return destination == "slow.org" }
		if claimed := claimDeliveries(t, s, now, slow, 1, 3); len(claimed) != 1 || claimed[0].Target != "@bob:b.org" {
			t.Errorf("%+v", claimed)
		}
	})
}

// A failure means that two instances have the homeserver do the same twice, or that a crash of one loses what it had in
// hand.
func TestDeliveriesOfSeveralInstances(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		stores := []*store.Store{s, s}
		if cfg.URL != nil {
			stores[1] = instance(t, cfg)
		}
		const n = 40
		for i := range n {
			must(t, s.OweDelivery(t.Context(), id.UserID(fmt.Sprintf("@u:s%d.org", i)), false, start, start))
		}
		var mu sync.Mutex
		seen := map[id.UserID]int{}
		var wg sync.WaitGroup
		for _, s := range stores {
			wg.Go(func() {
				for range n {
					claimed, err := s.ClaimDeliveries(t.Context(), start, time.Minute, idle, 0, 3)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					for _, d := range claimed {
						seen[d.Target]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for target, times := range seen {
			if times != 1 {
				t.Errorf("%s was claimed %d times", target, times)
			}
		}
		if len(seen) != n {
			t.Errorf("%d of %d were claimed", len(seen), n)
		}
		if again := claimDeliveries(t, s, start.Add(time.Minute), idle, 0, n); len(again) != n {
			t.Errorf("%d of %d are tried again when the leases have ended", len(again), n)
		}
		// On SQLite, who starts knows that nobody else has them in hand.
		must(t, s.ReleaseClaims(t.Context(), start.Add(time.Minute)))
		if again := claimDeliveries(t, s, start.Add(time.Minute), idle, 0, n); len(again) != n {
			t.Errorf("%d of %d are tried at once after a restart", len(again), n)
		}
	})
}

// A failure means that hostile servers, or users who ask for strangers, fill the disk, or that a promise gives way to one
// that is made later.
func TestDeliveriesAreBounded(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		s.BoundDeliveries(20, 10)
		target := func(i int) id.UserID { return id.UserID(fmt.Sprintf("@u%d:b.org", i)) }
		for i := range 15 {
			must(t, s.OweDelivery(t.Context(), target(i), false, start.Add(time.Duration(i)*time.Second), start))
			must(t, s.PutOffDelivery(t.Context(), store.Delivery{Target: target(i), Gen: 1, Reason: "no_devices"}))
		}
		all := undelivered(t, s)
		if len(all) != 10 {
			t.Errorf("%d are remembered", len(all))
		}
		for _, d := range all {
			if d.AskedAt.Before(start.Add(5 * time.Second)) {
				t.Errorf("%s is remembered in place of a newer one", d.Target)
			}
		}
		for i := range 20 {
			must(t, s.OweDelivery(t.Context(), target(100+i), false, start, start))
		}
		if err := s.OweDelivery(t.Context(), "@bob:b.org", false, start, start); !errors.Is(err, store.ErrManyDeliveries) {
			t.Errorf("one too many is promised: %v", err)
		}
		must(t, s.OweDelivery(t.Context(), target(100), false, start, start))
		if n, err := s.ForgetUndelivered(t.Context(), "", "b.org"); n != 10 || err != nil {
			t.Errorf("%d are forgotten (%v)", n, err)
		}
		must(t, s.Prune(t.Context(), start.Add(100*24*time.Hour)))
		must(t, s.OweDelivery(t.Context(), "@bob:b.org", false, start, start))
	})
}
