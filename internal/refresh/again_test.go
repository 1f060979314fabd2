package refresh_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// hangs answers nothing until the fetch is given up.
func hangs(ctx context.Context, target id.UserID) error {
	<-ctx.Done()
	return &freshen.Failure{Destination: freshen.Destination(target), Reason: freshen.ReasonTimeout, Sentence: "It hangs."}
}

// again is what a key query does, which has 2 s; it returns how long it took.
func (b *bed) again(target id.UserID) (ok bool, took time.Duration) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Second)
	defer cancel()
	began := time.Now()
	ok = b.engine.Again(ctx, target)
	return ok, time.Since(began)
}

// A server that hangs must not cost every key query 2 s that names one of its users: it costs one of them that, and then
// no more than one in a minute.
func TestAServerThatHangsHoldsUpOneKeyQuery(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(hangs)
		var waited time.Duration
		began := time.Now()
		for n := 0; time.Since(began) < 10*time.Minute; n++ {
			ok, took := b.again(user(n % 40))
			if ok {
				t.Fatal("a server that hangs has answered")
			}
			waited += took
			time.Sleep(time.Second)
		}
		if waited < 2*time.Second || waited > 20*time.Second {
			t.Errorf("key queries were held up for %v in ten minutes, want 2 s a minute at the most", waited)
		}
	})
}

// A server that takes its time to refuse is as bad.
func TestAServerThatRefusesSlowlyHoldsUpOneKeyQuery(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(func(ctx context.Context, target id.UserID) error {
			time.Sleep(1900 * time.Millisecond)
			return unknown(ctx, target)
		})
		var waited time.Duration
		for n := range 50 {
			_, took := b.again(user(n))
			waited += took
			time.Sleep(time.Second)
		}
		if waited > 2*time.Second {
			t.Errorf("key queries were held up for %v within a minute", waited)
		}
	})
}

// A server that is only slow is not waited for, but asked all the same: the next query has its list.
func TestASlowServerIsAskedInTheBackground(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(func(context.Context, id.UserID) error { time.Sleep(3 * time.Second); return nil })
		if ok, took := b.again(bob); ok || took != 2*time.Second {
			t.Fatalf("%v after %v", ok, took)
		}
		if ok, took := b.again(eve); ok || took != 0 {
			t.Errorf("another user of the slow server: %v after %v", ok, took)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		lists, err := b.store.KeptLists(t.Context())
		if err != nil || len(lists) != 2 {
			t.Errorf("%d lists are kept (%v), want both", len(lists), err)
		}
		// The server has become fast; nobody knows yet.
		time.Sleep(time.Minute)
		b.does(nil)
		if ok, _ := b.again(bob); !ok {
			t.Error("a minute later the server is still not waited for")
		}
	})
}

// A client that hangs up says nothing about the server that it waited for.
func TestAHangUpIsNotTheServersFault(t *testing.T) {
	within(t, nil, func(t *testing.T, b *bed) {
		b.does(func(context.Context, id.UserID) error { time.Sleep(1500 * time.Millisecond); return nil })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if b.engine.Again(ctx, bob) {
			t.Fatal("the caller had gone")
		}
		if ok, took := b.again(bob); !ok || took != 500*time.Millisecond {
			t.Errorf("the next one: %v after %v, want the same fetch's list", ok, took)
		}
		if n := len(b.fetched()); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}

// What a user with very many devices was promised is a list that is served, not only one that was announced: a retry has no
// request in hand, but those who were promised it are on record.
func TestALongListThatWasPromisedIsKept(t *testing.T) {
	for name, shares := range map[string]bool{"somebody shares a room": true, "nobody does": false} {
		t.Run(name, func(t *testing.T) {
			within(t, nil, func(t *testing.T, b *bed) {
				b.shares = map[id.UserID]bool{"@a:a.example": shares}
				b.long = true
				b.does(down)
				if codeOf(b.refresh("@a:a.example", bob)) != freshen.CodeRemote {
					t.Fatal("it did not fail")
				}
				b.does(nil)
				defer b.works()()
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				if b.debts() != 0 {
					t.Fatal("the debt was not paid")
				}
				lists, err := b.store.KeptLists(t.Context())
				if err != nil || (len(lists) == 1) != shares {
					t.Errorf("%d lists are kept (%v)", len(lists), err)
				}
			})
		})
	}
}
