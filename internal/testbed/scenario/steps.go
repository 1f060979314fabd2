//go:build goolm

package scenario

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"freshen/internal/testbed"
	"freshen/internal/testbed/client"
)

// share is step 1.
func (s *story) share(ctx context.Context) error {
	err := s.line(ctx, "Alice on A and Bob on B share an encrypted room", func(ctx context.Context, line *Line) error {
		var err error
		if s.Alice, err = client.Register(ctx, account(s.world.Freshen.URL, "alice", "Alice's phone")); err != nil {
			return err
		}
		if s.Phone, err = client.Register(ctx, account(s.world.B.URL, "bob", "Bob's phone")); err != nil {
			return err
		}
		s.Alice.StartSync(ctx)
		s.Phone.StartSync(ctx)
		if s.Room, err = s.Alice.CreateEncryptedRoom(ctx, s.Phone.UserID()); err != nil {
			return err
		}
		line.Status = http.StatusOK
		return s.Phone.Join(ctx, s.Room, s.world.A.ServerName)
	})
	if err != nil {
		return err
	}
	return s.line(ctx, "They exchange messages: Alice's client knows Bob's phone", func(ctx context.Context, line *Line) error {
		if err := s.awaitMembers(ctx); err != nil {
			return err
		}
		if _, err := s.say(ctx, s.Alice, "Hello Bob", s.Phone); err != nil {
			return err
		}
		if _, err := s.say(ctx, s.Phone, "Hello Alice", s.Alice); err != nil {
			return err
		}
		line.Status = http.StatusOK
		return s.settle(ctx)
	})
}

// awaitMembers returns when both clients see each other in the room, so that both encrypt for both.
func (s *story) awaitMembers(ctx context.Context) error {
	if err := s.Alice.AwaitMember(ctx, s.Room, s.Phone.UserID()); err != nil {
		return err
	}
	return s.Phone.AwaitMember(ctx, s.Room, s.Alice.UserID())
}

// settle waits until Alice has heard of all changes of Bob's list so far: a homeserver queues changes, so a change of her
// own, made after them, comes to her after them.
func (s *story) settle(ctx context.Context) error {
	from, err := s.Alice.AwaitWaiting(ctx)
	if err != nil {
		return err
	}
	if err := s.Alice.SetUpCrossSigning(ctx); err != nil {
		return err
	}
	if _, err := s.Alice.AwaitChanged(ctx, from, s.Alice.UserID()); err != nil {
		return err
	}
	if s.quiet, err = s.Alice.AwaitWaiting(ctx); err != nil {
		return err
	}
	return s.knows(ctx, s.Phone)
}

// goStale is step 2.
func (s *story) goStale(ctx context.Context) error {
	s.world.Link.LoseDeviceLists(true)
	err := s.line(ctx, "The link from B to A loses device-list updates. Bob signs in on a laptop and sets up cross-signing", func(ctx context.Context, line *Line) error {
		var err error
		if s.Laptop, err = s.signIn(ctx, "Bob's laptop"); err != nil {
			return err
		}
		if err := s.Laptop.SetUpCrossSigning(ctx); err != nil {
			return err
		}
		line.Status = http.StatusOK
		// One update when the keys are published, one when they sign the laptop.
		if err := s.world.Link.AwaitLost(ctx, 2, func(edu testbed.LostEDU) bool {
			return edu.Type == "m.signing_key_update" && edu.UserID == string(s.Laptop.UserID())
		}); err != nil {
			return err
		}
		line.Detail = fmt.Sprintf("%d updates lost", len(s.world.Link.Lost()))
		return nil
	})
	if err != nil {
		return err
	}
	err = s.line(ctx, "Alice hears Bob talk, but her /sync says nothing of his devices: her list is stale", func(ctx context.Context, line *Line) error {
		if _, err := s.say(ctx, s.Phone, "I have a new laptop", s.Alice); err != nil {
			return err
		}
		line.Status = http.StatusOK
		line.Detail = "she knows 1 device of 2"
		return s.stillKnows(ctx, s.Phone)
	})
	if err != nil {
		return err
	}
	return s.line(ctx, "Alice writes to Bob: his phone reads it, his laptop is unable to decrypt", func(ctx context.Context, line *Line) error {
		var err error
		if s.unreadable, err = s.Alice.Send(ctx, s.Room, "Can your laptop read this already?"); err != nil {
			return err
		}
		line.Status = http.StatusOK
		if _, err := s.Phone.AwaitMessage(ctx, s.unreadable); err != nil {
			return err
		}
		if err := s.Laptop.AwaitReceived(ctx, s.unreadable); err != nil {
			return err
		}
		return s.Laptop.CannotRead(s.unreadable)
	})
}

