//go:build unix

package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	// settlesWithin bounds how long what is owed may take to be paid once all is well.
	settlesWithin = 3 * time.Minute
	// longFrom is from how many kills on a test may take its time.
	longFrom = 20
	// quiet is how long nobody must have been asked before a look into the database is worth its while.
	quiet = 700 * time.Millisecond
)

// TestCrash ends freshen at random moments, while users ask and remote servers fail and recover. When it fails, a
// promise of freshen's does not survive a crash: somebody waits for a device list that never comes.
func TestCrash(t *testing.T) {
	for _, on := range []struct {
		name string
		make func(t *testing.T) database
	}{
		{"SQLite", func(t *testing.T) database { return sqliteFile{filepath.Join(t.TempDir(), "freshen.db")} }},
		{"Postgres", func(t *testing.T) database { return newPostgres(t) }},
	} {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			crash(t, on.make(t), *kills)
		})
	}
}

func crash(t *testing.T, db database, times int) {
	began := time.Now()
	i := &instance{name: "a", listen: reserve(t), database: db.config()}
	w := newWorld(t, place{i.name, i.URL()})
	i.w = w
	t.Cleanup(i.showLog)
	i.start()
	i.ready()

	random := w.random("kills")
	endSync := w.sync()
	defer endSync()
	calm := w.chaos()
	defer calm()
	for range times {
		i.crashSoon(db, random, times)
	}
	i.ready()
	calm()
	// All is well from here on, and what is owed is being paid; that is interrupted as well.
	for range 1 + times/20 {
		wait(t.Context(), time.Duration(random.IntN(300))*time.Millisecond)
		i.lookAfter(db, i.end(killed, 0))
		i.start()
		i.ready()
	}
	i.settle(db, random, times)
	w.awaitHeard()
	endSync()

	history := w.ledger.history()
	complaints := append(history.check(w.devices), w.overheard(&history)...)
	for _, complaint := range complaints {
		t.Error(complaint)
	}
	t.Logf("seed %d, %v:\n%s", seed(), time.Since(began).Round(time.Second), summary(&history))
}

// crashSoon ends freshen at a random moment, perhaps while it starts, and starts it again.
func (i *instance) crashSoon(db database, random *rand.Rand, times int) {
	i.w.t.Helper()
	if i.down != nil && random.IntN(4) == 0 {
		wait(i.w.t.Context(), time.Duration(random.IntN(80))*time.Millisecond)
	} else {
		if i.down != nil {
			i.ready()
		}
		life := 1200
		if times >= longFrom && random.IntN(10) == 0 {
			life = 20_000 // longer than a fetch's lease, which on Postgres outlives its process
		}
		wait(i.w.t.Context(), time.Duration(random.IntN(life))*time.Millisecond)
	}
	how := killed
	switch random.IntN(8) {
	case 0:
		how = stopped
	case 1:
		how = impatient
	}
	i.lookAfter(db, i.end(how, time.Duration(random.Int64N(int64(killedHard)))))
	i.start()
}

// lookAfter reads the database after the end of a process, and requires that all that was told stands in it.
func (i *instance) lookAfter(db database, d *disturbance) holding {
	i.w.t.Helper()
	history := i.w.ledger.history()
	held := db.look(i.w.t)
	i.w.ledger.found(d, held.debts)
	for _, complaint := range history.kept(held) {
		i.w.t.Errorf("after %s: %s", d.what, complaint)
	}
	if i.w.t.Failed() {
		i.w.t.FailNow()
	}
	return held
}

// settle returns when nothing is owed. What waits for an hour, since its user was to blame, is asked for by somebody
// else: those who were promised it must hear as well.
func (i *instance) settle(db database, random *rand.Rand, times int) {
	i.w.t.Helper()
	deadline := time.Now().Add(settlesWithin)
	for {
		for i.w.ledger.quietFor() < quiet {
			wait(i.w.t.Context(), quiet/10)
		}
		held := i.lookAfter(db, i.end(stopped, 0))
		if len(held.debts) == 0 {
			if len(held.promises) > 0 || held.destinations > 0 {
				i.w.t.Errorf("nothing is owed any more, and yet %d users wait and %d destinations are backed off from", len(held.promises), held.destinations)
			}
			i.start()
			i.ready()
			return
		}
		if time.Now().After(deadline) {
			i.w.t.Fatalf("after %v in which all was well, this is still owed: %v", settlesWithin, held.debts)
		}
		i.start()
		i.ready()
		// The claims of a process that was killed hold for minutes on Postgres, where another instance might have them.
		var claims time.Duration
		for target, debt := range held.debts {
			if waits := time.Until(debt.due); waits > userWaits || (debt.leased && times < longFrom) {
				i.w.payByHand(random, target, db.leases())
			} else if debt.leased {
				claims = max(claims, waits)
			}
		}
		wait(i.w.t.Context(), claims)
	}
}

// payByHand has somebody ask until they are answered 202: at once, unless a fetch of a process that was killed counts as
// running until its lease ends, as on Postgres.
func (w *world) payByHand(random *rand.Rand, target id.UserID, within time.Duration) {
	w.t.Helper()
	a := w.askers[random.IntN(len(w.askers))]
	deadline := time.Now().Add(within)
	for a.refresh(w.t.Context(), target) != fresh {
		if time.Now().After(deadline) {
			w.t.Errorf("the server of %s is well, and no refresh that %s asked for within %v was answered 202", target, a.user, within)
			return
		}
		wait(w.t.Context(), pause)
	}
}

// awaitHeard returns when every device has heard all, or could have: the check says what is missing.
func (w *world) awaitHeard() {
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		history := w.ledger.history()
		if len(history.unheard(w.devices)) == 0 && w.ledger.quietFor() > quiet {
			return
		}
		wait(w.t.Context(), quiet/5)
	}
}

// showLog writes the end of freshen's log into that of a failed test, and keeps all of it.
func (i *instance) showLog() {
	if i.process == nil {
		return
	}
	i.process.Kill()
	if !i.w.t.Failed() {
		return
	}
	kept := filepath.Join(os.TempDir(), fmt.Sprintf("freshen-soak-%d-%s.log", seed(), i.name))
	data, err := os.ReadFile(i.file("log"))
	if err == nil {
		err = os.WriteFile(kept, data, 0o600)
	}
	i.w.t.Logf("The log of %s is kept in %s (%v).", i.name, kept, err)
}
