// Package refresh is one refresh from the request to the answer: who may, whether it is needed, one fetch for all who
// ask at once, and then either the list kept and announced, or the failure recorded and owed.
package refresh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/retry"
	"freshen/internal/store"
)

const (
	// commitTimeout bounds how long an answer waits for the database.
	commitTimeout = 10 * time.Second
	// busyEvery is how often it is looked whether another instance has ended its fetch.
	busyEvery = 200 * time.Millisecond
	// longList is from how many bytes on a list is only kept for somebody who shares a room with its user.
	longList = 64 << 10
	// concernsTimeout bounds the question about that.
	concernsTimeout = 5 * time.Second
	// maxFetches is how often a flight is begun anew because another instance was faster.
	maxFetches = 3
)

// Fetcher asks a target's own server. Its error is a *[freshen.Failure].
type Fetcher interface {
	FetchDeviceList(ctx context.Context, target id.UserID) (*freshen.DeviceList, error)
}

// Neighbourhood knows who shares rooms with whom.
type Neighbourhood interface {
	// Shares asks whether who shares a room with target.
	Shares(ctx context.Context, who id.UserID, cred homeserver.Credentials, target id.UserID) (bool, error)
	// SharesOf asks with which of the targets who shares a room. With an error, it names those that could be told.
	SharesOf(ctx context.Context, who id.UserID, cred homeserver.Credentials, targets []id.UserID) ([]id.UserID, error)
	// Explore finds out, in the background, which local users a change of target's concerns, from the point of view of
	// who. It does not block.
	Explore(who id.UserID, cred homeserver.Credentials, target id.UserID)
	// Sharing asks which of the users share a room with target, without credentials at hand. Those of whom that cannot
	// be found out just now are in neither.
	Sharing(ctx context.Context, users []id.UserID, target id.UserID) (yes, no []id.UserID)
}

// Deliverer has the homeserver itself fetch a list and announce it, for sites that do not put freshen before /sync.
type Deliverer interface {
	// Mark notes durably that what the homeserver has of a target is stale. It is called with each list that was fetched for
	// somebody, before they are promised anything; if it fails, they are told so, in the words of a *[freshen.Error] if it is
	// one.
	Mark(ctx context.Context, list *freshen.DeviceList) error
	// Deliver says that the list of a target who was marked is kept, and the homeserver may fetch it. It does not wait for
	// that.
	Deliver(ctx context.Context, target id.UserID)
}

// Config is what an [Engine] needs to know.
type Config struct {
	// ServerName is ours.
	ServerName string
	// Timeout bounds one fetch, from the name lookup to the last byte.
	Timeout time.Duration
	// SuccessFor and FailureFor are how long an outcome answers further requests for the same target.
	SuccessFor, FailureFor time.Duration
	// PerUser limits requests of one local user. The limit per destination is the store's.
	PerUser limit.Rate
	// SharedRoomsOnly refuses a target with whom the requester shares no room.
	SharedRoomsOnly bool
	// ServerAllowed says whether the configuration allows a destination.
	ServerAllowed func(server string) bool
	Retry         retry.Policy
	// Fetching is told of each fetch, and done is called once its outcome is recorded. May be nil.
	Fetching func(target id.UserID) (done func())
	// Deliverer may be nil: then clients hear of changes from freshen alone.
	Deliverer Deliverer
	// Owed is called when something may be due earlier than before; it must not block.
	Owed func()
	// Observe is told of each request and what came of it, as the log is; nil for nobody. It must not block.
	Observe func(outcome string, err error)
	// Now and Random (from [0, 1)) are the clock and the dice; nil for the real ones.
	Now    func() time.Time
	Random func() float64
}

// Engine runs refreshes. Its methods are safe for concurrent use.
type Engine struct {
	cfg    Config
	store  *store.Store
	fetch  Fetcher
	rooms  Neighbourhood
	log    *slog.Logger
	users  *limit.Limiter
	asking *limit.Limiter // who asks how lists stand
	shared atomic.Bool    // SharedRoomsOnly, as it stands
	recent outcomes
	slow   slowness
	ended  endings

	// ctx ends the fetches that are running when the engine closes.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	flights map[id.UserID]*flight
	probes  map[string]*probe
}

// New returns an engine; Close ends it.
func New(cfg Config, s *store.Store, fetch Fetcher, rooms Neighbourhood, log *slog.Logger) *Engine {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Fetching == nil {
		cfg.Fetching = func(id.UserID) func() { return func() {} }
	}
	if cfg.Owed == nil {
		cfg.Owed = func() {}
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, error) {}
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	e := &Engine{
		cfg: cfg, store: s, fetch: fetch, rooms: rooms, log: log,
		users:   limit.New(cfg.PerUser),
		asking:  limit.New(standingRate),
		recent:  newOutcomes(cfg.SuccessFor, cfg.FailureFor),
		slow:    newSlowness(),
		flights: map[id.UserID]*flight{}, probes: map[string]*probe{},
	}
	e.shared.Store(cfg.SharedRoomsOnly)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// Limit changes who may ask, from now on.
func (e *Engine) Limit(perUser limit.Rate, sharedRoomsOnly bool) {
	e.users.SetRate(perUser)
	e.shared.Store(sharedRoomsOnly)
}

// Close abandons the fetches that are running, waits until what they leave is recorded, and refuses new ones.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
}

