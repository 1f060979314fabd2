package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

// A user must read when a contact's list was last fetched and when it is tried next, and nothing of people whom they do
// not ask about.
func TestStandings(t *testing.T) {
	each(t, func(t *testing.T, cfg store.Config) {
		s := instance(t, cfg)
		now := start.Add(time.Minute)
		fetched, err := freshen.ParseDeviceList([]byte(`{"user_id":"@kept:b.org","stream_id":1,"devices":[]}`), "@kept:b.org")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Keep(t.Context(), store.Fetched{List: fetched, At: start, Requesters: []id.UserID{"@carol:a.org"}}); err != nil {
			t.Fatal(err)
		}
		fails(t, s, "@bob:c.org", start, start.Add(3*time.Minute), start.Add(2*time.Minute))
		fails(t, s, "@late:d.org", start, time.Time{}, start)

		asked := []id.UserID{"@kept:b.org", "@bob:c.org", "@late:d.org", "@stranger:e.org", "@kept:b.org", `@"odd\:f.org`}
		got, err := s.Standings(t.Context(), "@alice:a.org", asked, now)
		if err != nil {
			t.Fatal(err)
		}
		want := map[id.UserID]store.Standing{
			"@kept:b.org": {Standing: freshen.Standing{Fetched: true, FetchedAgo: time.Minute}},
			"@bob:c.org":  {Standing: freshen.Standing{Owed: &freshen.Owed{Reason: freshen.ReasonConnect, RetryAfter: 2 * time.Minute}}, Asked: true},
			"@late:d.org": {Standing: freshen.Standing{Owed: &freshen.Owed{Reason: freshen.ReasonConnect}}, Asked: true},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}

		claimed, err := s.Claim(t.Context(), now, time.Minute, "lease", store.Places{Fine: 10})
		if err != nil || len(claimed) != 1 {
			t.Fatalf("%d claimed (%v)", len(claimed), err)
		}
		got, err = s.Standings(t.Context(), "@carol:a.org", []id.UserID{"@late:d.org", "@kept:b.org"}, now)
		if err != nil {
			t.Fatal(err)
		}
		if one := got["@late:d.org"]; one.Owed == nil || !one.Owed.Running || one.Asked {
			t.Errorf("what is being tried: %+v", one)
		}
		if one := got["@kept:b.org"]; !one.Asked {
			t.Errorf("who has asked: %+v", one)
		}
		if none, err := s.Standings(t.Context(), "@alice:a.org", nil, now); err != nil || len(none) != 0 {
			t.Errorf("of nobody: %v (%v)", none, err)
		}
	})
}
