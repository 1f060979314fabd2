package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store"
)

// What is read at the start must be of one moment: an announcement above the head would be given out twice.
func TestAnnouncementsAndTheirHead(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) { testAnnouncementsAndTheirHead(t, instance(t, cfg)) })
}

func testAnnouncementsAndTheirHead(t *testing.T, s *store.Store) {
	t.Helper()
	if all, head, err := s.Announcements(t.Context()); len(all) != 0 || head != 0 || err != nil {
		t.Errorf("of nothing: %v %d %v", all, head, err)
	}
	stop := make(chan struct{})
	written := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			if err := s.AnnounceTo(context.Background(), id.UserID(fmt.Sprintf("@u%d:b.org", i%5)), []id.UserID{"@a:a.org"}, start); err != nil {
				written <- err
				return
			}
		}
	}()
	for range 200 {
		all, head, err := s.Announcements(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range all {
			if a.Position > head || i > 0 && a.Position <= all[i-1].Position {
				t.Fatalf("position %d after %d, with the head at %d", a.Position, all[max(i-1, 0)].Position, head)
			}
		}
		if n := len(all); n > 0 && all[n-1].Position != head {
			t.Fatalf("the newest is %d and the head %d", all[n-1].Position, head)
		}
	}
	close(stop)
	if err := <-written; err != nil {
		t.Error(err)
	}
	if err := s.Prune(t.Context(), start.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if all, head, err := s.Announcements(t.Context()); len(all) != 0 || head == 0 || err != nil {
		t.Errorf("pruned: %v %d %v; the head must stay", all, head, err)
	}
}
