//go:build goolm

package client

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// pollTimeout is what a /sync asks the server to wait for, as real clients do.
	pollTimeout = 30 * time.Second
	// retryPause is how long the loop waits after a failed /sync.
	retryPause = 100 * time.Millisecond
)

// Sync is one answer to GET /sync.
type Sync struct {
	// Since and NextBatch are the tokens that it was asked with and that it brought.
	Since, NextBatch string
	// Answered is when its last byte came.
	Answered time.Time
	// Changed is device_lists.changed.
	Changed []id.UserID
	// Events are the IDs of the room events in it.
	Events []id.EventID
}

// syncLog keeps every answer of the loop, in order.
type syncLog struct {
	mu       sync.Mutex
	syncs    []Sync
	waiting  bool  // a long poll is on its way and everything before it has been worked off
	failed   error // of the last poll; nil when it was answered
	progress chan struct{}
}

func newSyncLog() syncLog { return syncLog{progress: make(chan struct{})} }

// change applies f and wakes everybody who awaits something.
func (l *syncLog) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.progress)
	l.progress = make(chan struct{})
}

// await returns when done says so. done is called with the log locked.
func (l *syncLog) await(ctx context.Context, done func() bool) error {
	for {
		l.mu.Lock()
		if done() {
			l.mu.Unlock()
			return nil
		}
		progress, answers, failed := l.progress, len(l.syncs), l.failed
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			err := fmt.Errorf("%w after %d answers to /sync", ctx.Err(), answers)
			if failed != nil {
				err = fmt.Errorf("%w, the last of which failed: %w", err, failed)
			}
			return err
		case <-progress:
		}
	}
}

type loop struct {
	cancel  context.CancelFunc
	stopped chan struct{}
}

// StartSync begins to sync in the background, and goes on through failures, until StopSync; the end of ctx does not end it.
func (c *Client) StartSync(ctx context.Context) {
	if c.loop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.loop = &loop{cancel: cancel, stopped: make(chan struct{})}
	go func() {
		defer close(c.loop.stopped)
		c.syncUntil(ctx)
	}()
}

// StopSync ends the loop and returns when it has ended.
func (c *Client) StopSync() {
	if c.loop == nil {
		return
	}
	c.loop.cancel()
	<-c.loop.stopped
	c.loop = nil
}

func (c *Client) syncUntil(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.syncOnce(ctx)
		c.log.change(func() { c.log.failed, c.log.waiting = err, false })
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

func (c *Client) syncOnce(ctx context.Context) error {
	since, err := c.mx.Store.LoadNextBatch(ctx, c.mx.UserID)
	if err != nil {
		return err
	}
	request := mautrix.ReqSync{Since: since}
	if since != "" {
		request.Timeout = int(pollTimeout.Milliseconds())
	}
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(info httptrace.WroteRequestInfo) {
		if info.Err == nil && since != "" {
			c.log.change(func() { c.log.waiting = true })
		}
	}})
	answer, err := c.mx.FullSyncRequest(traced, request)
	if err != nil {
		return err
	}
	seen := Sync{
		Since: since, NextBatch: answer.NextBatch, Answered: time.Now(),
		Changed: slices.Clone(answer.DeviceLists.Changed),
	}
	for _, room := range answer.Rooms.Join {
		for _, evt := range room.Timeline.Events {
			seen.Events = append(seen.Events, evt.ID)
		}
	}
	c.log.change(func() { c.log.syncs, c.log.waiting = append(c.log.syncs, seen), false })
	c.crypto.Lock()
	defer c.crypto.Unlock()
	if err := c.mx.Syncer.ProcessResponse(ctx, answer, since); err != nil {
		return err
	}
	c.openMail(ctx)
	return c.mx.Store.SaveNextBatch(ctx, c.mx.UserID, answer.NextBatch)
}

// AwaitWaiting returns when a long poll has been sent and everything that came before it has been worked off. The number
// that it returns is that of the poll's answer, for [Client.AwaitChanged] and [Client.Syncs].
func (c *Client) AwaitWaiting(ctx context.Context) (int, error) {
	next := 0
	err := c.log.await(ctx, func() bool {
		next = len(c.log.syncs)
		return c.log.waiting
	})
	if err != nil {
		return 0, fmt.Errorf("%s never had a /sync waiting: %w", c.Name(), err)
	}
	return next, nil
}

// AwaitFailure returns when the last /sync got no answer, because what it was sent to went away.
func (c *Client) AwaitFailure(ctx context.Context) error {
	if err := c.log.await(ctx, func() bool { return c.log.failed != nil }); err != nil {
		return fmt.Errorf("%s goes on to get answers to /sync: %w", c.Name(), err)
	}
	return nil
}

