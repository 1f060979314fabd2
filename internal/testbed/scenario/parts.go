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

	"freshen/internal/testbed/client"
)

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

// say sends a message and returns when the other device has read it.
func (s *story) say(ctx context.Context, from *client.Client, text string, to *client.Client) (id.EventID, error) {
	message, err := from.Send(ctx, s.Room, text)
	if err != nil {
		return "", err
	}
	read, err := to.AwaitMessage(ctx, message)
	if err != nil {
		return "", err
	}
	if read != text {
		return "", fmt.Errorf("%s read %q instead of %q", to.Name(), read, text)
	}
	return message, nil
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
