//go:build goolm

package scenario

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/testbed"
	"freshen/internal/testbed/client"
)

const (
	// Password is that of everybody in the story.
	Password = "correct horse battery staple"
	// WokenWithin is how long a waiting /sync may take to come back, from the moment a refresh is asked for.
	WokenWithin = time.Second
	// patience bounds each line of the story.
	patience = 30 * time.Second
)

// Line is one line of the story: a thing that was done, or seen to be so.
type Line struct {
	// Step is the number of the step that the line belongs to, from 1.
	Step int
	// Text says in plain words what happens; Detail what was seen, where that is not in the text.
	Text, Detail string
	// Status is the HTTP status that matters in this line, 0 if none does.
	Status int
	// Took is how long the line took; where an answer's own time is what matters, that.
	Took time.Duration
	// Err says what was not as it should be.
	Err error
}

// Listener hears the story while it happens.
type Listener interface {
	// Begin is called before a line happens; only Step and Text are set.
	Begin(Line)
	// End is called after it.
	End(Line)
}

// Cast is who is left when the story ends.
type Cast struct {
	// Alice is on A, through freshen. Bob's Phone, Laptop and Tablet are on B. What a story that failed did not come to is
	// nil; the phone is signed out in step 4.
	Alice, Phone, Laptop, Tablet *client.Client
	Room                         id.RoomID
}

// Close stops all clients. They stay signed in.
func (c *Cast) Close() {
	for _, member := range []*client.Client{c.Alice, c.Phone, c.Laptop, c.Tablet} {
		if member != nil {
			member.Close()
		}
	}
}

// Run tells the story in world, which must have freshen and which it spoils for others: the link goes on losing, and A
// and B have a past. It ends at the first line that is not as it should be, with an error that names the step. The cast
// is the caller's to close, also after an error.
func Run(ctx context.Context, world *testbed.World, listener Listener) (*Cast, error) {
	s := &story{Cast: &Cast{}, world: world, listener: listener}
	for i, tell := range []func(context.Context) error{s.share, s.goStale, s.refresh, s.deleteDevice, s.goDown} {
		s.step = i + 1
		if err := tell(ctx); err != nil {
			return s.Cast, err
		}
	}
	return s.Cast, nil
}

type story struct {
	*Cast
	world    *testbed.World
	listener Listener
	step     int

	// quiet is the number of Alice's first /sync answer that must not name Bob, and waiting that of her waiting /sync.
	quiet, waiting int
	// unreadable is the message that Alice sent while her list was stale, readable the one after it was refreshed.
	unreadable, readable id.EventID
}

// line tells one line. It fills in Took where f leaves it at 0.
func (s *story) line(ctx context.Context, text string, f func(context.Context, *Line) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	line := Line{Step: s.step, Text: text}
	s.listener.Begin(line)
	started := time.Now()
	line.Err = f(ctx, &line)
	if line.Took == 0 {
		line.Took = time.Since(started)
	}
	s.listener.End(line)
	if line.Err != nil {
		return fmt.Errorf("step %d (%s): %w", s.step, text, line.Err)
	}
	return nil
}
