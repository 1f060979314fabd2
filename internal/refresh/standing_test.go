package refresh_test

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
)

// A failure means that local users learn of each other's contacts, or that one cannot see what they were promised.
func TestWhoMayKnowHowAListStands(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		if err := b.refresh("@alice:a.example", bob); err != nil {
			t.Fatal(err)
		}
		b.does(down)
		if err := b.refresh("@alice:a.example", eve); codeOf(err) != freshen.CodeRemote {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		standing := func(who id.UserID) map[id.UserID]freshen.Standing {
			t.Helper()
			told, err := b.engine.Standing(t.Context(), freshen.Requester{UserID: who}, []id.UserID{bob, eve, "@never:b.example"}, homeserver.Credentials{})
			if err != nil {
				t.Fatal(err)
			}
			return told
		}
		hers := standing("@alice:a.example")
		if one := hers[bob]; !one.Fetched || one.FetchedAgo != 10*time.Second || one.Owed != nil {
			t.Errorf("what was fetched: %+v", one)
		}
		if one := hers[eve]; one.Fetched || one.Owed == nil || one.Owed.Reason != freshen.ReasonConnect || one.Owed.RetryAfter != 20*time.Second {
			t.Errorf("what is owed: %+v %+v", one, one.Owed)
		}
		if told := standing("@carol:a.example"); len(told) != 0 {
			t.Errorf("who shares no room and has not asked is told of %v", slices.Collect(maps.Keys(told)))
		}
		b.shares = map[id.UserID]bool{eve: true}
		if told := standing("@carol:a.example"); len(told) != 1 || told[eve].Owed == nil {
			t.Errorf("who shares a room with Eve is told %v", told)
		}
		b.deaf = errors.New("it is down")
		if _, err := b.engine.Standing(t.Context(), freshen.Requester{UserID: "@carol:a.example"}, []id.UserID{eve}, homeserver.Credentials{}); codeOf(err) != freshen.CodeHomeserverDown {
			t.Errorf("without the homeserver: %v", err)
		}
		hers = standing("@alice:a.example") // has asked, so nothing needs to be known of rooms
		if len(hers) != 2 {
			t.Errorf("without the homeserver, who has asked is told %v", hers)
		}
	})
}

// One user's page that asks in a loop must not cost the others the database.
func TestHowListsStandIsLimited(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		ask := func(who id.UserID) error {
			_, err := b.engine.Standing(t.Context(), freshen.Requester{UserID: who}, []id.UserID{bob}, homeserver.Credentials{})
			return err
		}
		var refused *freshen.Error
		for i := 0; refused == nil && i < 100; i++ {
			refused, _ = errors.AsType[*freshen.Error](ask("@alice:a.example"))
		}
		if refused == nil || refused.Code != freshen.CodeLimited || refused.RetryAfter <= 0 {
			t.Fatalf("a hundred questions at once: %v", refused)
		}
		if err := ask("@carol:a.example"); err != nil {
			t.Errorf("somebody else is refused: %v", err)
		}
		time.Sleep(refused.RetryAfter)
		if err := ask("@alice:a.example"); err != nil {
			t.Errorf("after the wait: %v", err)
		}
	})
}
