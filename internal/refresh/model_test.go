package refresh_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/store"
)

// What must hold, whatever happens in whatever order. model_watch_test.go holds the engine to the first five at each
// fetch; check and finish to the others.
//
//  1. One fetch of a target at a time.
//  2. Retries make at most four requests to a destination at once.
//  3. While a destination is backing off, it gets one request at a time.
//  4. A destination gets no more than its rate allows (and ten seconds' worth that waited for others).
//  5. A retry is not made before the end of the backoff.
//  6. A backoff is shortened by an answer alone, which ends it, or by a clock that is set.
//  7. What a client was told will be tried again is owed until it is paid, given up after its time, denied by the
//     configuration, or until nobody who was told so shares a room with the target any more.
//  8. Who was told so, and who was told of a success, finds an announcement to them that is newer than their request.
//  9. Announcements are heard of in the order of their positions, and none that stands is skipped, in any life.
//  10. Once all servers are well, everything is paid within the longest wait there is.
const (
	modelEvery  = 30 * time.Second
	modelBurst  = 12
	modelGiveUp = 12 * time.Hour
)

var (
	modelPolicy  = retry.Policy{First: 30 * time.Second, Most: time.Hour, GiveUpAfter: modelGiveUp}
	modelTargets = []id.UserID{"@one:b.example", "@two:b.example", "@three:b.example", "@four:b.example", "@five:b.example", "@six:b.example", "@one:c.example", "@two:c.example"}
	modelUsers   = []id.UserID{"@alice:a.example", "@carol:a.example"}
	modelServers = []string{"b.example", "c.example"}
)

// promise is what a user was told.
type promise struct {
	user, target id.UserID
	head         int64     // before they asked
	askedAt      time.Time // by the wall clock
}

// model is the world around an engine, and what it owes.
type model struct {
	t    *rapid.T
	path string

	store  *store.Store
	engine *refresh.Engine
	stop   func()        // the worker
	set    time.Duration // the wall clock's distance from the bubble's
	denied map[string]bool
	calls  sync.WaitGroup

	mu        sync.Mutex
	broken    string // the first thing that does not hold
	watch     watch
	promises  []promise
	announced map[store.Announcement]int64 // without position and time: the newest position
	head      int64
	shares    map[id.UserID]string
	shared    map[promise]bool // who was ever asked about and said yes; user and target alone
	backoff   map[string]time.Time
}

// TestEngineAgainstTheModel tries the same sequences each time; -rapid.seed=0 -rapid.checks=500 tries others.
func TestEngineAgainstTheModel(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		var failure any
		synctest.Test(t, func(*testing.T) {
			m := &model{
				t: rt, path: filepath.Join(dir, fmt.Sprintf("%d.db", n)), denied: map[string]bool{},
				announced: map[store.Announcement]int64{}, shares: map[id.UserID]string{}, shared: map[promise]bool{},
				backoff: map[string]time.Time{},
			}
			m.open()
			defer m.close()
			defer func() { failure = recover() }()
			m.run()
		})
		if failure != nil {
			panic(failure)
		}
	})
}

func (m *model) run() {
	m.t.Repeat(map[string]func(*rapid.T){
		"ask":     func(t *rapid.T) { m.t = t; m.ask() },
		"ask 2":   func(t *rapid.T) { m.t = t; m.ask() },
		"ask 3":   func(t *rapid.T) { m.t = t; m.ask() },
		"crowd":   func(t *rapid.T) { m.t = t; m.crowd() },
		"overlay": func(t *rapid.T) { m.t = t; m.overlay() },
		"server":  func(t *rapid.T) { m.t = t; m.change() },
		"rooms":   func(t *rapid.T) { m.t = t; m.move() },
		"time":    func(t *rapid.T) { m.t = t; m.wait() },
		"time 2":  func(t *rapid.T) { m.t = t; m.wait() },
		"clock":   func(t *rapid.T) { m.t = t; m.setClock() },
		"restart": func(t *rapid.T) { m.t = t; m.restart() },
		"":        func(t *rapid.T) { m.t = t; m.check() },
	})
	m.finish()
}

func (m *model) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wall()
}

func (m *model) wall() time.Time { return time.Now().Round(0).Add(m.set) }

func (m *model) open() {
	log := slog.New(slog.DiscardHandler)
	rate := limit.Rate{Every: modelEvery, Burst: modelBurst}
	s, err := store.Open(context.Background(), store.Config{Path: m.path, PerDestination: rate, Log: log})
	if err != nil {
		m.t.Fatal(err)
	}
	m.store = s
	s.OnCommit(m.heard)
	var worker *retry.Worker
	m.engine = refresh.New(refresh.Config{
		ServerName: "a.example", Timeout: 10 * time.Second, SuccessFor: 30 * time.Second, FailureFor: 10 * time.Second,
		PerUser:       limit.Rate{Every: time.Second, Burst: 1000},
		ServerAllowed: func(server string) bool { return !m.denied[server] },
		Retry:         modelPolicy,
		Owed:          func() { worker.Poke() },
		Now:           m.now,
	}, s, m, m, log)
	worker = retry.NewWorker(s, retry.Config{Pay: m.pay, Lease: m.engine.LongestPay(), Policy: modelPolicy, Log: log, Now: m.now})
	m.mu.Lock()
	m.watch.begin()
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	if err := errors.Join(s.ReleaseClaims(ctx, m.now()), m.engine.DropDenied(ctx)); err != nil {
		m.t.Fatal(err)
	}
	go func() { worker.Run(ctx); close(done) }()
	m.stop = func() { cancel(); <-done }
}