// refresh is step 3.
func (s *story) refresh(ctx context.Context) error {
	if err := s.askAndHear(ctx, "While her /sync waits (30 s), Alice asks freshen to refresh Bob's device list"); err != nil {
		return err
	}
	err := s.line(ctx, "Her /keys/query shows Bob's laptop and his cross-signing keys", func(ctx context.Context, line *Line) error {
		keys, answer, err := s.Alice.QueryKeys(ctx, s.Laptop.UserID())
		if err != nil {
			return err
		}
		line.Status, line.Took = answer.Status, answer.Took
		if !slices.Contains(keys.Devices, s.Laptop.DeviceID()) || !keys.HasMasterKey || !keys.HasSelfSigningKey {
			return fmt.Errorf("the laptop %s or the cross-signing keys are missing from %s", s.Laptop.DeviceID(), answer)
		}
		return s.vouchedFor(ctx, s.Laptop)
	})
	if err != nil {
		return err
	}
	return s.line(ctx, "Alice writes again: Bob's laptop decrypts it (the message before the refresh stays unreadable)", func(ctx context.Context, line *Line) error {
		line.Status = http.StatusOK
		var err error
		if s.readable, err = s.say(ctx, s.Alice, "Can your laptop read this?", s.Laptop); err != nil {
			return err
		}
		return s.Laptop.CannotRead(s.unreadable)
	})
}

// deleteDevice is step 4.
func (s *story) deleteDevice(ctx context.Context) error {
	err := s.line(ctx, "Bob signs his phone out. That update is lost too: Alice's list still has the phone", func(ctx context.Context, line *Line) error {
		var err error
		if s.quiet, err = s.Alice.AwaitWaiting(ctx); err != nil {
			return err
		}
		s.Phone.StopSync()
		if err := s.Laptop.DeleteDevice(ctx, s.Phone.DeviceID()); err != nil {
			return err
		}
		line.Status = http.StatusOK
		if err := s.world.Link.AwaitLost(ctx, 1, func(edu testbed.LostEDU) bool {
			return edu.Deleted && edu.DeviceID == string(s.Phone.DeviceID())
		}); err != nil {
			return err
		}
		// Not an encrypted message: a Synapse that gets one from a device that it does not know asks for the list itself.
		thumb, err := s.Laptop.React(ctx, s.Room, s.readable, "👍")
		if err != nil {
			return err
		}
		if err := s.Alice.AwaitEvent(ctx, thumb); err != nil {
			return err
		}
		return s.stillKnows(ctx, s.Phone, s.Laptop)
	})
	if err != nil {
		return err
	}
	if err := s.askAndHear(ctx, "While her /sync waits again, Alice asks freshen to refresh Bob's device list"); err != nil {
		return err
	}
	return s.line(ctx, "Bob's phone is gone from her /keys/query", func(ctx context.Context, line *Line) error {
		return s.queryShows(ctx, line, s.Laptop)
	})
}

// goDown is step 5.
func (s *story) goDown(ctx context.Context) error {
	// What clients have acknowledged is written behind, and a SIGKILL may repeat it to them: Alice's client would ask for
	// Bob's keys while B is down, and A would wait 10 s for B at each query from then on. A restart in order writes it.
	err := s.line(ctx, "freshen is restarted in order (SIGTERM), as for an upgrade: Alice's client just syncs on", func(ctx context.Context, line *Line) error {
		if err := s.restart(ctx, s.world.Freshen.Stop); err != nil {
			return err
		}
		line.Status = http.StatusOK
		return s.notToldSince(s.waiting)
	})
	if err != nil {
		return err
	}
	err = s.line(ctx, "Bob signs in on a tablet, lost again. Then B goes down", func(ctx context.Context, _ *Line) error {
		var err error
		if s.Tablet, err = s.signIn(ctx, "Bob's tablet"); err != nil {
			return err
		}
		if err := s.world.Link.AwaitLost(ctx, 1, func(edu testbed.LostEDU) bool {
			return edu.HasKeys && edu.DeviceID == string(s.Tablet.DeviceID())
		}); err != nil {
			return err
		}
		s.Laptop.StopSync()
		s.Tablet.StopSync()
		return s.world.B.Stop(ctx)
	})
	if err != nil {
		return err
	}
	err = s.line(ctx, "Alice asks once more. The answer names B, what failed and when it is tried next", func(ctx context.Context, line *Line) error {
		if _, err := s.Alice.AwaitWaiting(ctx); err != nil {
			return err
		}
		answer, err := s.Alice.Refresh(ctx, s.Laptop.UserID())
		if err != nil {
			return err
		}
		line.Status, line.Took = answer.Status, answer.Took
		line.Detail, err = s.checkFailure(answer)
		return err
	})
	if err != nil {
		return err
	}
	err = s.line(ctx, "freshen is killed (SIGKILL) and started again: her client syncs on", func(ctx context.Context, line *Line) error {
		line.Status = http.StatusOK
		return s.restart(ctx, func(context.Context) error { s.world.Freshen.Kill(); return nil })
	})
	if err != nil {
		return err
	}
	err = s.line(ctx, "B comes back. Nobody asks: freshen pays its debt, and Alice's waiting /sync names Bob", func(ctx context.Context, line *Line) error {
		if err := s.notToldSince(s.waiting); err != nil {
			return err
		}
		if err := s.world.B.Start(ctx); err != nil {
			return err
		}
		_, err := s.Alice.AwaitChanged(ctx, s.waiting, s.Laptop.UserID())
		line.Status = http.StatusOK
		return err
	})
	if err != nil {
		return err
	}
	return s.line(ctx, "Her /keys/query shows Bob's tablet", func(ctx context.Context, line *Line) error {
		return s.queryShows(ctx, line, s.Laptop, s.Tablet)
	})
}
