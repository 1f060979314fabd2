//go:build goolm

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/testbed"
	"freshen/internal/testbed/chromium"
	"freshen/internal/testbed/jsclient"
	"freshen/internal/testbed/testbedtest"
)

// syncsFor is how long each client syncs on after it was told of a change, while people talk.
const syncsFor = 10 * time.Second

// TestEncryptingClients takes clients of three makes through the whole story, each with users of its own, and then watches
// what they send. A failure means that people who use that client are not cured by a refresh, or that freshen makes it
// load the homeserver.
func TestEncryptingClients(all *testing.T) {
	all.Parallel()
	world := testbedtest.Own(all, testbed.Options{Freshen: true, ManyRefreshes: true})
	upstream := countUpstream(all, world)
	mautrix := withGo(all.Cleanup)
	var cured []*story
	var page *story // the one of cured whose Alice is in a browser
	all.Run("mautrix-go", func(t *testing.T) {
		s := newStory(t, all, world, upstream)
		s.tell(t, mautrix, mautrix, mautrix)
		cured = append(cured, s)
	})
	all.Run("matrix-js-sdk in Node.js", func(t *testing.T) {
		js := withJS(startNode(t, all))
		s := newStory(t, all, world, upstream)
		s.tell(t, js, mautrix, js)
		cured = append(cured, s)
	})
	all.Run("matrix-js-sdk in Chromium", func(t *testing.T) {
		s := newStory(t, all, world, upstream)
		nginx := startNginx(t, all, world, s.counter.URL)
		s.aliceURL = nginx.URL
		s.tell(t, withJS(startBrowser(t, all, nginx.key)), mautrix, mautrix)
		nginx.requireBrowsersWay(t, s.phone.UserID().String())
		cured, page = append(cured, s), s
	})
	talk(all, cured)
	for _, s := range cured {
		all.Run("what "+s.name+" sends", s.requirePeace)
		all.Run("a lost deletion, with "+s.name, s.forgetPhone)
	}
	if page != nil {
		all.Run("a page that was closed meanwhile", func(t *testing.T) { page.reopen(t, mautrix) })
	}
}

