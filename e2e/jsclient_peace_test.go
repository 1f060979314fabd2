//go:build goolm

package e2e

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"
)

// requirePeace requires that freshen told Alice's client once of one change, that the client asked no more often than it was
// told, and that nothing else was asked of the homeserver because of it.
func (s *story) requirePeace(t *testing.T) {
	bob := s.phone.UserID()
	defer func() {
		if t.Failed() {
			t.Logf("The client has sent, from the last moment of quiet on:\n%s", s.counter.story(s.quiet))
		}
	}()
	told := s.counter.matching(s.quiet, tellsOf(bob))
	if len(told) == 0 {
		t.Fatal("Alice's client was never told of Bob")
	}
	t.Logf("told %d times, %d of them by the homeserver; %d /keys/query, %d /sync", len(told), s.toldByHomeserver(), s.queries(bob), s.sent("GET sync"))
	// Dendrite announces by itself what it finds out when it is asked for Bob's keys.
	if byDendrite := s.toldByHomeserver(); len(told)-byDendrite != 1 {
		t.Errorf("the client was told of Bob %d times, %d of them by the homeserver: freshen should tell once", len(told), byDendrite)
	}
	s.requireNoMoreQueriesThanTold(t)
	if uploads := s.sent("POST keys/upload"); uploads > 0 {
		t.Errorf("the client has uploaded keys %d times", uploads)
	}
	// Each message, each sharing of its key and each change may end a poll.
	if most, syncs := 3*(s.said+len(told))+3, s.sent("GET sync"); syncs > most {
		t.Errorf("the client has polled %d times; %d messages and %d announcements explain at the most %d", syncs, s.said, len(told), most)
	}
	s.requireOneQueryWithoutNews(t)
}

// requireOneQueryWithoutNews refreshes a list that is fresh: that is announced to Alice alone, once, and costs one query.
func (s *story) requireOneQueryWithoutNews(t *testing.T) {
	t.Helper()
	bob := s.phone.UserID()
	from, told, byDendrite, asked := s.counter.mark(), len(s.counter.matching(s.quiet, tellsOf(bob))), s.toldByHomeserver(), s.queries(bob)
	requireAccepted(t, newCaller(t, s.world.Freshen.URL, s.alice.Token()).refresh(t, s.ctx, bob.String()))
	s.must(t, s.counter.await(s.ctx, from, 1, asksFor(bob)))
	for range 3 {
		s.reads(t, s.alice, s.send(t, s.phone, "And now?"))
	}
	if got := len(s.counter.matching(s.quiet, tellsOf(bob))) - told; got != 1 {
		t.Errorf("a refresh without news was told %d times", got)
	}
	if got := s.toldByHomeserver() - byDendrite; got != 0 {
		t.Errorf("the homeserver told of a refresh without news %d times", got)
	}
	if got := s.queries(bob) - asked; got != 1 {
		t.Errorf("a refresh without news cost %d /keys/query", got)
	}
	if uploads := s.sent("POST keys/upload"); uploads > 0 {
		t.Errorf("after a refresh without news the client has uploaded keys %d times", uploads)
	}
}

// toldByHomeserver counts the answers in which the homeserver itself has named Bob to freshen.
func (s *story) toldByHomeserver() int {
	return s.upstream.heard(s.quietUpstream, s.phone.UserID())
}

// requireNoMoreQueriesThanTold holds for everybody whom the client has asked for.
func (s *story) requireNoMoreQueriesThanTold(t *testing.T) {
	t.Helper()
	asked := map[id.UserID]int{}
	for _, query := range s.counter.matching(s.refreshed, isQuery) {
		for _, user := range query.users {
			asked[user]++
		}
	}
	for user, queries := range asked {
		if told := len(s.counter.matching(s.quiet, tellsOf(user))); queries > told {
			t.Errorf("the client was told of %s %d times, and asked %d times", user, told, queries)
		}
	}
}

func isQuery(r *request) bool { return r.route == "POST keys/query" }

// queries counts those for user since the refresh, answered or not.
func (s *story) queries(user id.UserID) int {
	return len(s.counter.matching(s.refreshed, func(r *request) bool { return isQuery(r) && slices.Contains(r.users, user) }))
}

// sent counts the requests to a route since the refresh.
func (s *story) sent(route string) int {
	return len(s.counter.matching(s.refreshed, func(r *request) bool { return r.route == route }))
}
