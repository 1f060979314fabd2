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

// Changes of many callers share a commit. One that fails, as that of an instance which was paused does, must neither be
// recorded in part nor take what the others were promised with it.
func TestAChangeThatFailsTakesNothingFromTheOthers(t *testing.T) {
	t.Parallel()
	s := instances(t, 1)[0]
	const n = 100
	var all sync.WaitGroup
	for i := range n {
		target := id.UserID(fmt.Sprintf("@u%d:b.org", i))
		all.Go(func() {
			if i%5 != 0 {
				if _, err := s.AskAgain(t.Context(), target, []id.UserID{"@alice:a.org"}, start, time.Time{}, begins); err != nil {
					t.Errorf("%s: %v", target, err)
				}
				return
			}
			_, err := s.Keep(t.Context(), store.Fetched{
				List: list(t, target, "key"), At: start, Requesters: []id.UserID{"@alice:a.org"}, Token: "overtaken",
			})
			if !errors.Is(err, store.ErrSuperseded) {
				t.Errorf("%s: %v, want that it was superseded", target, err)
			}
		})
	}
	all.Wait()
	if debts, err := s.Debts(t.Context()); err != nil || debts != n-n/5 {
		t.Errorf("%d debts (%v), want %d", debts, err, n-n/5)
	}
	if lists, err := s.KeptList(t.Context(), "@u0:b.org"); err != nil || lists != nil {
		t.Errorf("a list was kept that was superseded: %v %v", lists, err)
	}
	if _, ok, err := s.NextDue(t.Context(), store.Places{Fine: 1, Failing: 1}); err != nil || !ok {
		t.Errorf("nothing is due (%v)", err)
	}
	claimed, err := s.Claim(t.Context(), start.Add(time.Second), time.Minute, "claim", store.Places{Fine: 1, Failing: 1})
	if err != nil || len(claimed) != 1 {
		t.Errorf("claimed %v %v", claimed, err)
	}
}
