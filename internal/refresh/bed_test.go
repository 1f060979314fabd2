package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/store"
)

const (
	bob = id.UserID("@bob:b.example")
	eve = id.UserID("@eve:b.example")
)

// bed is an engine over a real database, in a bubble whose clock the tests move by sleeping.
type bed struct {
	t      *testing.T
	store  *store.Store
	engine *refresh.Engine
	worker *retry.Worker
	stop   func()
	policy retry.Policy
	*script
}

// longDevices are three devices of 30 KiB each.
var longDevices = func() string {
	padding := strings.Repeat("x", 30<<10)
	return fmt.Sprintf(`{"device_id":"A","keys":{"x":%[1]q}},{"device_id":"B","keys":{"x":%[1]q}},{"device_id":"C","keys":{"x":%[1]q}}`, padding)
}()

// script is the rest of the world.
type script struct {
	mu      sync.Mutex
	fetches []time.Duration // when, since the test's start
	began   time.Time
	running int
	most    int
	explore []id.UserID
	// shares answers for those who are online; who is not in it is not.
	shares map[id.UserID]bool
	// deaf is what the homeserver fails with when it is asked for rooms.
	deaf error
	// long makes the lists longer than what is kept of strangers.
	long bool
	// answer is what the destination does; nil for an empty list.
	answer func(ctx context.Context, target id.UserID) error
}

func (s *script) FetchDeviceList(ctx context.Context, target id.UserID) (*freshen.DeviceList, error) {
	s.mu.Lock()
	s.fetches = append(s.fetches, time.Since(s.began))
	s.running++
	s.most = max(s.most, s.running)
	answer, long := s.answer, s.long
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
	}()
	if answer != nil {
		if err := answer(ctx, target); err != nil {
			return nil, err
		}
	}
	devices := ""
	if long {
		devices = longDevices
	}
	return freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id":%q,"stream_id":1,"devices":[%s]}`, target, devices), target)
}

func (s *script) does(answer func(context.Context, id.UserID) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *script) fetched() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.fetches)
}

func (s *script) Shares(context.Context, id.UserID, homeserver.Credentials, id.UserID) (bool, error) {
	return true, nil
}

func (s *script) SharesOf(_ context.Context, _ id.UserID, _ homeserver.Credentials, targets []id.UserID) (yes []id.UserID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, target := range targets {
		if s.shares[target] {
			yes = append(yes, target)
		}
	}
	return yes, s.deaf
}

func (s *script) Explore(who id.UserID, _ homeserver.Credentials, _ id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.explore = append(s.explore, who)
}

func (s *script) Sharing(_ context.Context, users []id.UserID, _ id.UserID) (yes, no []id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, user := range users {
		switch shares, online := s.shares[user]; {
		case !online:
		case shares:
			yes = append(yes, user)
		default:
			no = append(no, user)
		}
	}
	return yes, no
}

func down(_ context.Context, target id.UserID) error {
	return &freshen.Failure{Destination: freshen.Destination(target), Reason: freshen.ReasonConnect, Sentence: "It is down."}
}

func unknown(_ context.Context, target id.UserID) error {
	return &freshen.Failure{
		Destination: freshen.Destination(target), Reason: freshen.ReasonHTTP, Status: 404, ErrCode: "M_NOT_FOUND", Sentence: "It knows no such user.",
	}
}

// settings are what a test may change.
type settings struct {
	refresh.Config
	perDestination limit.Rate
	// pay sees the debts that are tried, and workerNow the worker's looks at the clock; may be nil.
	pay       func(store.Debt)
	workerNow func()
}

// within runs test in a bubble.
func within(t *testing.T, edit func(*settings), test func(t *testing.T, b *bed)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "freshen.db")
	synctest.Test(t, func(t *testing.T) {
		b := &bed{t: t, script: &script{began: time.Now()}}
		cfg := settings{perDestination: limit.Rate{Every: time.Second, Burst: 1000}, Config: refresh.Config{
			ServerName: "a.example", Timeout: 10 * time.Second, SuccessFor: 30 * time.Second, FailureFor: 10 * time.Second,
			PerUser:       limit.Rate{Every: time.Second, Burst: 1000},
			ServerAllowed: func(string) bool { return true },
			Retry:         retry.Policy{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 24 * time.Hour},
			Random:        func() float64 { return 0.5 },
			Now:           time.Now,
			Owed:          func() { b.worker.Poke() },
		}}
		if edit != nil {
			edit(&cfg)
		}
		log := slog.New(slog.DiscardHandler)
		b.policy = cfg.Retry
		s, err := store.Open(t.Context(), store.Config{Path: path, PerDestination: cfg.perDestination, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		b.store = s
		b.engine = refresh.New(cfg.Config, s, b.script, b.script, log)
		b.worker = retry.NewWorker(s, retry.Config{
			Pay: func(ctx context.Context, debt store.Debt) error {
				if cfg.pay != nil {
					cfg.pay(debt)
				}
				return b.engine.Pay(ctx, debt)
			},
			Lease: b.engine.LongestPay(), Policy: cfg.Retry, Log: log,
			Now: func() time.Time {
				if cfg.workerNow != nil {
					cfg.workerNow()
				}
				return cfg.Now()
			},
		})
		b.stop = sync.OnceFunc(b.engine.Close)
		test(t, b)
		b.stop()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (b *bed) refresh(user, target id.UserID) error {
	return b.engine.Refresh(b.t.Context(), freshen.Requester{UserID: user}, target, homeserver.Credentials{})
}

// works runs the worker until the test's end.
func (b *bed) works() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() { b.worker.Run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

func (b *bed) debts() int {
	b.t.Helper()
	n, err := b.store.Debts(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func codeOf(err error) freshen.Code {
	if told, ok := errors.AsType[*freshen.Error](err); ok {
		return told.Code
	}
	return ""
}
