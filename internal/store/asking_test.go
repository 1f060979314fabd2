package store_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

// asked puts questions to the other instances, and waits until each is listening.
func asked(t *testing.T, s *store.Store, questions ...string) store.Replies {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		once, done := context.WithTimeout(ctx, 5*time.Second)
		replies, err := s.Ask(once, questions)
		done()
		if err != nil {
			t.Fatal(err)
		}
		if !replies.Silent || ctx.Err() != nil {
			return replies
		}
	}
}

// An instance is not believed to know all before each that may have answered a client has been asked: one that runs
// answers, one that has left says when, and one that is silent is not taken for none.
func TestInstancesAskEachOther(t *testing.T) {
	t.Parallel()
	cfg := shared(t)
	first := instance(t, cfg)
	if got := asked(t, first, "alone?"); got.Left >= 0 || len(got.Answers[0]) != 0 {
		t.Errorf("an instance alone was answered %+v", got)
	}
	second, third := instance(t, cfg), instance(t, cfg)
	second.OnAsked(func(question string) string { return "second: " + question })
	third.OnAsked(func(question string) string {
		if question == "much?" {
			return strings.Repeat("x", store.LongestMessage+1)
		}
		return "third: " + question
	})
	got := asked(t, first, "a b", "much?")
	for _, answers := range got.Answers {
		slices.Sort(answers)
	}
	if want := []string{"second: a b", "third: a b"}; !slices.Equal(got.Answers[0], want) {
		t.Errorf("answered %q, want %q", got.Answers[0], want)
	}
	if want := []string{"", "second: much?"}; !slices.Equal(got.Answers[1], want) {
		t.Errorf("answered %q, want %q", got.Answers[1], want)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if got := asked(t, first, "still?"); got.Left < 0 || len(got.Answers[0]) != 1 {
		t.Errorf("when one of two has left: %+v", got)
	}
	ended, cancel := context.WithCancel(t.Context())
	third.OnAsked(func(string) string { cancel(); <-t.Context().Done(); return "" }) // it hangs
	// The end may come before the database has said that it took the question.
	if got, err := first.Ask(ended, []string{"there?"}); err == nil && !got.Silent {
		t.Errorf("one that hangs counts for nothing: %+v", got)
	}
}

// What one instance has saved of devices, another reads, of many at a time.
func TestPositionsOfManyDevices(t *testing.T) {
	t.Parallel()
	both := instances(t, 2)
	odd := freshen.Requester{UserID: "@alice:a.org", DeviceID: "\x00"} // no text to Postgres
	phone := freshen.Requester{UserID: "@alice:a.org", DeviceID: "PHONE"}
	if err := both[0].SavePositions(t.Context(), []store.DevicePosition{
		{UserID: phone.UserID, DeviceID: phone.DeviceID, Acked: 5, Above: map[id.UserID]int64{"@bob:b.org": 9}, SeenAt: start},
	}); err != nil {
		t.Fatal(err)
	}
	all, err := both[1].DevicePositions(t.Context(), []freshen.Requester{odd, phone, {UserID: "@nobody:a.org"}})
	if err != nil || len(all) != 3 || all[0].Acked+all[2].Acked != 0 {
		t.Fatalf("read %+v (%v)", all, err)
	}
	if got := all[1]; got.Acked != 5 || got.Above["@bob:b.org"] != 9 || !got.SeenAt.Equal(start) {
		t.Errorf("read %+v", got)
	}
}
