package jsclient

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"
)

// Account says who signs in where, and what the device is called.
type Account struct {
	// URL is the homeserver's client-server API, or that of what stands before it.
	URL string
	// Localpart is the user's name without sigil and server; Password has at least 8 characters.
	Localpart, Password string
	// DeviceName is what people see; it names the client within its host as well.
	DeviceName string
}

// Client is one device of one user: an end-to-end encrypting client on matrix-js-sdk. Its methods are called one at a time.
type Client struct {
	host   *Host
	name   string
	user   id.UserID
	device id.DeviceID
	token  string
	// engine is what the client's end-to-end encryption calls itself, with its version.
	engine   string
	password string
}

// Register makes the user and signs in on their first device.
func (h *Host) Register(ctx context.Context, account Account) (*Client, error) {
	return h.signIn(ctx, account, true)
}

// Login signs the user in on a further device.
func (h *Host) Login(ctx context.Context, account Account) (*Client, error) {
	return h.signIn(ctx, account, false)
}

func (h *Host) signIn(ctx context.Context, account Account, register bool) (*Client, error) {
	c := &Client{host: h, name: account.DeviceName, password: account.Password}
	var answer struct {
		User   id.UserID   `json:"user"`
		Device id.DeviceID `json:"device"`
		Token  string      `json:"token"`
		Crypto string      `json:"crypto"`
	}
	err := c.call(ctx, "login", map[string]any{
		"url": account.URL, "localpart": account.Localpart, "password": account.Password, "deviceName": account.DeviceName,
		"register": register,
	}, &answer)
	c.user, c.device, c.token, c.engine = answer.User, answer.Device, answer.Token, answer.Crypto
	return c, err
}

func (c *Client) call(ctx context.Context, command string, args map[string]any, result any) error {
	return c.host.call(ctx, c.name, command, args, result)
}

// UserID is the whole user ID.
func (c *Client) UserID() id.UserID { return c.user }

// DeviceID is the device's ID.
func (c *Client) DeviceID() id.DeviceID { return c.device }

// Token is the device's access token.
func (c *Client) Token() string { return c.token }

// Name is user and device, for messages.
func (c *Client) Name() string { return fmt.Sprintf("%s (%s)", c.user, c.device) }

// Engine is what does the end-to-end encryption, with its version.
func (c *Client) Engine() string { return c.engine }

// StartSync begins to sync and returns when the first answer has been worked off. Keys are published thereby.
func (c *Client) StartSync(ctx context.Context) error {
	return c.call(ctx, "startSync", map[string]any{}, nil)
}

// StopSync ends it.
func (c *Client) StopSync(ctx context.Context) error {
	return c.call(ctx, "stop", map[string]any{}, nil)
}

// Reopen is what closing a page and opening it again is, for a client in a browser: it has kept its keys and what it knew of
// others' devices, and everything else begins anew, with a /sync without since when StartSync is called.
func (c *Client) Reopen(ctx context.Context) error {
	return c.call(ctx, "reopen", map[string]any{}, nil)
}

// CreateEncryptedRoom makes a private encrypted room and invites others.
func (c *Client) CreateEncryptedRoom(ctx context.Context, invite ...id.UserID) (id.RoomID, error) {
	var room id.RoomID
	err := c.call(ctx, "createRoom", map[string]any{"invite": invite}, &room)
	return room, err
}

// Join enters a room, through the server named via.
func (c *Client) Join(ctx context.Context, room id.RoomID, via string) error {
	return c.call(ctx, "join", map[string]any{"room": room, "via": via}, nil)
}

// AwaitMember returns when this client has seen that user is in the room, and that the room is encrypted.
func (c *Client) AwaitMember(ctx context.Context, room id.RoomID, user id.UserID) error {
	return c.call(ctx, "awaitMember", map[string]any{"room": room, "user": user}, nil)
}

// Send encrypts text for all devices that this client knows in the room, and sends it.
func (c *Client) Send(ctx context.Context, room id.RoomID, text string) (id.EventID, error) {
	var event id.EventID
	err := c.call(ctx, "send", map[string]any{"room": room, "text": text}, &event)
	return event, err
}

// AwaitMessage returns the text of a message as soon as this device could decrypt it.
func (c *Client) AwaitMessage(ctx context.Context, message id.EventID) (string, error) {
	var text string
	err := c.call(ctx, "awaitMessage", map[string]any{"event": message}, &text)
	return text, err
}

// AwaitUndecryptable returns, as soon as a message has come that this device cannot decrypt, why it cannot: one of
// matrix-js-sdk's DecryptionFailureCode.
func (c *Client) AwaitUndecryptable(ctx context.Context, message id.EventID) (string, error) {
	var reason string
	err := c.call(ctx, "awaitUndecryptable", map[string]any{"event": message}, &reason)
	return reason, err
}

// SetUpCrossSigning makes new cross-signing keys of the user on this device, publishes them, and signs this device with them.
func (c *Client) SetUpCrossSigning(ctx context.Context) error {
	return c.call(ctx, "setUpCrossSigning", map[string]any{"password": c.password}, nil)
}

// DeleteDevice signs another device of this user out, with the password.
func (c *Client) DeleteDevice(ctx context.Context, device id.DeviceID) error {
	return c.call(ctx, "deleteDevice", map[string]any{"device": device, "password": c.password}, nil)
}

// Known lists the devices of a user that this client's own store has, with whether the user's own cross-signing keys vouch
// for each. It asks nobody.
func (c *Client) Known(ctx context.Context, user id.UserID) (map[id.DeviceID]bool, error) {
	var known struct {
		Devices map[id.DeviceID]bool `json:"devices"`
	}
	err := c.call(ctx, "known", map[string]any{"user": user}, &known)
	return known.Devices, err
}

// AwaitDevice returns as soon as this client's own store has a device of user.
func (c *Client) AwaitDevice(ctx context.Context, user id.UserID, device id.DeviceID) error {
	return c.call(ctx, "awaitDevice", map[string]any{"user": user, "device": device}, nil)
}

// AwaitVouchedFor returns as soon as this client's own store has a device of user that their cross-signing keys vouch for.
func (c *Client) AwaitVouchedFor(ctx context.Context, user id.UserID, device id.DeviceID) error {
	return c.call(ctx, "awaitVouchedFor", map[string]any{"user": user, "device": device}, nil)
}

// Refresh asks for a refresh of another user's device list, as the guide for client authors shows it, and returns the
// sentence that the user would read. After a success it waits for news for as long as patience says, or if that is 0 as the
// guide does.
func (c *Client) Refresh(ctx context.Context, user id.UserID, patience time.Duration) (string, error) {
	args := map[string]any{"user": user}
	if patience > 0 {
		args["patienceMs"] = patience.Milliseconds()
	}
	var sentence string
	err := c.call(ctx, "refresh", args, &sentence)
	return sentence, err
}
