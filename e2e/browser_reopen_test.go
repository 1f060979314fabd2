//go:build goolm

package e2e

import (
	"testing"

	"freshen/internal/testbed"
)

// reopen closes Alice's page. A refresh is asked for elsewhere while it is closed; then it opens again, with the keys that it
// had and a /sync that begins anew, whose first answer has no device_lists by the specification. A failure means that who
// closes their client at the wrong moment goes on encrypting for a list of yesterday.
func (s *story) reopen(t *testing.T, forTablet signsIn) {
	page, ok := s.alice.(jsDevice)
	if !ok {
		t.Fatalf("%s is no page", s.alice.Name())
	}
	bob := s.laptop.UserID()
	s.must(t, page.StopSync(s.ctx))
	s.world.Link.LoseDeviceLists(true)
	defer s.world.Link.LoseDeviceLists(false)
	localpart, _, err := bob.Parse()
	s.must(t, err)
	tablet, err := forTablet(s.ctx, s.world.B.URL, localpart, "Bob's tablet", false)
	s.must(t, err)
	s.must(t, tablet.StartSync(s.ctx))
	s.must(t, s.world.Link.AwaitLost(s.ctx, 1, func(edu testbed.LostEDU) bool {
		return edu.HasKeys && edu.DeviceID == string(tablet.DeviceID())
	}))
	requireAccepted(t, newCaller(t, s.world.Freshen.URL, page.Token()).refresh(t, s.ctx, bob.String()))

	from := s.counter.mark()
	s.must(t, page.Reopen(s.ctx))
	if known, err := page.Known(s.ctx, bob); err != nil || len(known) != 1 {
		t.Errorf("the page should have kept what it knew of Bob's devices, and has %v (%v)", known, err)
	}
	s.must(t, page.StartSync(s.ctx))
	s.must(t, page.AwaitDevice(s.ctx, bob, tablet.DeviceID()))
	s.must(t, page.AwaitMember(s.ctx, s.room, bob))
	s.reads(t, tablet, s.send(t, page, "Can your tablet read this?"))
	t.Logf("%d /keys/query for Bob since the page is open again", len(s.counter.matching(from, asksFor(bob))))
}
