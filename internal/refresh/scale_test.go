package refresh_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// Servers that hang are tried beside those that are fine: somebody whose contact's server works would otherwise wait for
// as long as it takes to find out that hundreds of others do not.
func TestServersThatHangTakeNoPlacesFromThoseThatAreFine(t *testing.T) {
	const hanging = 400 // more than are tried at once
	within(t, nil, func(t *testing.T, b *bed) {
		defer b.works()()
		const target = id.UserID("@bob:fine.example")
		b.does(unknown)
		_ = b.refresh("@a:a.example", target) // tried again in an hour
		time.Sleep(time.Hour - 30*time.Second)

		var asked, running, most int
		var took time.Duration
		b.does(down)
		var all sync.WaitGroup
		for i := range hanging {
			all.Go(func() { _ = b.refresh("@a:a.example", id.UserID(fmt.Sprintf("@u:dead%d.example", i))) })
		}
		all.Wait() // and these are tried again at the same moment
		b.does(func(ctx context.Context, user id.UserID) error {
			b.mu.Lock()
			if user == target {
				took = time.Since(b.began) - time.Hour
				b.mu.Unlock()
				return nil
			}
			asked++
			running++
			most = max(most, running)
			b.mu.Unlock()
			<-ctx.Done()
			b.mu.Lock()
			defer b.mu.Unlock()
			running--
			return &freshen.Failure{Destination: freshen.Destination(user), Reason: freshen.ReasonTimeout, Sentence: "It hangs."}
		})
		time.Sleep(30*time.Second + 25*time.Second)
		if debts := b.debts(); debts != hanging {
			t.Errorf("%d debts are left, want %d", debts, hanging)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if took < 0 || took > time.Second {
			t.Errorf("the server that is fine was asked %v after it was due", took)
		}
		if asked < hanging {
			t.Errorf("within 25 s, %d of %d servers that hang for 10 s were asked", asked, hanging)
		}
		if most >= hanging {
			t.Errorf("%d were asked at once: one that is dead costs a goroutine", most)
		}
	})
}