// Refresh does what who asks for: nil means that target's list is fresh and announced. Otherwise the error is a
// *[freshen.Error], or the context's if the caller went away, which cancels nothing for others.
func (e *Engine) Refresh(ctx context.Context, who freshen.Requester, target id.UserID, cred homeserver.Credentials) error {
	began := e.cfg.Now()
	how, err := e.refresh(ctx, who, target, cred)
	e.cfg.Observe(how, err)
	level, attrs := slog.LevelInfo, []any{"target", target, "requester", who.UserID, "outcome", how, "took", e.cfg.Now().Sub(began).Round(time.Microsecond)}
	if told, ok := errors.AsType[*freshen.Error](err); ok {
		attrs = append(attrs, "code", told.Code)
		if told.Failure != nil {
			attrs = append(attrs, "destination", told.Failure.Destination, "reason", told.Failure.Reason, "status", told.Failure.Status)
		}
		if told.RetryAfter > 0 {
			attrs = append(attrs, "retry_after", told.RetryAfter.Round(time.Millisecond))
		}
		if told.Err != nil {
			attrs = append(attrs, "err", told.Err)
		}
		if told.Code == freshen.CodeDatabaseAway || told.Code == freshen.CodeHomeserverDown {
			level = slog.LevelError
		}
	}
	e.log.Log(ctx, level, "refresh", attrs...)
	return err
}

func (e *Engine) refresh(ctx context.Context, who freshen.Requester, target id.UserID, cred homeserver.Credentials) (how string, err error) {
	if err := e.mayAsk(ctx, who, target, cred); err != nil {
		return "refused", err
	}
	if freshen.Destination(target) == e.cfg.ServerName {
		if err := e.store.AnnounceTo(ctx, target, []id.UserID{who.UserID}, e.cfg.Now()); err != nil {
			return "failed", store.Away(err)
		}
		return "local", nil
	}
	for {
		if past, ok := e.recent.get(target, e.cfg.Now()); ok {
			return e.answerAgain(ctx, who, target, past)
		}
		f := e.join(target, who.UserID, cred)
		select {
		case <-f.done:
		case <-ctx.Done():
			return "caller left", ctx.Err()
		}
		if f.has(who.UserID) {
			return f.how, f.answer()
		}
		// The flight was past taking passengers when we came: what it brought answers us, or we start another.
	}
}

// mayAsk refuses what costs nothing to refuse, before anything is sent.
func (e *Engine) mayAsk(ctx context.Context, who freshen.Requester, target id.UserID, cred homeserver.Credentials) error {
	if wait := e.users.Take(string(who.UserID), e.cfg.Now()); wait > 0 {
		return &freshen.Error{
			Code:       freshen.CodeLimited,
			Message:    fmt.Sprintf("You have asked for many device lists in a short time: please try again in %s.", inWords(wait)),
			RetryAfter: wait,
		}
	}
	destination := freshen.Destination(target)
	if destination == e.cfg.ServerName {
		return nil
	}
	if !e.cfg.ServerAllowed(destination) {
		return &freshen.Error{
			Code:    freshen.CodeForbidden,
			Message: fmt.Sprintf("The administrator of %s does not allow device lists to be asked for from %s.", e.cfg.ServerName, destination),
			Failure: &freshen.Failure{
				Destination: destination,
				Reason:      freshen.ReasonDenied,
				Sentence:    fmt.Sprintf("The configuration of %s denies %s.", e.cfg.ServerName, destination),
			},
		}
	}
	if !e.shared.Load() {
		return nil
	}
	shares, err := e.rooms.Shares(ctx, who.UserID, cred, target)
	if err != nil {
		return &freshen.Error{
			Code:    freshen.CodeHomeserverDown,
			Message: "The homeserver did not say whether you share a room with this user, so their device list was not asked for: please try again in a minute.",
			Err:     err,
		}
	}
	if !shares {
		return &freshen.Error{
			Code:    freshen.CodeForbidden,
			Message: "You share no room with this user, and this server only refreshes device lists of users with whom you do.",
		}
	}
	return nil
}

// answerAgain answers from the short-lived cache. The requester is recorded all the same: a success is announced to
// them, a failure is owed to them.
func (e *Engine) answerAgain(ctx context.Context, who freshen.Requester, target id.UserID, past outcome) (how string, err error) {
	now := e.cfg.Now()
	asking := []id.UserID{who.UserID}
	if past.failure == nil {
		if err := e.store.AnnounceTo(ctx, target, asking, now); err != nil {
			return "failed", store.Away(err)
		}
		return "fetched just before", nil
	}
	if past.failure.Blames() == freshen.BlameNobody {
		return "failed just before", tell(past.failure, time.Time{}, now)
	}
	next, err := e.askAgain(ctx, target, asking, past, now)
	if err != nil {
		return "failed", store.Away(err)
	}
	e.cfg.Owed()
	return "failed just before", tell(past.failure, next, now)
}

// askAgain records a promise for which nothing is fetched now. past is the outcome that the requesters are told of, which is
// no failure where there was none to wait for.
func (e *Engine) askAgain(ctx context.Context, target id.UserID, requesters []id.UserID, past outcome, now time.Time) (next time.Time, err error) {
	return e.store.AskAgain(ctx, target, requesters, now, past.next, func(debt store.Debt) store.Debt {
		return e.cfg.Retry.Begins(debt, past.failure, now, e.cfg.Random())
	})
}