// AwaitChanged returns the first answer from number from on that names user in device_lists.changed.
func (c *Client) AwaitChanged(ctx context.Context, from int, user id.UserID) (Sync, error) {
	var found Sync
	err := c.log.await(ctx, func() bool {
		for _, s := range c.log.syncs[from:] {
			if slices.Contains(s.Changed, user) {
				found = s
				return true
			}
		}
		return false
	})
	if err != nil {
		return Sync{}, fmt.Errorf("%s was not told in /sync that the devices of %s changed: %w", c.Name(), user, err)
	}
	return found, nil
}

// Syncs returns the answers from number from on.
func (c *Client) Syncs(from int) []Sync {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	return slices.Clone(c.log.syncs[from:])
}

// listen wires what comes in /sync to the crypto machine and the mailbox.
func (c *Client) listen() {
	syncer := mautrix.NewDefaultSyncer()
	syncer.OnSync(c.machine.ProcessSyncResponse)
	syncer.OnEvent(c.mx.StateStoreSyncHandler)
	syncer.OnEventType(event.StateMember, c.machine.HandleMemberEvent)
	syncer.OnEventType(event.EventEncrypted, func(_ context.Context, evt *event.Event) { c.mail.put(evt) })
	c.mx.Syncer = syncer
}

// mailbox holds encrypted messages until their key comes, which may be a /sync or two later.
type mailbox struct {
	mu     sync.Mutex
	closed map[id.EventID]*event.Event
	opened map[id.EventID]string
	errs   map[id.EventID]error
}

func newMailbox() mailbox {
	return mailbox{
		closed: map[id.EventID]*event.Event{}, opened: map[id.EventID]string{}, errs: map[id.EventID]error{},
	}
}

func (m *mailbox) put(evt *event.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed[evt.ID] = evt
}

// openMail tries every message that could not be read yet.
func (c *Client) openMail(ctx context.Context) {
	c.mail.mu.Lock()
	defer c.mail.mu.Unlock()
	for eventID, evt := range c.mail.closed {
		decrypted, err := c.machine.DecryptMegolmEvent(ctx, evt)
		if err != nil {
			c.mail.errs[eventID] = err
			continue
		}
		c.mail.opened[eventID] = decrypted.Content.AsMessage().Body
		delete(c.mail.closed, eventID)
		delete(c.mail.errs, eventID)
	}
}

// AwaitMessage returns the text of a message as soon as this device could decrypt it.
func (c *Client) AwaitMessage(ctx context.Context, message id.EventID) (string, error) {
	var text string
	err := c.log.await(ctx, func() bool {
		var opened bool
		text, opened = c.mail.read(message)
		return opened
	})
	if err != nil {
		return "", fmt.Errorf("%s did not read the message: %w", c.Name(), errors.Join(err, c.mail.why(message)))
	}
	return text, nil
}

// AwaitReceived returns when a message has come and was tried to be decrypted, whether or not that worked.
func (c *Client) AwaitReceived(ctx context.Context, message id.EventID) error {
	err := c.log.await(ctx, func() bool {
		_, opened := c.mail.read(message)
		return opened || c.mail.why(message) != nil
	})
	if err != nil {
		return fmt.Errorf("%s did not receive the message: %w", c.Name(), err)
	}
	return nil
}

// AwaitEvent returns when an event has come in /sync, whatever it is.
func (c *Client) AwaitEvent(ctx context.Context, event id.EventID) error {
	err := c.log.await(ctx, func() bool {
		return slices.ContainsFunc(c.log.syncs, func(s Sync) bool { return slices.Contains(s.Events, event) })
	})
	if err != nil {
		return fmt.Errorf("%s did not see the event: %w", c.Name(), err)
	}
	return nil
}

// AwaitMember returns when this client has seen that user is in the room.
func (c *Client) AwaitMember(ctx context.Context, room id.RoomID, user id.UserID) error {
	err := c.log.await(ctx, func() bool { return c.mx.StateStore.IsInRoom(ctx, room, user) })
	if err != nil {
		return fmt.Errorf("%s did not see %s join: %w", c.Name(), user, err)
	}
	return nil
}

// CannotRead is nil if the message has come to this device and lacks its key, which is what "unable to decrypt" means to
// a user; else it says what is the case instead.
func (c *Client) CannotRead(message id.EventID) error {
	if _, opened := c.mail.read(message); opened {
		return fmt.Errorf("%s can read the message", c.Name())
	}
	err := c.mail.why(message)
	switch {
	case errors.Is(err, crypto.ErrNoSessionFound):
		return nil
	case err == nil:
		return fmt.Errorf("%s has not received the message", c.Name())
	default:
		return fmt.Errorf("%s cannot read the message, but for another reason than a missing key: %w", c.Name(), err)
	}
}

func (m *mailbox) read(message id.EventID) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, ok := m.opened[message]
	return text, ok
}

func (m *mailbox) why(message id.EventID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.errs[message]
}