// close ends a life of the process in order.
func (m *model) close() {
	m.engine.Close()
	m.stop()
	_ = m.store.Close()
	m.calls.Wait()
}

// crash ends it as a crash does: nothing more is recorded.
func (m *model) crash() {
	_ = m.store.Close()
	m.engine.Close()
	m.stop()
	m.calls.Wait()
}

func (m *model) restart() {
	if rapid.Bool().Draw(m.t, "in order") {
		m.close()
	} else {
		m.crash()
	}
	if rapid.IntRange(0, 3).Draw(m.t, "configured") == 0 {
		server := rapid.SampledFrom(modelServers).Draw(m.t, "server")
		m.denied[server] = !m.denied[server]
	}
	time.Sleep(rapid.SampledFrom([]time.Duration{0, time.Minute, 5 * time.Hour}).Draw(m.t, "down for"))
	m.forgive()
	m.open()
	synctest.Wait()
}

// forgive drops the promises that the configuration takes back.
func (m *model) forgive() {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := m.promises[:0]
	for _, p := range m.promises {
		if !m.denied[freshen.Destination(p.target)] {
			left = append(left, p)
		}
	}
	m.promises = left
}

func (m *model) ask() {
	user := rapid.SampledFrom(modelUsers).Draw(m.t, "user")
	target := rapid.SampledFrom(modelTargets).Draw(m.t, "target")
	for range rapid.SampledFrom([]int{1, 1, 3}).Draw(m.t, "times") {
		m.calls.Go(func() { m.press(user, target) })
	}
	synctest.Wait()
}

// crowd asks for everybody at once.
func (m *model) crowd() {
	user := rapid.SampledFrom(modelUsers).Draw(m.t, "user")
	for _, target := range modelTargets {
		m.calls.Go(func() { m.press(user, target) })
	}
	synctest.Wait()
}

// press asks and remembers what was answered.
func (m *model) press(user, target id.UserID) {
	m.mu.Lock()
	p := promise{user: user, target: target, head: m.head}
	m.mu.Unlock()
	err := m.engine.Refresh(context.Background(), freshen.Requester{UserID: user}, target, homeserver.Credentials{})
	m.mu.Lock()
	defer m.mu.Unlock()
	p.askedAt = m.wall()
	told, _ := errors.AsType[*freshen.Error](err)
	switch {
	case err == nil:
		if m.announced[store.Announcement{Target: target, Audience: user}] <= p.head {
			m.breaks("8: %s was told of a success about %s, and it is not announced to them", user, target)
		}
	case told.Code == freshen.CodeRemote && !m.denied[p.server()]:
		m.promises = append(m.promises, p)
	}
}

func (p promise) server() string { return freshen.Destination(p.target) }

func (m *model) overlay() {
	target := rapid.SampledFrom(modelTargets).Draw(m.t, "target")
	m.calls.Go(func() { m.engine.Again(context.Background(), target) })
	synctest.Wait()
}

func (m *model) wait() {
	time.Sleep(rapid.SampledFrom([]time.Duration{
		time.Second, 12 * time.Second, time.Minute, 5 * time.Minute, 90 * time.Minute, 7 * time.Hour,
	}).Draw(m.t, "time"))
	synctest.Wait()
}

func (m *model) setClock() {
	by := rapid.SampledFrom([]time.Duration{-25 * time.Hour, -time.Hour, -time.Minute, time.Minute, time.Hour, 25 * time.Hour}).Draw(m.t, "by")
	m.mu.Lock()
	m.set += by
	m.watch.clockSet()
	for i, p := range m.promises {
		if now := m.wall(); p.askedAt.After(now) {
			m.promises[i].askedAt = now
		}
	}
	clear(m.backoff)
	m.mu.Unlock()
	// The worker looks at the clock once a minute at least, and then keeps the waits within bounds.
	time.Sleep(90 * time.Second)
	synctest.Wait()
	m.mu.Lock()
	clear(m.backoff)
	m.mu.Unlock()
}

func (m *model) move() {
	user := rapid.SampledFrom(modelUsers).Draw(m.t, "user")
	how := rapid.SampledFrom([]string{"offline", "shares", "left"}).Draw(m.t, "how")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shares[user] = how
}