// countUpstream has freshen ask its homeserver through a counter.
func countUpstream(t *testing.T, world *testbed.World) *counter {
	t.Helper()
	c, ctx := newCounter(t, world.A.URL), testbedtest.Context(t, patience)
	config, err := os.ReadFile(world.Freshen.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(world.Freshen.ConfigFile, bytes.ReplaceAll(config, []byte(world.A.URL), []byte(c.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(world.Freshen.Stop(ctx), world.Freshen.Start(ctx)); err != nil {
		t.Fatal(err)
	}
	return c
}

// startNode starts Node.js, which ends with all.
func startNode(t, all *testing.T) *jsclient.Host {
	t.Helper()
	needJS(t, false)
	host, err := jsclient.Node(t.Context(), all.TempDir(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	closeWith(all, host)
	return host
}

// startBrowser starts Chromium, which ends with all.
func startBrowser(t, all *testing.T, trustedKey string) *jsclient.Host {
	t.Helper()
	needJS(t, true)
	ctx := testbedtest.Context(t, patience)
	host, err := jsclient.Browser(ctx, all.TempDir(), []string{trustedKey}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	closeWith(all, host)
	return host
}

func closeWith(all *testing.T, host *jsclient.Host) {
	all.Cleanup(func() {
		if err := host.Close(); err != nil {
			all.Error(err)
		}
	})
}

// needJS skips the test where there is no JavaScript client, or no browser if it needs one; with CI set it fails.
func needJS(t *testing.T, browser bool) {
	t.Helper()
	_, err := jsclient.Install(t.Context(), os.Stderr)
	if err == nil && browser {
		_, err = chromium.Find()
	}
	testbedtest.Require(t, "a JavaScript client", err)
}

// story is that of one Alice, on A through freshen, and one Bob, on B.
type story struct {
	// name says what Alice's client is, as a part of a test's name.
	name  string
	world *testbed.World
	ctx   context.Context
	// counter stands between Alice's client and freshen, upstream between freshen and A.
	counter, upstream *counter
	// aliceURL is where Alice's client connects to, counter or what stands before it.
	aliceURL string

	alice, phone, laptop device
	room                 id.RoomID
	// quiet is the number of Alice's first request after she had heard all about Bob that her homeserver knew, quietUpstream
	// that of the first one upstream; refreshed is that of her refresh, which was asked for at asked.
	quiet, quietUpstream, refreshed int
	asked                           time.Time
	// said is how many messages were sent since then.
	said int
}

func newStory(t, all *testing.T, world *testbed.World, upstream *counter) *story {
	t.Helper()
	c := newCounter(all, world.Freshen.URL)
	_, name, _ := strings.Cut(t.Name(), "/")
	return &story{name: name, world: world, upstream: upstream, ctx: testbedtest.Context(all, 5*time.Minute), counter: c, aliceURL: c.URL}
}

// tell goes from a shared room over a stale list to a message that decrypts again.
func (s *story) tell(t *testing.T, forAlice, forPhone, forLaptop signsIn) {
	t.Helper()
	s.meet(t, forAlice, forPhone)
	s.goStale(t, forLaptop)
	unreadable := s.send(t, s.alice, "Can your laptop read this already?")
	s.reads(t, s.phone, unreadable)
	s.must(t, s.laptop.AwaitUndecryptable(s.ctx, unreadable))

	s.refreshed, s.said, s.asked = s.counter.mark(), 0, time.Now()
	sentence, err := s.alice.Refresh(s.ctx, s.phone.UserID())
	s.must(t, err)
	answered := time.Since(s.asked)
	s.must(t, s.counter.await(s.ctx, s.refreshed, 1, asksFor(s.phone.UserID())))
	s.must(t, s.alice.AwaitVouchedFor(s.ctx, s.phone.UserID(), s.laptop.DeviceID()))
	t.Logf("%s: %q after %s, Bob's laptop known and cross-signed after %s", s.alice.Make(), sentence,
		answered.Round(time.Millisecond), time.Since(s.asked).Round(time.Millisecond))

	s.reads(t, s.laptop, s.send(t, s.alice, "Can your laptop read this?"))
	s.must(t, s.laptop.AwaitUndecryptable(s.ctx, unreadable)) // what was sent before stays as it is
}

// meet makes Alice and Bob, who share an encrypted room and have talked.
func (s *story) meet(t *testing.T, forAlice, forPhone signsIn) {
	t.Helper()
	number := people.Add(1)
	var err error
	s.alice, err = forAlice(s.ctx, s.aliceURL, fmt.Sprint("alice", number), "Alice's device", true)
	s.must(t, err)
	s.phone, err = forPhone(s.ctx, s.world.B.URL, fmt.Sprint("bob", number), "Bob's phone", true)
	s.must(t, err)
	s.must(t, s.alice.StartSync(s.ctx))
	s.must(t, s.phone.StartSync(s.ctx))
	s.room, err = s.alice.CreateEncryptedRoom(s.ctx, s.phone.UserID())
	s.must(t, err)
	s.must(t, s.phone.Join(s.ctx, s.room, s.world.A.ServerName))
	s.must(t, s.alice.AwaitMember(s.ctx, s.room, s.phone.UserID()))
	s.must(t, s.phone.AwaitMember(s.ctx, s.room, s.alice.UserID()))
	s.reads(t, s.phone, s.send(t, s.alice, "Hello Bob"))
	s.reads(t, s.alice, s.send(t, s.phone, "Hello Alice"))

	// A homeserver tells changes in their order: when Alice has heard of one of her own, she has heard all about Bob.
	s.quiet = s.counter.mark()
	s.must(t, s.alice.SetUpCrossSigning(s.ctx))
	s.must(t, s.counter.await(s.ctx, s.quiet, 1, tellsOf(s.alice.UserID())))
	s.quiet, s.quietUpstream = s.counter.mark(), s.upstream.mark()
}

// goStale lets Bob sign in on a laptop and set up cross-signing there, while the link loses the updates.
func (s *story) goStale(t *testing.T, forLaptop signsIn) {
	t.Helper()
	s.world.Link.LoseDeviceLists(true)
	defer s.world.Link.LoseDeviceLists(false)
	localpart, _, err := s.phone.UserID().Parse()
	s.must(t, err)
	s.laptop, err = forLaptop(s.ctx, s.world.B.URL, localpart, "Bob's laptop", false)
	s.must(t, err)
	s.must(t, s.laptop.StartSync(s.ctx))
	s.must(t, s.laptop.SetUpCrossSigning(s.ctx))
	// One update when the keys are published, one when they sign the laptop.
	s.must(t, s.world.Link.AwaitLost(s.ctx, 2, func(edu testbed.LostEDU) bool {
		return edu.Type == "m.signing_key_update" && edu.UserID == string(s.phone.UserID())
	}))
	s.reads(t, s.alice, s.send(t, s.phone, "I have a new laptop"))
	known, err := s.alice.Known(s.ctx, s.phone.UserID())
	s.must(t, err)
	if got := slices.Collect(maps.Keys(known)); len(got) != 1 || got[0] != s.phone.DeviceID() {
		t.Fatalf("Alice should know nothing of Bob's laptop yet, and knows %v", got)
	}
	if told := s.counter.matching(s.quiet, tellsOf(s.phone.UserID())); len(told) > 0 {
		t.Fatalf("Alice was told of an update that was lost:\n%s", s.counter.story(s.quiet))
	}
}

// talk lets the Bobs talk and the Alices read until each of them has synced for long enough.
func talk(t *testing.T, stories []*story) {
	t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for slices.ContainsFunc(stories, func(s *story) bool { return time.Since(s.asked) < syncsFor }) {
		for _, s := range stories {
			s.reads(t, s.alice, s.send(t, s.phone, "Still there?"))
		}
		<-tick.C
	}
}

// forgetPhone lets Bob sign his phone out, which is lost on the link; a refresh brings it home. A failure means that people go
// on encrypting for a phone that was sold.
func (s *story) forgetPhone(t *testing.T) {
	s.world.Link.LoseDeviceLists(true)
	defer s.world.Link.LoseDeviceLists(false)
	s.must(t, s.phone.StopSync(s.ctx))
	s.must(t, s.laptop.DeleteDevice(s.ctx, s.phone.DeviceID()))
	s.must(t, s.world.Link.AwaitLost(s.ctx, 1, func(edu testbed.LostEDU) bool {
		return edu.Deleted && edu.DeviceID == string(s.phone.DeviceID())
	}))
	from := s.counter.mark()
	sentence, err := s.alice.Refresh(s.ctx, s.phone.UserID())
	s.must(t, err)
	t.Logf("%s: %q", s.name, sentence)
	s.must(t, s.counter.await(s.ctx, from, 1, asksFor(s.phone.UserID())))
	s.must(t, s.alice.AwaitVouchedFor(s.ctx, s.phone.UserID(), s.laptop.DeviceID()))
	known, err := s.alice.Known(s.ctx, s.phone.UserID())
	s.must(t, err)
	if got := slices.Collect(maps.Keys(known)); len(got) != 1 || got[0] != s.laptop.DeviceID() {
		t.Errorf("Alice should know Bob's laptop alone, and knows %v", got)
	}
}

func (s *story) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\nThe client has sent:\n%s\nThe end of freshen's log:\n%s", err, s.counter.story(s.quiet), s.world.Freshen.LogTail())
	}
}

func (s *story) send(t *testing.T, from device, text string) id.EventID {
	t.Helper()
	s.said++
	event, err := from.Send(s.ctx, s.room, text)
	s.must(t, err)
	return event
}

func (s *story) reads(t *testing.T, to device, event id.EventID) {
	t.Helper()
	_, err := to.AwaitMessage(s.ctx, event)
	s.must(t, err)
}
