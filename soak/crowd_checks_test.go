//go:build unix

package soak

import (
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// A checker of crowds that finds nothing proves nothing: here is one that was told all as it should be, and what is wrong
// with others.
func TestTheCrowdsCheckFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const (
		alice, carol     id.UserID = "@alice:example.org", "@carol:example.org"
		target, somebody id.UserID = "@target:b.example", "@somebody:c.example"
	)
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	sync := func(sent, received int, since, next string, changed ...id.UserID) exchange {
		return exchange{via: "a", since: since, next: next, sent: at(sent), received: at(received), ended: at(received), changed: changed}
	}
	queried := func(sent, received int) queriedKeys {
		return queriedKeys{via: "a", sent: at(sent), received: at(received), users: []id.UserID{target}}
	}
	// Alice's list of target changes at 100; she, who shares a room with them, is told by the poll that waits, and comes
	// with its token.
	good := func() *crowdClient {
		return &crowdClient{user: alice, device: "PHONE", exchanges: []exchange{
			sync(0, 50, "", "s1"), sync(60, 120, "s1", "s2", target), sync(130, 7000, "s2", "s3"), sync(7010, 9000, "s3", "s4"),
		}}
	}
	for _, test := range []struct {
		name      string
		edit      func(*crowdClient)
		instances int
		want      string // in a complaint; "" for none
	}{
		{"nothing", func(*crowdClient) {}, 1, ""},
		{"a device that is never told", func(c *crowdClient) { c.exchanges[1].changed = nil }, 1, "never told of the change"},
		{"one whose only answer was lost", func(c *crowdClient) { c.exchanges[1].lost = true }, 1, "never told of the change"},
		{"one that was told before the change alone", func(c *crowdClient) {
			c.exchanges[0].changed, c.exchanges[1].changed = c.exchanges[1].changed, nil
		}, 1, "before anything was announced"},
		{"one that asked for the keys in place", func(c *crowdClient) {
			c.exchanges[1].changed, c.queries = nil, []queriedKeys{queried(130, 140)}
		}, 1, ""},
		{"one that asked for them too early", func(c *crowdClient) {
			c.exchanges[1].changed, c.queries = nil, []queriedKeys{queried(90, 95)}
		}, 1, "never told of the change"},
		{"one that has signed out", func(c *crowdClient) { c.exchanges, c.out = c.exchanges[:1], at(60) }, 1, ""},
		{"one that is told long after it has signed out", func(c *crowdClient) {
			c.out = at(60)
			c.exchanges[3].changed = []id.UserID{target}
		}, 1, "signed out"},
		{"the same again, after its token came", func(c *crowdClient) { c.exchanges[2].changed = []id.UserID{target} }, 1, "acknowledged"},
		{"the same much later", func(c *crowdClient) { c.exchanges[3].changed = []id.UserID{target} }, 1, "acknowledged"},
		{"the same by two instances, of whose acknowledgements that is more than a few", func(c *crowdClient) {
			c.exchanges[3].changed = []id.UserID{target}
		}, 2, "once more"},
		{"the same again after a key query", func(c *crowdClient) {
			c.exchanges[1].next, c.exchanges[2].since, c.exchanges[2].next, c.exchanges[3].since = "s1", "s1", "s1", "s1"
			c.queries = []queriedKeys{queried(125, 128)}
			c.exchanges[3].changed = []id.UserID{target}
		}, 1, "acknowledged"},
		{"the same again since the first was lost", func(c *crowdClient) {
			c.exchanges = []exchange{sync(0, 50, "", "s1"), sync(60, 120, "s1", "s2", target), sync(130, 200, "s1", "s3", target), sync(210, 9000, "s3", "s4")}
			c.exchanges[1].lost = true
		}, 1, ""},
		{"three times under a token that stands still", func(c *crowdClient) {
			c.exchanges = []exchange{
				sync(0, 50, "", "s1"), sync(60, 120, "s1", "s1", target), sync(130, 200, "s1", "s1", target), sync(210, 300, "s1", "s1", target),
				sync(310, 9000, "s1", "s2"),
			}
		}, 1, ""},
		{"four times under it", func(c *crowdClient) {
			c.exchanges = []exchange{
				sync(0, 50, "", "s1"), sync(60, 120, "s1", "s1", target), sync(130, 200, "s1", "s1", target), sync(210, 300, "s1", "s1", target),
				sync(310, 400, "s1", "s1", target),
			}
		}, 1, "acknowledged"},
		{"again, where another connection's answer may have had that token", func(c *crowdClient) {
			c.exchanges[2].changed = []id.UserID{target}
			c.exchanges = append(c.exchanges, sync(70, 110, "s1", "s2"))
		}, 1, ""},
		{"again, where a lost answer had that token that named them for what was before", func(c *crowdClient) {
			c.exchanges[3].changed = []id.UserID{target}
			c.exchanges = append([]exchange{sync(51, 55, "s1", "s2", target)}, c.exchanges...)
			c.exchanges[0].lost = true
			c.queries = []queriedKeys{queried(56, 58)}
			c.w.changed = append(c.w.changed, change{target: target, by: alice, from: at(10), to: at(15)})
		}, 1, ""},
		{"somebody who does not concern the user", func(c *crowdClient) { c.exchanges[3].changed = []id.UserID{somebody} }, 1, "does not concern"},
		{"the same by /keys/changes", func(c *crowdClient) { c.asked = []id.UserID{somebody} }, 1, "does not concern"},
		{"a change that another user alone was told of", func(c *crowdClient) { c.user = carol }, 1, "does not concern"},
	} {
		c := good()
		w := &crowd{
			clients: []*crowdClient{c}, instances: make([]*instance, test.instances), members: map[id.UserID]map[id.UserID]bool{alice: {target: true}},
			changed: []change{{target: target, by: "@dave:example.org", from: at(100), to: at(115)}},
		}
		c.w = w
		test.edit(c)
		h := &history{fetches: map[id.UserID][]fetch{target: {{target: target, by: "ax1", arrived: at(105), ended: at(110), answered: true, ok: true, list: 1}}}}
		complaints, _ := w.check(h)
		got := strings.Join(complaints, "\n")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: the check says %q, want %q", test.name, got, test.want)
		}
	}
}