// Shares and Explore are not asked here.
func (m *model) Shares(context.Context, id.UserID, homeserver.Credentials, id.UserID) (bool, error) {
	return true, nil
}

func (m *model) SharesOf(_ context.Context, _ id.UserID, _ homeserver.Credentials, targets []id.UserID) ([]id.UserID, error) {
	return targets, nil
}

func (m *model) Explore(id.UserID, homeserver.Credentials, id.UserID) {}

func (m *model) Sharing(_ context.Context, users []id.UserID, target id.UserID) (yes, no []id.UserID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, user := range users {
		switch m.shares[user] {
		case "shares":
			yes = append(yes, user)
			m.shared[promise{user: user, target: target}] = true
		case "left":
			no = append(no, user)
		}
	}
	return yes, no
}

func (m *model) heard(c store.Committed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range c.Announced {
		if a.Position <= m.head {
			m.breaks("9: position %d comes after %d", a.Position, m.head)
		}
		m.head = a.Position
		m.announced[store.Announcement{Target: a.Target, Audience: a.Audience}] = a.Position
	}
}

// breaks is called under mu.
func (m *model) breaks(format string, args ...any) {
	if m.broken == "" {
		m.broken = fmt.Sprintf(format, args...)
	}
}

// check looks at the world while nothing moves.
func (m *model) check() {
	synctest.Wait()
	owed := m.owed()
	standing, _, err := m.store.Announcements(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range standing {
		if heard := m.announced[store.Announcement{Target: a.Target, Audience: a.Audience}]; heard != a.Position {
			m.breaks("9: %s was announced to %q at %d, and heard of at %d", a.Target, a.Audience, a.Position, heard)
		}
	}
	m.checkBackoff()
	m.checkPromises(owed)
	if m.broken != "" {
		m.t.Fatal(m.broken)
	}
}

func (m *model) checkBackoff() {
	for _, server := range modelServers {
		dest, err := m.store.Backoff(context.Background(), server)
		if err != nil {
			m.t.Fatal(err)
		}
		if m.watch.answered[server] {
			delete(m.backoff, server)
			m.watch.answered[server] = false
		}
		if before := m.backoff[server]; dest.RetryAt.Before(before) && !m.denied[server] {
			m.breaks("6: the backoff of %s went from %v to %v without an answer", server, before, dest.RetryAt)
		}
		if dest.Failures == 0 && !dest.RetryAt.IsZero() {
			m.breaks("6: %s has answered, and is left alone until %v", server, dest.RetryAt)
		}
		m.backoff[server] = dest.RetryAt
	}
}

func (m *model) checkPromises(owed map[id.UserID]bool) {
	left := m.promises[:0]
	for _, p := range m.promises {
		heard := m.announced[store.Announcement{Target: p.target, Audience: p.user}] > p.head
		switch {
		case heard:
		case owed[p.target]:
			left = append(left, p)
		case m.expired(p), m.nobodyShares(p.target):
		default:
			m.breaks("7: what %s was promised about %s at %v is not owed at %v", p.user, p.target, p.askedAt, m.wall())
		}
	}
	m.promises = left
}

// expired says that nobody has asked for the target for too long.
func (m *model) expired(about promise) bool {
	for _, p := range m.promises {
		if p.target == about.target && m.wall().Before(p.askedAt.Add(modelGiveUp)) {
			return false
		}
	}
	return true
}

func (m *model) nobodyShares(target id.UserID) bool {
	for _, p := range m.promises {
		if p.target == target && (m.shares[p.user] != "left" || !m.shared[promise{user: p.user, target: target}]) {
			return false
		}
	}
	return true
}

// owed reads whose debts stand in the database.
func (m *model) owed() map[id.UserID]bool {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: m.path}).EscapedPath()+"?_pragma=busy_timeout(5000)&_pragma=query_only(ON)")
	if err != nil {
		m.t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(context.Background(), `SELECT user_id FROM debts`)
	if err != nil {
		m.t.Fatal(err)
	}
	defer rows.Close()
	owed := map[id.UserID]bool{}
	for rows.Next() {
		var target id.UserID
		if err := rows.Scan(&target); err != nil {
			m.t.Fatal(err)
		}
		owed[target] = true
	}
	if err := rows.Err(); err != nil {
		m.t.Fatal(err)
	}
	return owed
}

// finish makes all servers well, and waits until nothing is owed.
func (m *model) finish() {
	m.mu.Lock()
	m.watch.does = map[string]string{}
	m.mu.Unlock()
	for range int(modelPolicy.Longest()/time.Hour) + 2 {
		m.check()
		if len(m.owed()) == 0 {
			break
		}
		time.Sleep(time.Hour)
	}
	m.check()
	if owed := m.owed(); len(owed) > 0 {
		m.t.Fatalf("10: %v are owed after the longest wait", owed)
	}
	if len(m.promises) > 0 {
		m.t.Fatalf("8: nobody told %v", m.promises)
	}
}
