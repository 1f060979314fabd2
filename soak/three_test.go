//go:build unix

package soak

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store/storetest"
)

const (
	// pausedFor is longer than a fetch's lease.
	pausedFor = fetchTimeout + leaseAtLeast + 2*time.Second
	// awayFor is how long an instance, or all of them, have no database.
	awayFor = 4 * time.Second
	// recoversWithin bounds how long an instance may take to be of use again after a trouble is over.
	recoversWithin = 30 * time.Second
	// wokenWithin bounds how long a waiting poll may take to bring an announcement: far less than it waits by itself.
	wokenWithin = 20 * time.Second
	watchFor    = time.Minute
)

// three are three instances on one Postgres, each with a connection to it that can be cut, behind one nginx.
type three struct {
	*world
	database  *postgresServer
	instances []*instance
	links     []*forwarder
	watchers  []*device // one on each instance, all of one user
}

// TestThreeInstances lets one of three instances die, hang, and lose its database, and then all of them lose it. When it
// fails, a site that runs several instances loses what its users were told, or asks other servers twice at once, or its
// clients hear late.
func TestThreeInstances(t *testing.T) {
	t.Parallel()
	began := time.Now()
	w := newThree(t)
	random := w.random("troubles")
	w.watch(random)

	endSync := w.sync()
	defer endSync()
	calm := w.chaos()
	defer calm()
	troubles := []func(*instance){w.kill, w.pause, w.cut, w.endSessions, w.stopPostgres}
	for round := range max(1, *kills/longFrom) {
		if round > 0 {
			random.Shuffle(len(troubles), func(i, j int) { troubles[i], troubles[j] = troubles[j], troubles[i] })
		}
		for _, trouble := range troubles {
			wait(t.Context(), time.Duration(500+random.IntN(1500))*time.Millisecond)
			trouble(w.instances[random.IntN(len(w.instances))])
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	calm()
	w.settle(random)
	w.watch(random)
	w.awaitHeard()
	endSync()

	history := w.ledger.history()
	for _, complaint := range append(history.check(w.devices), w.overheard(&history)...) {
		t.Error(complaint)
	}
	t.Logf("seed %d, %v:\n%s", seed(), time.Since(began).Round(time.Second), summary(&history))
}

func newThree(t *testing.T) *three {
	server := storetest.StartPostgres(t, storetest.Options{TCP: true})
	name, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := &three{database: &postgresServer{server: server, name: name, url: server.URL(name)}}
	var places []place
	var upstreams []string
	for n := range 3 {
		through := server.TCPURL(name)
		link := forward(t, through.Host)
		through.Host = link.addr()
		i := &instance{name: string(rune('a' + n)), listen: reserve(t), database: through.String()}
		w.links, w.instances = append(w.links, link), append(w.instances, i)
		upstreams = append(upstreams, i.listen)
		places = append(places, place{i.name, i.URL()})
	}
	nginx := startNginx(t, 8*time.Second, upstreams...)
	places = append(places, place{"", "http://" + nginx})
	w.world = newWorld(t, places...)
	for n, i := range w.instances {
		i.w = w.world
		t.Cleanup(i.showLog)
		i.start()
		d := &device{
			ledger: w.ledger, hs: w.hs, user: "@watcher:" + ours, id: id.DeviceID(fmt.Sprint("WATCH", n)), token: fmt.Sprint("watcher-", n),
			via: i.name, base: i.URL(), http: newClient(t),
		}
		w.hs.AddUser(d.token, d.user, d.id)
		w.watchers = append(w.watchers, d)
	}
	for _, i := range w.instances {
		i.ready()
	}
	return w
}

// watch requires that a poll which waits on any instance is woken by a refresh that is made on any.
func (w *three) watch(random *rand.Rand) {
	w.t.Helper()
	since := make([]string, len(w.watchers))
	for n, d := range w.watchers {
		_, next, err := d.sync(w.t.Context(), "")
		if err != nil {
			w.t.Fatalf("the first /sync of %s: %v", d, err)
		}
		since[n] = w.drained(d, next)
	}
	for n := range w.instances {
		target := w.targets[random.IntN(len(w.targets))]
		refreshed := make(chan struct{})
		var polling sync.WaitGroup
		for k, d := range w.watchers {
			polling.Go(func() { since[k] = w.woken(d, since[k], target, refreshed) })
		}
		late := time.Now().Add(wokenWithin)
		for _, d := range w.watchers {
			for w.hs.polls(d.token) == 0 && wait(w.t.Context(), time.Millisecond) {
				if time.Now().After(late) {
					w.t.Fatalf("no poll of %s has come to wait at the homeserver", d)
				}
			}
		}
		asks := w.watchers[n]
		a := &asker{ledger: w.ledger, user: asks.user, token: asks.token, via: asks.via, base: asks.base, http: asks.http}
		close(refreshed)
		if what := a.refresh(w.t.Context(), target); what != fresh {
			w.t.Errorf("all is well, and the refresh of %s at instance %s was not answered 202", target, asks.via)
		}
		polling.Wait()
	}
}

// drained syncs without waiting until nothing is left from before, three times in a row: what may name a target is not what
// a poll is to be woken for.
func (w *three) drained(d *device, since string) (next string) {
	w.t.Helper()
	for empty := 0; empty < 3; empty++ {
		a, next, err := d.poll(w.t.Context(), since, 0)
		if err != nil {
			w.t.Fatalf("a /sync of %s that does not wait: %v", d, err)
		}
		since = next
		if slices.ContainsFunc(a.changed, func(user id.UserID) bool { return slices.Contains(w.targets, user) }) {
			empty = -1
		}
		wait(w.t.Context(), quiet)
	}
	return since
}

// woken polls until it hears of the target, whose refresh is asked for once refreshed is closed. Answers that bring what was
// left from before are followed by another poll: while an instance that died may still run for all that the others know, what
// one told is told again.
func (w *three) woken(d *device, since string, target id.UserID, refreshed <-chan struct{}) (next string) {
	ctx, cancel := context.WithTimeout(w.t.Context(), wokenWithin)
	defer cancel()
	for {
		a, next, err := d.poll(ctx, since, watchFor)
		if err != nil {
			w.t.Errorf("%s, who waits on instance %s, did not hear of %s within %v: %v", d, d.via, target, wokenWithin, err)
			return since
		}
		since = next
		select {
		case <-refreshed:
			if slices.Contains(a.changed, target) {
				return next
			}
		default:
		}
	}
}

// kill ends one instance, and starts it again after a while.
func (w *three) kill(i *instance) {
	w.t.Helper()
	i.end(killed, 0)
	wait(w.t.Context(), 2*time.Second)
	i.start()
	i.ready()
}

// pause stops one instance in the middle of what it does, for longer than the lease of its fetches. When it goes on, it
// must not write over what the others have done meanwhile.
func (w *three) pause(i *instance) {
	w.t.Helper()
	d := w.ledger.disturb(disturbance{what: "SIGSTOP of " + i.life, at: i.name, life: i.life, locks: true})
	w.lives.pauses(i.life)
	w.signal(i, syscall.SIGSTOP)
	wait(w.t.Context(), pausedFor)
	w.signal(i, syscall.SIGCONT)
	w.recovers(i)
	w.ledger.over(d)
}

func (w *three) signal(i *instance, signal syscall.Signal) {
	w.t.Helper()
	if err := i.process.Signal(signal); err != nil {
		w.t.Error(err)
	}
}

// cut takes the database from one instance.
func (w *three) cut(i *instance) {
	w.t.Helper()
	d := w.ledger.disturb(disturbance{what: "lost database of " + i.life, at: i.name, life: i.life, database: true})
	link := w.links[slices.Index(w.instances, i)]
	link.cut()
	w.refuses(i)
	wait(w.t.Context(), awayFor)
	link.mend()
	w.recovers(i)
	w.ledger.over(d)
}

// endSessions has Postgres end all that the instances are doing, as an administrator or a failover would.
func (w *three) endSessions(*instance) {
	w.t.Helper()
	d := w.ledger.disturb(disturbance{what: "ended sessions of all", database: true})
	if err := w.database.server.Exec(w.t.Context(), w.database.name, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
		w.t.Error(err)
	}
	w.recovers(w.instances...)
	w.ledger.over(d)
}

// stopPostgres takes the database from all.
func (w *three) stopPostgres(*instance) {
	w.t.Helper()
	d := w.ledger.disturb(disturbance{what: "stopped Postgres of all", database: true})
	if err := w.database.server.Stop(); err != nil {
		w.t.Error(err)
	}
	for _, i := range w.instances {
		w.refuses(i)
	}
	wait(w.t.Context(), awayFor)
	if err := w.database.server.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.recovers(w.instances...)
	w.ledger.over(d)
}

// refuses requires that an instance without its database says so, and passes on everything else.
func (w *three) refuses(i *instance) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), recoversWithin)
	defer cancel()
	token := w.watchers[0].token
	path := "/_matrix/client/v3/user/" + string(w.targets[0]) + "/devices/refresh"
	status, body, err := request(ctx, w.watchers[0].http, http.MethodPost, i.URL()+path, token, "")
	var wire struct {
		ErrCode string `json:"errcode"`
		Error   string `json:"error"`
	}
	if err != nil || status != http.StatusServiceUnavailable || json.Unmarshal(body, &wire) != nil || wire.ErrCode != "M_UNKNOWN" || !strings.Contains(wire.Error, "database") {
		w.t.Errorf("a refresh at %s, whose database is away, was answered %d %s %v, want 503 and M_UNKNOWN with a sentence", i.life, status, body, err)
	}
	for _, path := range []string{"/_matrix/client/v3/account/whoami", pathSync + "?since=s0&timeout=0"} {
		status, body, err := request(ctx, w.watchers[0].http, http.MethodGet, i.URL()+path, token, "")
		if err != nil || status != http.StatusOK {
			w.t.Errorf("%s at %s, whose database is away, was answered %d %s %v", path, i.life, status, body, err)
		}
	}
}

