//go:build goolm

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Client is one device of one user: an end-to-end encrypting client with its own store in memory. Its methods may be
// called at once from several goroutines, except those that start and stop its sync loop. Close it.
type Client struct {
	mx       *mautrix.Client
	machine  *crypto.OlmMachine
	password string

	// crypto serialises what the sync loop and callers do with the machine, as a client with one event loop would.
	crypto sync.Mutex

	log  syncLog
	mail mailbox
	loop *loop
}

// Account says who signs in where, and what the device is called.
type Account struct {
	// URL is the homeserver's client-server API, or that of freshen before it.
	URL string
	// Localpart is the user's name without sigil and server; Password has at least 8 characters.
	Localpart, Password string
	// DeviceName is what people see.
	DeviceName string
}

// Register makes the user and signs in on their first device, which publishes its keys at once.
func Register(ctx context.Context, account Account) (*Client, error) {
	c, err := newClient(account)
	if err != nil {
		return nil, err
	}
	answer, err := c.mx.RegisterDummy(ctx, &mautrix.ReqRegister[any]{
		Username: account.Localpart, Password: account.Password, InitialDeviceDisplayName: account.DeviceName,
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s cannot be registered at %s: %w", account.Localpart, account.URL, err)
	}
	c.mx.UserID, c.mx.DeviceID, c.mx.AccessToken = answer.UserID, answer.DeviceID, answer.AccessToken
	return c, c.publishKeys(ctx)
}

// Login signs the user in on a further device, which publishes its keys at once.
func Login(ctx context.Context, account Account) (*Client, error) {
	c, err := newClient(account)
	if err != nil {
		return nil, err
	}
	_, err = c.mx.Login(ctx, &mautrix.ReqLogin{
		Type:                     mautrix.AuthTypePassword,
		Identifier:               mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: account.Localpart},
		Password:                 account.Password,
		InitialDeviceDisplayName: account.DeviceName,
		StoreCredentials:         true,
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s cannot sign in at %s: %w", account.Localpart, account.URL, err)
	}
	return c, c.publishKeys(ctx)
}

func newClient(account Account) (*Client, error) {
	mx, err := mautrix.NewClient(account.URL, "", "")
	if err != nil {
		return nil, fmt.Errorf("the homeserver's URL: %w", err)
	}
	mx.Client = &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 8},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	mx.DefaultHTTPRetries = 0
	mx.StateStore = mautrix.NewMemoryStateStore()
	c := &Client{mx: mx, password: account.Password, log: newSyncLog(), mail: newMailbox()}
	return c, nil
}

// publishKeys makes the crypto machine, now that user and device are known, and uploads the device's keys.
func (c *Client) publishKeys(ctx context.Context) error {
	states, ok := c.mx.StateStore.(crypto.StateStore)
	if !ok {
		return errors.New("the state store does not serve the crypto machine")
	}
	c.machine = crypto.NewOlmMachine(c.mx, &c.mx.Log, crypto.NewMemoryStore(nil), states)
	// What this device knows of others comes from /sync and from sending, never from decrypting.
	c.machine.DisableDecryptKeyFetching = true
	if err := c.machine.Load(ctx); err != nil {
		return fmt.Errorf("the keys of a new device: %w", err)
	}
	c.listen()
	if err := c.machine.ShareKeys(ctx, 0); err != nil {
		return fmt.Errorf("the keys of %s cannot be published: %w", c.Name(), err)
	}
	return nil
}

// Close stops the sync loop and drops all connections. The device stays signed in.
func (c *Client) Close() {
	c.StopSync()
	if c.machine != nil {
		c.machine.Destroy()
	}
	c.mx.Client.CloseIdleConnections()
}

// UserID is the whole user ID.
func (c *Client) UserID() id.UserID { return c.mx.UserID }

// DeviceID is the device's ID.
func (c *Client) DeviceID() id.DeviceID { return c.mx.DeviceID }

// Token is the device's access token.
func (c *Client) Token() string { return c.mx.AccessToken }

// Name is user and device, for messages.
func (c *Client) Name() string { return fmt.Sprintf("%s (%s)", c.mx.UserID, c.mx.DeviceID) }

// roomVersion is one that every homeserver of the testbed knows; the newest Synapse's own default is not.
const roomVersion = id.RoomV10

// CreateEncryptedRoom makes a private encrypted room and invites others.
func (c *Client) CreateEncryptedRoom(ctx context.Context, invite ...id.UserID) (id.RoomID, error) {
	c.crypto.Lock() // it writes what the sync reads
	defer c.crypto.Unlock()
	answer, err := c.mx.CreateRoom(ctx, &mautrix.ReqCreateRoom{
		Preset:      "private_chat",
		Invite:      invite,
		RoomVersion: roomVersion,
		InitialState: []*event.Event{{
			Type:    event.StateEncryption,
			Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}},
		}},
	})
	if err != nil {
		return "", fmt.Errorf("%s cannot make a room: %w", c.Name(), err)
	}
	return answer.RoomID, nil
}

