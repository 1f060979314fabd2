//go:build goolm

package e2e

import (
	"context"
	"errors"
	"fmt"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/id"

	"freshen/docs/examples"
	"freshen/internal/testbed/client"
	"freshen/internal/testbed/jsclient"
	"freshen/internal/testbed/scenario"
)

// device is a client of any make, as a user has it in their hand.
type device interface {
	UserID() id.UserID
	DeviceID() id.DeviceID
	Token() string
	Name() string
	// Make says what the client is, with its version.
	Make() string
	// StartSync returns when the device has published its keys and syncs.
	StartSync(ctx context.Context) error
	StopSync(ctx context.Context) error
	CreateEncryptedRoom(ctx context.Context, invite ...id.UserID) (id.RoomID, error)
	Join(ctx context.Context, room id.RoomID, via string) error
	AwaitMember(ctx context.Context, room id.RoomID, user id.UserID) error
	Send(ctx context.Context, room id.RoomID, text string) (id.EventID, error)
	AwaitMessage(ctx context.Context, message id.EventID) (string, error)
	// AwaitUndecryptable returns nil as soon as a message has come whose key the device was not given.
	AwaitUndecryptable(ctx context.Context, message id.EventID) error
	SetUpCrossSigning(ctx context.Context) error
	DeleteDevice(ctx context.Context, device id.DeviceID) error
	// Known asks nobody.
	Known(ctx context.Context, user id.UserID) (map[id.DeviceID]bool, error)
	// AwaitVouchedFor returns as soon as the device itself knows one of user that their cross-signing keys vouch for.
	AwaitVouchedFor(ctx context.Context, user id.UserID, device id.DeviceID) error
	// Refresh runs the example of the guide for client authors, and returns the sentence for the user.
	Refresh(ctx context.Context, user id.UserID) (string, error)
}

// jsDevice is on matrix-js-sdk.
type jsDevice struct{ *jsclient.Client }

func (d jsDevice) Make() string { return "matrix-js-sdk " + jsclient.Version() + ", " + d.Engine() }

func (d jsDevice) Refresh(ctx context.Context, user id.UserID) (string, error) {
	return d.Client.Refresh(ctx, user, 0)
}

func (d jsDevice) AwaitUndecryptable(ctx context.Context, message id.EventID) error {
	reason, err := d.Client.AwaitUndecryptable(ctx, message)
	// The second is what the first becomes when the same session's key comes with a later message.
	if err == nil && reason != "MEGOLM_UNKNOWN_INBOUND_SESSION_ID" && reason != "OLM_UNKNOWN_MESSAGE_INDEX" {
		err = fmt.Errorf("%s cannot read the message, but for another reason than a missing key: %s", d.Name(), reason)
	}
	return err
}

// goDevice is on mautrix-go.
type goDevice struct {
	*client.Client
	url string
}

func (d goDevice) Make() string { return "mautrix-go " + mautrix.Version }

func (d goDevice) StartSync(ctx context.Context) error {
	d.Client.StartSync(ctx)
	_, err := d.AwaitWaiting(ctx)
	return err
}

func (d goDevice) StopSync(context.Context) error {
	d.Client.StopSync()
	return nil
}

func (d goDevice) AwaitUndecryptable(ctx context.Context, message id.EventID) error {
	if err := d.AwaitReceived(ctx, message); err != nil {
		return err
	}
	err := d.CannotRead(message)
	if errors.Is(err, olm.ErrUnknownMessageIndex) {
		return nil // the same session's key has come with a later message; this one stays unreadable
	}
	return err
}

// AwaitVouchedFor looks when a sync has been worked off, keys that it told of included.
func (d goDevice) AwaitVouchedFor(ctx context.Context, user id.UserID, device id.DeviceID) error {
	for {
		from, err := d.AwaitWaiting(ctx)
		if err != nil {
			return err
		}
		known, err := d.Known(ctx, user)
		if err != nil || known[device] {
			return err
		}
		if _, err := d.AwaitChanged(ctx, from, user); err != nil {
			return err
		}
	}
}

func (d goDevice) Refresh(ctx context.Context, user id.UserID) (string, error) {
	mx, err := mautrix.NewClient(d.url, d.UserID(), d.Token())
	if err != nil {
		return "", err
	}
	defer mx.Client.CloseIdleConnections()
	return examples.Refresh(ctx, mx, user), nil
}

// signsIn makes a device of the user of that name at a homeserver, their first one if register says so.
type signsIn func(ctx context.Context, url, localpart, deviceName string, register bool) (device, error)

// withJS signs in on matrix-js-sdk, wherever the host is.
func withJS(host *jsclient.Host) signsIn {
	return func(ctx context.Context, url, localpart, deviceName string, register bool) (device, error) {
		account := jsclient.Account{URL: url, Localpart: localpart, Password: scenario.Password, DeviceName: deviceName}
		signIn := host.Login
		if register {
			signIn = host.Register
		}
		c, err := signIn(ctx, account)
		return jsDevice{c}, err
	}
}

// withGo signs in on mautrix-go. cleanup is told how to end the device.
func withGo(cleanup func(func())) signsIn {
	return func(ctx context.Context, url, localpart, deviceName string, register bool) (device, error) {
		account := client.Account{URL: url, Localpart: localpart, Password: scenario.Password, DeviceName: deviceName}
		signIn := client.Login
		if register {
			signIn = client.Register
		}
		c, err := signIn(ctx, account)
		if err != nil {
			return nil, err
		}
		cleanup(c.Close)
		return goDevice{c, url}, nil
	}
}
