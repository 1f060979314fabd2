package refresh_test

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"freshen"
	"freshen/internal/store"
)

// watch is what the destinations of the model do, and what they see. It is guarded by model.mu.
type watch struct {
	does     map[string]string // "" is well
	answered map[string]bool   // since the last check
	// Of this life of the process:
	running map[id.UserID]bool
	probing map[string]int         // requests that were begun while it was backing off
	retries map[string]int         // retries that run
	places  map[string][]time.Time // when it was asked
	answers map[string]time.Time   // when it last answered
}

func (w *watch) begin() {
	w.running, w.probing, w.retries = map[id.UserID]bool{}, map[string]int{}, map[string]int{}
	w.places, w.answers = map[string][]time.Time{}, map[string]time.Time{}
	if w.does == nil {
		w.does, w.answered = map[string]string{}, map[string]bool{}
	}
}

// clockSet forgets what was measured by the clock as it was.
func (w *watch) clockSet() { clear(w.places) }

func (m *model) change() {
	server := rapid.SampledFrom(modelServers).Draw(m.t, "server")
	does := rapid.SampledFrom([]string{"", "down", "down", "slow", "slow and down", "hangs", "busy", "knows nobody"}).Draw(m.t, "does")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watch.does[server] = does
}

// backing says whether a destination has been backing off since before this moment, and not answered in it.
func (m *model) backing(server string) (store.Destination, bool) {
	dest, err := m.store.Backoff(context.Background(), server)
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	return dest, err == nil && dest.Failures > 0 && dest.FailingSince.Before(now) && !m.watch.answers[server].Equal(now)
}

// pay is the engine's, watched.
func (m *model) pay(ctx context.Context, debt store.Debt) error {
	dest, backing := m.backing(debt.Destination)
	m.mu.Lock()
	w := &m.watch
	w.retries[debt.Destination]++
	switch n := w.retries[debt.Destination]; {
	case n > 4:
		m.breaks("2: %d retries at %s", n, debt.Destination)
	case backing && n > 1:
		m.breaks("3: %d retries at %s, which is backing off", n, debt.Destination)
	case backing && m.wall().Before(dest.RetryAt) && dest.RetryAt.Sub(m.wall()) > time.Minute:
		m.breaks("5: %s is tried at %v, before %v", debt.Target, m.wall(), dest.RetryAt)
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		w.retries[debt.Destination]--
	}()
	return m.engine.Pay(ctx, debt)
}

// FetchDeviceList is a destination that does as the model has it.
func (m *model) FetchDeviceList(ctx context.Context, target id.UserID) (*freshen.DeviceList, error) {
	server := freshen.Destination(target)
	_, backing := m.backing(server)
	does := m.arrive(target, backing)
	defer m.leave(target, backing)
	wait := time.Duration(0)
	switch does {
	case "slow", "slow and down":
		wait = 7 * time.Second
	case "hangs":
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, &freshen.Failure{Destination: server, Reason: freshen.ReasonTimeout, Sentence: "It hangs.", Err: ctx.Err()}
	}
	switch does {
	case "down", "slow and down":
		return nil, down(ctx, target)
	case "busy":
		return nil, &freshen.Failure{Destination: server, Reason: freshen.ReasonHTTP, Status: 429, RetryAfter: 2 * time.Hour, Sentence: "It is busy."}
	case "knows nobody":
		m.answers(server)
		return nil, unknown(ctx, target)
	}
	m.answers(server)
	return freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id":%q,"stream_id":1,"devices":[]}`, target), target)
}

func (m *model) answers(server string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watch.answered[server], m.watch.answers[server] = true, m.wall()
}

func (m *model) arrive(target id.UserID, backing bool) (does string) {
	server := freshen.Destination(target)
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &m.watch
	if w.running[target] {
		m.breaks("1: %s is fetched twice at once", target)
	}
	w.running[target] = true
	if backing {
		if w.probing[server]++; w.probing[server] > 1 {
			m.breaks("3: %d requests to %s, which is backing off", w.probing[server], server)
		}
	}
	places := append(w.places[server], time.Now())
	for i := range places {
		// Of so many in a row, the last is due no sooner than the rate has given back what is beyond the burst.
		due := places[i].Add(time.Duration(len(places)-i-modelBurst) * modelEvery)
		if last := places[len(places)-1]; last.Add(10 * time.Second).Before(due) {
			m.breaks("4: %d requests to %s within %v", len(places)-i, server, last.Sub(places[i]))
		}
	}
	w.places[server] = places
	return w.does[server]
}

func (m *model) leave(target id.UserID, backing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.watch.running, target)
	if backing {
		m.watch.probing[freshen.Destination(target)]--
	}
}
