package store_test

import (
	"errors"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

func begin(t *testing.T, s *store.Store, f store.Fetch) store.Begun {
	t.Helper()
	begun, err := s.Begin(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return begun
}

func goes(b store.Begun) bool { return b.Wait == 0 && !b.Busy && b.Past == nil }

func fail(t *testing.T, s *store.Store, target id.UserID, token string, at time.Time, failure *freshen.Failure) error {
	t.Helper()
	_, err := s.RecordFailure(t.Context(), store.Failed{
		Target: target, Destination: freshen.Destination(target), At: at, Requesters: []id.UserID{"@alice:a.org"}, Token: token, Failure: failure,
	}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		dest.Failures++
		dest.RetryAt = at.Add(time.Minute)
		return dest, debt, true
	})
	return err
}

var refused = &freshen.Failure{
	Destination: "b.org", Reason: freshen.ReasonHTTP, Sentence: "b.org said no.", Status: 503, ErrCode: "M_UNKNOWN", RemoteError: "gone “fishing”",
	RetryAfter: time.Minute, Err: errors.New("for the log"),
}

// However many instances a site runs, a remote server is asked no faster than its administrator configured.
func TestARateIsOneOverAllInstances(t *testing.T) { each(t, testARateIsOne) }

func testARateIsOne(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	all := []*store.Store{s, s}
	if cfg.URL != nil {
		all[1] = instance(t, cfg)
	}
	let := 0
	var last store.Begun
	for i := range 30 {
		target := id.UserID("@u" + string(rune('a'+i)) + ":b.org")
		if last = begin(t, all[i%2], store.Fetch{Target: target, Token: "t", Now: start, Lease: time.Minute}); goes(last) {
			let++
		}
	}
	if let != cfg.PerDestination.Burst || last.Wait != time.Second {
		t.Errorf("%d fetches began at once where %d may, and the next is let in %v", let, cfg.PerDestination.Burst, last.Wait)
	}
	if b := begin(t, all[1], store.Fetch{Target: "@other:c.org", Token: "t", Now: start, Lease: time.Minute}); !goes(b) {
		t.Errorf("another destination must wait: %+v", b)
	}
	if b := begin(t, all[1], store.Fetch{Target: "@retry:b.org", Token: "t", Now: start, Lease: time.Minute, Claimed: true}); !goes(b) {
		t.Errorf("a retry, which has taken its place when it was claimed, must wait: %+v", b)
	}
	if b := begin(t, all[0], store.Fetch{Target: "@later:b.org", Token: "t", Now: start.Add(time.Second), Lease: time.Minute}); !goes(b) {
		t.Errorf("nothing is let through a second later: %+v", b)
	}
	// A clock that is set back an hour, and one that was wrong by one.
	if b := begin(t, all[1], store.Fetch{Target: "@back:b.org", Token: "t", Now: start.Add(-time.Hour), Lease: time.Minute}); b.Wait > time.Second {
		t.Errorf("a clock that was set back refuses for %v", b.Wait)
	}
}

// Two instances that fetch the same list ask its server twice, and the one that is behind would announce an older list.
func TestOneInstanceFetchesATargetAtATime(t *testing.T) {
	all := instances(t, 2)
	a, b := all[0], all[1]
	fetch := store.Fetch{Target: "@bob:b.org", Token: "first", Now: start, Lease: 20 * time.Second}
	if got := begin(t, a, fetch); !goes(got) {
		t.Fatalf("it does not begin: %+v", got)
	}
	fetch.Token, fetch.Now = "second", start.Add(19*time.Second)
	if got := begin(t, b, fetch); !got.Busy {
		t.Errorf("both fetch it: %+v", got)
	}
	if got := begin(t, b, store.Fetch{Target: "@carol:b.org", Token: "other", Now: start, Lease: 20 * time.Second}); !goes(got) {
		t.Errorf("another target waits for it: %+v", got)
	}
	if err := a.Abandon(t.Context(), "@bob:b.org", "first"); err != nil {
		t.Fatal(err)
	}
	if got := begin(t, b, fetch); !goes(got) {
		t.Errorf("a fetch that was abandoned is in the way: %+v", got)
	}
	// b dies. Its lease ends by time, also if the clock was set back an hour.
	fetch.Token = "third"
	fetch.Now = start.Add(-time.Hour)
	if got := begin(t, a, fetch); !goes(got) {
		t.Errorf("a clock that was set back makes it wait: %+v", got)
	}
	fetch.Token, fetch.Now = "fourth", start.Add(time.Minute)
	if got := begin(t, b, fetch); !goes(got) {
		t.Errorf("the fetch of an instance that died is in the way for ever: %+v", got)
	}
}

// A crowd that presses the button at two instances is one request to the remote server; each gets its answer.
func TestWhatAnotherInstanceHasJustFetched(t *testing.T) {
	all := instances(t, 2)
	a, b := all[0], all[1]
	fetch := store.Fetch{Target: "@bob:b.org", Token: "first", Now: start, Lease: 20 * time.Second}
	begin(t, a, fetch)
	if err := fail(t, a, "@bob:b.org", "first", start.Add(time.Second), refused); err != nil {
		t.Fatal(err)
	}
	fetch.Token, fetch.Now = "second", start.Add(2*time.Second)
	got := begin(t, b, fetch)
	if got.Past == nil || got.Past.Failure == nil || !got.Past.At.Equal(start.Add(time.Second)) {
		t.Fatalf("the failure is not known to the other: %+v", got)
	}
	want := *refused
	want.Err = nil
	if *got.Past.Failure != want {
		t.Errorf("the failure is told as %+v", got.Past.Failure)
	}
	if got.Destination.Failures != 1 || got.Gen != 1 {
		t.Errorf("what is owed is told as %+v", got)
	}
	fetch.Now = start.Add(11 * time.Second)
	if got := begin(t, b, fetch); !goes(got) {
		t.Fatalf("a failure answers for longer than it is to: %+v", got)
	}
	if _, err := b.Keep(t.Context(), store.Fetched{List: list(t, "@bob:b.org", "key"), At: fetch.Now, Token: "second", PaidGen: 1}); err != nil {
		t.Fatal(err)
	}
	fetch.Token, fetch.Now = "third", fetch.Now.Add(29*time.Second)
	if got := begin(t, a, fetch); got.Past == nil || got.Past.Failure != nil {
		t.Errorf("the success is not known to the other: %+v", got)
	}
	fetch.Claimed = true
	if got := begin(t, a, fetch); !goes(got) {
		t.Errorf("a retry is answered with a success from before: %+v", got)
	}
	if err := a.Abandon(t.Context(), "@bob:b.org", "third"); err != nil {
		t.Fatal(err)
	}
	fetch.Claimed = false
	if err := b.MarkSuspect(t.Context(), []store.KeptInfo{{UserID: "@bob:b.org", FetchedAt: start.Add(11 * time.Second)}}, fetch.Now); err != nil {
		t.Fatal(err)
	}
	if got := begin(t, a, fetch); !goes(got) {
		t.Errorf("a list that the homeserver has overtaken answers: %+v", got)
	}
}

// A server that is down must not get a request from every instance at once.
func TestADestinationThatBacksOffIsTriedByOneInstanceAtATime(t *testing.T) {
	all := instances(t, 2)
	begin(t, all[0], store.Fetch{Target: "@bob:b.org", Token: "first", Now: start, Lease: 20 * time.Second})
	if err := fail(t, all[0], "@bob:b.org", "first", start, refused); err != nil {
		t.Fatal(err)
	}
	now := start.Add(time.Minute)
	if got := begin(t, all[0], store.Fetch{Target: "@carol:b.org", Token: "probe", Now: now, Lease: 20 * time.Second, Claimed: true}); !goes(got) {
		t.Fatalf("it is not tried: %+v", got)
	}
	other := store.Fetch{Target: "@dave:b.org", Token: "other", Now: now, Lease: 20 * time.Second}
	if got := begin(t, all[1], other); !got.Busy {
		t.Errorf("two instances try it at once: %+v", got)
	}
	// The same instance queues its own by itself.
	if got := begin(t, all[0], other); !goes(got) {
		t.Errorf("an instance waits for itself: %+v", got)
	}
}

// An instance that was stopped for longer than its lease comes back with an answer from long ago.
func TestAnInstanceThatComesBackLateChangesNothing(t *testing.T) {
	all := instances(t, 2)
	late, other := all[0], all[1]
	owe(t, other, "@bob:b.org", "@alice:a.org", start, 0)
	gen := begin(t, late, store.Fetch{Target: "@bob:b.org", Token: "late", Now: start, Lease: 20 * time.Second}).Gen
	now := start.Add(time.Minute)
	begin(t, other, store.Fetch{Target: "@bob:b.org", Token: "other", Now: now, Lease: 20 * time.Second})
	ear := listen(other)
	for _, when := range []string{"while the other fetches", "after the other has fetched"} {
		t.Run(when, func(t *testing.T) {
			_, err := late.Keep(t.Context(), store.Fetched{
				List: list(t, "@bob:b.org", "old"), At: now, Token: "late", PaidGen: gen, Requesters: []id.UserID{"@alice:a.org"},
			})
			if !errors.Is(err, store.ErrSuperseded) {
				t.Errorf("a late success gets %v", err)
			}
			if err := fail(t, late, "@bob:b.org", "late", now, refused); !errors.Is(err, store.ErrSuperseded) {
				t.Errorf("a late failure gets %v", err)
			}
			if err := late.Abandon(t.Context(), "@bob:b.org", "late"); err != nil {
				t.Error(err)
			}
		})
		if when == "while the other fetches" {
			if _, err := other.Keep(t.Context(), store.Fetched{List: list(t, "@bob:b.org", "new"), At: now, Token: "other", PaidGen: gen}); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept, err := late.KeptList(t.Context(), "@bob:b.org")
	if err != nil || kept.Hash() != list(t, "@bob:b.org", "new").Hash() {
		t.Errorf("the list of the late one is kept (%v)", err)
	}
	if n, err := late.Debts(t.Context()); err != nil || n != 0 {
		t.Errorf("%d debts (%v)", n, err)
	}
	if heard := ear.until(t, func(store.Committed) bool { return true }); len(heard.Announced) != 2 || heard.Announced[1].Position != 2 {
		t.Errorf("announced %+v", heard.Announced)
	}
}
