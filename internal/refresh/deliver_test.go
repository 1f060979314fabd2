package refresh_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// herald is a homeserver that is to announce lists itself. debts counts what is owed at the moment of a mark.
type herald struct {
	mu     sync.Mutex
	away   bool
	debts  func() int
	events []string
}

func (h *herald) Mark(context.Context, *freshen.DeviceList) error {
	owed := h.debts()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.away:
		h.events = append(h.events, "away")
		return errors.New("its database is away")
	case owed > 0:
		h.events = append(h.events, "mark, owed")
	default:
		h.events = append(h.events, "mark")
	}
	return nil
}

func (h *herald) Deliver(_ context.Context, target id.UserID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, "deliver "+string(target))
}

func (h *herald) isAway(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = away
}

func (h *herald) requireSaw(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.events, want) {
		t.Errorf("the homeserver saw %q, want %q", h.events, want)
	}
	h.events = nil
}

// A failure means that a client is promised news which never comes where freshen is not before /sync: the homeserver must
// know before the promise is made, and before a debt is paid.
func TestTheHomeserverIsToldBeforeAnythingIsPromised(t *testing.T) {
	h := &herald{}
	within(t, func(c *settings) { c.Deliverer = h }, func(t *testing.T, b *bed) {
		h.debts = b.debts
		if err := b.refresh("@a:a.example", bob); err != nil {
			t.Fatal(err)
		}
		h.requireSaw(t, "mark", "deliver "+string(bob))

		time.Sleep(time.Minute)
		if !b.engine.Again(t.Context(), bob) {
			t.Error("the overlay's refetch failed")
		}
		h.requireSaw(t)

		time.Sleep(time.Minute)
		h.isAway(true)
		if code := codeOf(b.refresh("@a:a.example", bob)); code != freshen.CodeHomeserverDown {
			t.Errorf("the requester is told %q", code)
		}
		h.requireSaw(t, "away")

		// A debt stands until the homeserver could be told.
		b.does(down)
		if code := codeOf(b.refresh("@a:a.example", bob)); code != freshen.CodeRemote {
			t.Errorf("the requester is told %q", code)
		}
		b.does(nil)
		defer b.works()()
		time.Sleep(35 * time.Second)
		h.requireSaw(t, "away")
		if b.debts() != 1 {
			t.Fatalf("%d debts, though the homeserver does not know", b.debts())
		}
		h.isAway(false)
		time.Sleep(15 * time.Second)
		h.requireSaw(t, "mark, owed", "deliver "+string(bob))
		if b.debts() != 0 {
			t.Errorf("%d debts are left", b.debts())
		}
	})
}