// Join enters a room, through the server named via.
func (c *Client) Join(ctx context.Context, room id.RoomID, via string) error {
	c.crypto.Lock()
	defer c.crypto.Unlock()
	if _, err := c.mx.JoinRoom(ctx, string(room), &mautrix.ReqJoinRoom{Via: []string{via}}); err != nil {
		return fmt.Errorf("%s cannot join the room: %w", c.Name(), err)
	}
	return nil
}

// Send encrypts text for all devices that this client knows in the room, and sends it. A member whose devices it does not
// know at all is asked for first, as any client does; members that it knows are not asked about again.
func (c *Client) Send(ctx context.Context, room id.RoomID, text string) (id.EventID, error) {
	c.crypto.Lock()
	defer c.crypto.Unlock()
	members, err := c.mx.StateStore.GetRoomJoinedOrInvitedMembers(ctx, room)
	if err != nil {
		return "", fmt.Errorf("%s does not know the room's members: %w", c.Name(), err)
	}
	if err := c.machine.ShareGroupSession(ctx, room, members); err != nil {
		return "", fmt.Errorf("%s cannot share the room's key: %w", c.Name(), err)
	}
	encrypted, err := c.machine.EncryptMegolmEvent(ctx, room, event.EventMessage, &event.Content{
		Parsed: &event.MessageEventContent{MsgType: event.MsgText, Body: text},
	})
	if err != nil {
		return "", fmt.Errorf("%s cannot encrypt: %w", c.Name(), err)
	}
	answer, err := c.mx.SendMessageEvent(ctx, room, event.EventEncrypted, encrypted)
	if err != nil {
		return "", fmt.Errorf("%s cannot send: %w", c.Name(), err)
	}
	return answer.EventID, nil
}

// React reacts to an event with a key such as "👍", which is not encrypted: no homeserver learns of a device by it.
func (c *Client) React(ctx context.Context, room id.RoomID, to id.EventID, key string) (id.EventID, error) {
	answer, err := c.mx.SendReaction(ctx, room, to, key)
	if err != nil {
		return "", fmt.Errorf("%s cannot react: %w", c.Name(), err)
	}
	return answer.EventID, nil
}

// SetUpCrossSigning makes the user's cross-signing keys on this device, publishes them, and signs this device with them.
func (c *Client) SetUpCrossSigning(ctx context.Context) error {
	c.crypto.Lock()
	defer c.crypto.Unlock()
	if _, _, err := c.machine.GenerateAndUploadCrossSigningKeysWithPassword(ctx, c.password, ""); err != nil {
		return fmt.Errorf("%s cannot publish cross-signing keys: %w", c.Name(), err)
	}
	if err := c.machine.SignOwnDevice(ctx, c.machine.OwnIdentity()); err != nil {
		return fmt.Errorf("%s cannot sign its device: %w", c.Name(), err)
	}
	return nil
}

// DeleteDevice signs another device of this user out, with the password.
func (c *Client) DeleteDevice(ctx context.Context, device id.DeviceID) error {
	path := []string{"_matrix", "client", "v3", "devices", string(device)}
	answer, err := c.Do(ctx, http.MethodDelete, path, struct{}{})
	if err != nil {
		return err
	}
	var challenge struct {
		Session string `json:"session"`
	}
	if answer.Status != http.StatusUnauthorized || json.Unmarshal(answer.Body, &challenge) != nil {
		return fmt.Errorf("%s cannot delete a device: the homeserver answered %s instead of asking for the password", c.Name(), answer)
	}
	answer, err = c.Do(ctx, http.MethodDelete, path, map[string]any{"auth": map[string]any{
		"type": "m.login.password", "session": challenge.Session, "password": c.password,
		"identifier": map[string]string{"type": "m.id.user", "user": string(c.UserID())},
	}})
	if err != nil {
		return err
	}
	if answer.Status != http.StatusOK {
		return fmt.Errorf("%s cannot delete a device: the homeserver answered %s", c.Name(), answer)
	}
	return nil
}

// Known lists the devices of a user that this client's own store has, with whether the user's own cross-signing keys
// vouch for each. It asks nobody.
func (c *Client) Known(ctx context.Context, user id.UserID) (map[id.DeviceID]bool, error) {
	c.crypto.Lock()
	defer c.crypto.Unlock()
	devices, err := c.machine.CryptoStore.GetDevices(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("%s cannot read its own store: %w", c.Name(), err)
	}
	known := make(map[id.DeviceID]bool, len(devices))
	for _, device := range devices {
		trust, err := c.machine.ResolveTrustContext(ctx, device)
		if err != nil {
			return nil, fmt.Errorf("%s cannot tell whom to trust: %w", c.Name(), err)
		}
		known[device.DeviceID] = trust >= id.TrustStateCrossSignedUntrusted
	}
	return known, nil
}