// recovers returns when the instances take refreshes again, without anybody's help.
func (w *three) recovers(instances ...*instance) {
	w.t.Helper()
	deadline := time.Now().Add(recoversWithin)
	for _, i := range instances {
		d := w.watchers[slices.Index(w.instances, i)]
		a := &asker{ledger: w.ledger, user: d.user, token: d.token, via: i.name, base: i.URL(), http: d.http}
		for {
			what := a.refresh(w.t.Context(), w.targets[0])
			if what == fresh || what == promised {
				break
			}
			if time.Now().After(deadline) {
				w.t.Errorf("%s does not take refreshes within %v after its trouble is over", i.life, recoversWithin)
				return
			}
			wait(w.t.Context(), pause)
		}
	}
}

// settle returns when nothing is owed. In a short run, what the claims of a dead instance hold is asked for by hand.
func (w *three) settle(random *rand.Rand) {
	w.t.Helper()
	db := w.database.open(w.t)
	defer db.Close()
	deadline := time.Now().Add(settlesWithin)
	for {
		held := w.database.read(w.t, db)
		if len(held.debts) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("after %v in which all was well, this is still owed: %v", settlesWithin, held.debts)
		}
		if !wait(w.t.Context(), quiet) {
			return
		}
		for target, debt := range held.debts {
			late := time.Until(debt.due)
			if late > userWaits || (debt.leased && late > 0 && *kills < longFrom) {
				w.payByHand(random, target, w.database.leases())
			}
		}
	}
}
