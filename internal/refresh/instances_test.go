package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

// instance is one freshen of several over one Postgres.
type instance struct {
	*script
	t      *testing.T
	store  *store.Store
	engine *refresh.Engine
	worker *retry.Worker
	// ahead is by how much its clock is; looks has one entry for each look at it.
	ahead atomic.Int64
	looks chan struct{}
}

// instances opens n of them; the world does the same for all.
func instances(t *testing.T, n int, rate limit.Rate) []*instance {
	t.Helper()
	return instancesWithin(t, n, rate, 10*time.Second)
}

// instancesWithin sets how long one fetch may take.
func instancesWithin(t *testing.T, n int, rate limit.Rate, timeout time.Duration) []*instance {
	t.Helper()
	cfg := store.Config{
		URL: storetest.Shared(t).NewDatabase(t), PerDestination: rate,
		SuccessFor: 30 * time.Second, FailureFor: 10 * time.Second, Log: slog.New(slog.DiscardHandler),
	}
	world := &script{began: time.Now()}
	all := make([]*instance, n)
	for i := range all {
		all[i] = open(t, cfg, world, timeout)
	}
	return all
}

func open(t *testing.T, cfg store.Config, world *script, timeout time.Duration) *instance {
	t.Helper()
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{script: world, t: t, store: s, looks: make(chan struct{}, 1000)}
	policy := retry.Policy{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 24 * time.Hour}
	in.engine = refresh.New(refresh.Config{
		ServerName: "a.example", Timeout: timeout, SuccessFor: cfg.SuccessFor, FailureFor: cfg.FailureFor,
		PerUser:       limit.Rate{Every: time.Second, Burst: 1000},
		ServerAllowed: func(string) bool { return true },
		Retry:         policy,
		Now:           in.now,
		Random:        func() float64 { return 0.5 },
	}, s, world, world, cfg.Log)
	in.worker = retry.NewWorker(s, retry.Config{Pay: in.engine.Pay, Lease: in.engine.LongestPay(), Policy: policy, Log: cfg.Log, Now: in.now})
	t.Cleanup(func() {
		in.engine.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func (in *instance) now() time.Time {
	select {
	case in.looks <- struct{}{}:
	default:
	}
	return time.Now().Add(time.Duration(in.ahead.Load()))
}

// ask is a refresh that waits for its answer elsewhere.
func (in *instance) ask(user, target id.UserID) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- in.engine.Refresh(context.WithoutCancel(in.t.Context()), freshen.Requester{UserID: user}, target, homeserver.Credentials{})
	}()
	return done
}

// waits returns once a refresh that was asked for has looked twice whether it may begin: it looks at the clock each time.
func (in *instance) waits() {
	for range 8 {
		<-in.looks
	}
}

// holds has the world's next fetches wait for the function that it returns; began hears of each.
func (s *script) holds(then func(context.Context, id.UserID) error) (began <-chan id.UserID, release func()) {
	arrived, open := make(chan id.UserID, 100), make(chan struct{})
	s.does(func(ctx context.Context, target id.UserID) error {
		arrived <- target
		<-open // as a process that is stopped, it does not hear that its time is up
		if then == nil {
			return nil
		}
		return then(ctx, target)
	})
	return arrived, sync.OnceFunc(func() { close(open) })
}

var ample = limit.Rate{Every: time.Second, Burst: 1000}

// Whoever asks at one instance while another fetches gets what that brings, and the server is asked once.
func TestOneFetchOverAllInstances(t *testing.T) {
	for name, fails := range map[string]func(context.Context, id.UserID) error{"success": nil, "failure": down} {
		t.Run(name, func(t *testing.T) {
			all := instances(t, 3, ample)
			began, release := all[0].holds(fails)
			defer release()
			answers := []<-chan error{all[0].ask("@a0:a.example", bob)}
			<-began
			for i, in := range all[1:] {
				in.forget()
				answers = append(answers, in.ask(id.UserID(fmt.Sprintf("@a%d:a.example", i+1)), bob))
				in.waits()
			}
			release()
			for i, answer := range answers {
				err := <-answer
				told, _ := errors.AsType[*freshen.Error](err)
				if (fails == nil) != (err == nil) || (fails != nil && (codeOf(err) != freshen.CodeRemote || told.Failure.Sentence != "It is down.")) {
					t.Errorf("at instance %d: %v", i, err)
				}
			}
			if n := len(all[0].fetched()); n != 1 {
				t.Errorf("%d fetches", n)
			}
			promised, err := all[0].store.Promised(t.Context(), bob, 10)
			announced, _, err2 := all[0].store.Announcements(t.Context())
			if want := map[bool]int{true: 4, false: 0}[fails == nil]; len(announced) != want || err2 != nil {
				t.Errorf("announced to %v (%v), want the three who asked and everybody, or nobody", announced, err2)
			}
			if want := map[bool]int{true: 0, false: 3}[fails == nil]; len(promised) != want || err != nil {
				t.Errorf("promised to %v (%v), want all who were told of the failure", promised, err)
			}
		})
	}
}

// forget drops the looks at the clock so far.
func (in *instance) forget() {
	for {
		select {
		case <-in.looks:
		default:
			return
		}
	}
}

// Where another instance's fetch does not end in time, whoever waits for it is told so and promised a retry, as is who
// waits while freshen stops; it counts against nobody, for nobody has been asked.
func TestAFetchElsewhereThatDoesNotEnd(t *testing.T) {
	for name, stops := range map[string]bool{"in time": false, "before the stop": true} {
		t.Run(name, func(t *testing.T) {
			timeout := time.Second
			if stops {
				timeout = time.Hour
			}
			all := instancesWithin(t, 2, ample, timeout)
			began, release := all[0].holds(nil)
			defer release()
			first := all[0].ask("@a:a.example", bob)
			<-began
			all[1].forget()
			second := all[1].ask("@b:a.example", bob)
			if stops {
				all[1].waits()
				all[1].engine.Close()
			}
			err := <-second
			told, ok := errors.AsType[*freshen.Error](err)
			if !ok || told.Code != freshen.CodeRemote || told.Failure.Reason != freshen.ReasonTimeout {
				t.Errorf("who waited got %v", err)
			}
			promised, err := all[1].store.Promised(t.Context(), bob, 10)
			if err != nil || len(promised) != 1 || promised[0].UserID != "@b:a.example" {
				t.Errorf("promised to %v (%v)", promised, err)
			}
			if dest, err := all[1].store.Backoff(t.Context(), "b.example"); err != nil || dest.Failures != 0 {
				t.Errorf("it counts: %+v (%v)", dest, err)
			}
			release()
			if err := <-first; err != nil {
				t.Errorf("who waited for the fetch itself got %v", err)
			}
		})
	}
}

// A failure of a moment ago is told at every instance, and not made again; who is told of it there is promised as much.
func TestAFailureIsToldAtEveryInstance(t *testing.T) {
	all := instances(t, 2, ample)
	all[0].does(unknown)
	for i, in := range all {
		err := <-in.ask(id.UserID(fmt.Sprintf("@a%d:a.example", i)), bob)
		told, ok := errors.AsType[*freshen.Error](err)
		if !ok || told.Failure == nil || told.Failure.Status != 404 || told.RetryAfter.Round(time.Hour) != time.Hour {
			t.Errorf("instance %d: %v", i, err)
		}
	}
	if n := len(all[0].fetched()); n != 1 {
		t.Errorf("%d fetches", n)
	}
	promised, err := all[1].store.Promised(t.Context(), bob, 10)
	if err != nil || len(promised) != 2 {
		t.Errorf("promised to %v (%v)", promised, err)
	}
}

// However many instances there are, a server gets no more than its rate.
func TestARateOverAllInstances(t *testing.T) {
	all := instances(t, 2, limit.Rate{Every: time.Hour, Burst: 4})
	limited := 0
	for i := range 10 {
		err := <-all[i%2].ask("@a:a.example", user(i))
		switch codeOf(err) {
		case freshen.CodeLimited:
			limited++
		default:
			if err != nil {
				t.Error(err)
			}
		}
	}
	if n := len(all[0].fetched()); n != 4 || limited != 6 {
		t.Errorf("%d fetches, %d refused; want 4 and 6", n, limited)
	}
}

// An instance that was stopped in the middle of a fetch comes back when another has fetched what is newer: that stays,
// and whoever waited at the first is told the truth.
func TestAnInstanceThatWasPaused(t *testing.T) {
	for name, fails := range map[string]func(context.Context, id.UserID) error{"late success": nil, "late failure": down} {
		t.Run(name, func(t *testing.T) {
			all := instances(t, 2, ample)
			paused, other := all[0], all[1]
			began, release := paused.holds(fails)
			defer release()
			late := paused.ask("@a:a.example", bob)
			<-began
			paused.does(nil)
			other.ahead.Store(int64(25 * time.Second)) // longer than the lease
			if err := <-other.ask("@b:a.example", bob); err != nil {
				t.Fatalf("the other instance, once the lease is over: %v", err)
			}
			before, err := other.store.KeptLists(t.Context())
			if err != nil || len(before) != 1 {
				t.Fatalf("kept %v (%v)", before, err)
			}
			release()
			if err := <-late; err != nil {
				t.Errorf("who waited at the paused instance got %v", err)
			}
			after, err := other.store.KeptLists(t.Context())
			if err != nil || len(after) != 1 || !after[0].FetchedAt.Equal(before[0].FetchedAt) {
				t.Errorf("the newer list of %v was written over by %v (%v)", before, after, err)
			}
			if n := len(other.fetched()); n != 2 {
				t.Errorf("%d fetches", n)
			}
			if n, err := other.store.Debts(t.Context()); n != 0 || err != nil {
				t.Errorf("%d debts (%v) after a success", n, err)
			}
			if dest, err := other.store.Backoff(t.Context(), "b.example"); err != nil || dest.Failures != 0 {
				t.Errorf("a failure from before the success counts: %+v (%v)", dest, err)
			}
		})
	}
}

// An instance whose fetches are overtaken again and again still does not leave whom it cannot answer without a promise.
func TestAnInstanceThatIsAlwaysTooLate(t *testing.T) {
	all := instances(t, 2, ample)
	late, other := all[0], all[1]
	late.does(func(ctx context.Context, target id.UserID) error {
		f := store.Fetch{Target: target, Token: "overtakes", Now: time.Now().Add(time.Minute), Lease: time.Minute}
		begun, err := other.store.Begin(ctx, f)
		if err != nil || begun.Busy {
			t.Errorf("it was not overtaken: %+v %v", begun, err)
		}
		return other.store.Abandon(ctx, target, f.Token)
	})
	err := <-late.ask("@a:a.example", bob)
	told, ok := errors.AsType[*freshen.Error](err)
	if !ok || told.Code != freshen.CodeRemote || told.Failure.Reason != freshen.ReasonTimeout {
		t.Errorf("who waited got %v", err)
	}
	promised, err := late.store.Promised(t.Context(), bob, 10)
	if err != nil || len(promised) != 1 || len(late.fetched()) != 3 {
		t.Errorf("promised to %v (%v) after %d fetches", promised, err, len(late.fetched()))
	}
	late.does(nil)
	debts, err := late.store.Claim(t.Context(), time.Now(), time.Minute, "claim", store.Places{Fine: 1, Failing: 1})
	if err != nil || len(debts) != 1 {
		t.Fatalf("claimed %v (%v): the debt waits though nobody is to blame", debts, err)
	}
	if err := late.engine.Pay(t.Context(), debts[0]); err != nil {
		t.Error(err)
	}
	if n, err := late.store.Debts(t.Context()); n != 0 || err != nil {
		t.Errorf("%d debts are left (%v)", n, err)
	}
}

// What an instance had claimed when it died is paid by another once the lease is over, and not before.
func TestAnInstanceThatDied(t *testing.T) {
	all := instances(t, 2, ample)
	dead, other := all[0], all[1]
	dead.does(unknown)
	if err := <-dead.ask("@a:a.example", bob); codeOf(err) != freshen.CodeRemote {
		t.Fatalf("got %v", err)
	}
	dead.does(nil)
	due := time.Now().Add(2 * time.Hour)
	claimed, err := dead.store.Claim(t.Context(), due, time.Hour, "claim", store.Places{Fine: 10, Failing: 10})
	if err != nil || len(claimed) != 1 {
		t.Fatalf("claimed %v (%v)", claimed, err)
	}
	if _, err := dead.store.Begin(t.Context(), store.Fetch{Target: bob, Token: "dead", Now: due, Lease: 20 * time.Second, Claimed: true}); err != nil {
		t.Fatal(err)
	}
	if again, err := other.store.Claim(t.Context(), due.Add(59*time.Minute), time.Minute, "early", store.Places{Fine: 10, Failing: 10}); err != nil || len(again) != 0 {
		t.Errorf("claimed %v (%v) before the lease was over", again, err)
	}
	other.ahead.Store(int64(4 * time.Hour))
	heard := make(chan store.Announcement, 10)
	other.store.OnCommit(func(c store.Committed) {
		for _, a := range c.Announced {
			heard <- a
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { other.worker.Run(ctx); close(done) }()
	for a := range heard {
		if a.Audience == "@a:a.example" && a.Target == bob {
			break
		}
	}
	stop()
	<-done
	if n, err := other.store.Debts(t.Context()); n != 0 || err != nil {
		t.Errorf("%d debts are left (%v)", n, err)
	}
}
