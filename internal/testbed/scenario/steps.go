//go:build goolm

package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

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
		if err := s.say(ctx, s.Alice, "Hello Bob", s.Phone); err != nil {
			return err
		}
		if err := s.say(ctx, s.Phone, "Hello Alice", s.Alice); err != nil {
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
		if err := s.say(ctx, s.Phone, "I have a new laptop", s.Alice); err != nil {
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
		if err := s.say(ctx, s.Alice, "Can your laptop read this?", s.Laptop); err != nil {
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
		if err := s.say(ctx, s.Laptop, "I have sold my phone", s.Alice); err != nil {
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

// restart ends freshen, starts it again, and returns when Alice's /sync waits there again.
func (s *story) restart(ctx context.Context, end func(context.Context) error) error {
	if _, err := s.Alice.AwaitWaiting(ctx); err != nil {
		return err
	}
	if err := end(ctx); err != nil {
		return err
	}
	if err := s.Alice.AwaitFailure(ctx); err != nil {
		return err
	}
	if err := s.world.Freshen.Start(ctx); err != nil {
		return err
	}
	var err error
	s.waiting, err = s.Alice.AwaitWaiting(ctx)
	return err
}

// askAndHear asks for a refresh while Alice's /sync waits, and requires that it succeeds and that the /sync comes back.
func (s *story) askAndHear(ctx context.Context, text string) error {
	var asked time.Time
	err := s.line(ctx, text, func(ctx context.Context, line *Line) error {
		var err error
		if s.waiting, err = s.Alice.AwaitWaiting(ctx); err != nil {
			return err
		}
		if err := s.notToldSince(s.quiet); err != nil {
			return err
		}
		answer, err := s.Alice.Refresh(ctx, s.Laptop.UserID())
		if err != nil {
			return err
		}
		asked, line.Status, line.Took = answer.Asked, answer.Status, answer.Took
		if answer.Status != http.StatusAccepted || string(bytes.TrimSpace(answer.Body)) != "{}" {
			return fmt.Errorf("the answer should be 202 {}, and is %s", answer)
		}
		line.Detail = "{}"
		return nil
	})
	if err != nil {
		return err
	}
	return s.line(ctx, "Her waiting /sync comes back with Bob in device_lists.changed", func(ctx context.Context, line *Line) error {
		told, err := s.Alice.AwaitChanged(ctx, s.waiting, s.Laptop.UserID())
		if err != nil {
			return err
		}
		line.Status, line.Took = http.StatusOK, told.Answered.Sub(asked)
		if line.Took > WokenWithin {
			return fmt.Errorf("it came %s after she asked; %s is the most", line.Took.Round(time.Millisecond), WokenWithin)
		}
		line.Detail = "since she asked"
		// Her client asks for the keys by itself now; when it syncs again, it has them.
		_, err = s.Alice.AwaitWaiting(ctx)
		return err
	})
}

// checkFailure requires that a 502 says which server failed, how, and when it is tried next, to people and to programs.
func (s *story) checkFailure(answer *client.Answer) (string, error) {
	var body struct {
		ErrCode string `json:"errcode"`
		Error   string `json:"error"`
		Failure struct {
			Destination  string `json:"destination"`
			Reason       string `json:"reason"`
			RetryAfterMS int64  `json:"retry_after_ms"`
		} `json:"org.matrix.msc2638.failure"`
	}
	if err := json.Unmarshal(answer.Body, &body); err != nil {
		return "", fmt.Errorf("the answer is no JSON: %s", answer)
	}
	down := s.world.B.ServerName
	switch {
	case answer.Status != http.StatusBadGateway || body.ErrCode != "M_UNKNOWN":
		return "", fmt.Errorf("the answer should be 502 M_UNKNOWN, and is %s", answer)
	case !strings.Contains(body.Error, down):
		return "", fmt.Errorf("the sentence does not name %s: %q", down, body.Error)
	case !saysWhatFailed.MatchString(body.Error) || !saysWhenNext.MatchString(body.Error):
		return "", fmt.Errorf("the sentence does not say what failed and when it is tried next: %q", body.Error)
	case body.Failure.Destination != down || body.Failure.Reason != "connect" || body.Failure.RetryAfterMS <= 0:
		return "", fmt.Errorf("org.matrix.msc2638.failure does not say so to programs: %s", answer)
	}
	return "“" + body.Error + "”", nil
}

var (
	saysWhatFailed = regexp.MustCompile(`(?i)connect|refused`)
	saysWhenNext   = regexp.MustCompile(`(?i)next|again|retr|tries`)
)

// queryShows requires that Alice's /keys/query and her own store list exactly these devices of Bob.
func (s *story) queryShows(ctx context.Context, line *Line, devices ...*client.Client) error {
	if _, err := s.Alice.AwaitWaiting(ctx); err != nil {
		return err
	}
	keys, answer, err := s.Alice.QueryKeys(ctx, s.Laptop.UserID())
	if err != nil {
		return err
	}
	line.Status, line.Took = answer.Status, answer.Took
	if want := idsOf(devices); !slices.Equal(slices.Sorted(slices.Values(keys.Devices)), want) {
		return fmt.Errorf("Bob's devices are %v; the answer names %v", want, keys.Devices) //nolint:staticcheck // a name
	}
	return s.knows(ctx, devices...)
}

// stillKnows requires that Alice's /sync has not named Bob and that her store has exactly these devices of his.
func (s *story) stillKnows(ctx context.Context, devices ...*client.Client) error {
	if err := s.notToldSince(s.quiet); err != nil {
		return err
	}
	return s.knows(ctx, devices...)
}

func (s *story) notToldSince(from int) error {
	for _, answer := range s.Alice.Syncs(from) {
		if slices.Contains(answer.Changed, s.Phone.UserID()) {
			return fmt.Errorf("Alice's /sync named Bob in device_lists.changed before anything could tell her") //nolint:staticcheck // a name
		}
	}
	return nil
}

func (s *story) knows(ctx context.Context, devices ...*client.Client) error {
	known, err := s.Alice.Known(ctx, s.Phone.UserID())
	if err != nil {
		return err
	}
	var got []id.DeviceID
	for device := range known {
		got = append(got, device)
	}
	slices.Sort(got)
	if want := idsOf(devices); !slices.Equal(got, want) {
		return fmt.Errorf("Alice's client should know Bob's devices %v, and knows %v", want, got) //nolint:staticcheck // a name
	}
	return nil
}

// vouchedFor requires that Bob's cross-signing keys vouch for a device in the eyes of Alice's client.
func (s *story) vouchedFor(ctx context.Context, device *client.Client) error {
	known, err := s.Alice.Known(ctx, device.UserID())
	if err != nil {
		return err
	}
	if !known[device.DeviceID()] {
		return fmt.Errorf("Alice's client does not see that Bob's cross-signing keys vouch for %s", device.DeviceID()) //nolint:staticcheck // a name
	}
	return nil
}

func (s *story) say(ctx context.Context, from *client.Client, text string, to *client.Client) error {
	message, err := from.Send(ctx, s.Room, text)
	if err != nil {
		return err
	}
	read, err := to.AwaitMessage(ctx, message)
	if err != nil {
		return err
	}
	if read != text {
		return fmt.Errorf("%s read %q instead of %q", to.Name(), read, text)
	}
	return nil
}

func (s *story) signIn(ctx context.Context, device string) (*client.Client, error) {
	c, err := client.Login(ctx, account(s.world.B.URL, "bob", device))
	if err != nil {
		return nil, err
	}
	c.StartSync(ctx)
	return c, nil
}

func account(url, localpart, device string) client.Account {
	return client.Account{URL: url, Localpart: localpart, Password: Password, DeviceName: device}
}

func idsOf(devices []*client.Client) []id.DeviceID {
	ids := make([]id.DeviceID, len(devices))
	for i, device := range devices {
		ids[i] = device.DeviceID()
	}
	slices.Sort(ids)
	return ids
}
