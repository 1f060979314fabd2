package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

var wholeDay = flag.String("day", "", "simulate the whole of it, which takes minutes, and write the figures to this file")

// A simulated day: every server has failed at the same moment, as when the site was cut off, and all of their users are
// owed. A third of the servers stays dead: of these a third refuses at once, the others hang until the time is up. Half
// of the rest are back a minute later, and hung until then; the other half one after the other within twelve hours, and
// refuse until then. Engine, worker and database are the real ones; the other servers and the clock are not.
const (
	dayTimeout = 10 * time.Second // of one fetch
	dayLatency = 100 * time.Millisecond
	cutFor     = time.Minute
	lastBack   = 12 * time.Hour
)

var (
	dayRate   = limit.Rate{Every: time.Second, Burst: 20}
	dayPolicy = retry.Policy{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 7 * 24 * time.Hour}
)

// remote is one simulated server.
type remote struct {
	dead    bool
	hangs   bool          // rather than refuse, while it does not answer
	backAt  time.Duration // if not dead
	fetches int
	paid    int
	began   time.Duration   // the fetch that found it back
	ended   time.Duration   // the last of its debts
	late    []time.Duration // how long after they were due its probes were made
}

// day is what a simulated day brought.
type day struct {
	each      int // debts of a server
	remotes   []remote
	owed      int           // at its end
	most      int           // fetches at once
	heap      []uint64      // in use after a collection, hour by hour
	real, cpu time.Duration // that it took
	written   int64         // bytes, by the process
}

// dayWorld is the simulation while it runs.
type dayWorld struct {
	*day
	mu      sync.Mutex
	began   time.Time
	running int
}

func remoteName(i int) string { return fmt.Sprintf("s%d.example", i) }

func remoteNumber(server string) int {
	n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(server, "s"), ".example"))
	return n
}

// simulateDay must not run in parallel with what is to be measured.
func simulateDay(t *testing.T, servers, debtsEach int) *day {
	d := &day{each: debtsEach, remotes: make([]remote, servers)}
	for i := range d.remotes {
		r := &d.remotes[i]
		r.dead = i%3 == 0
		switch {
		case r.dead:
			r.hangs = i%9 != 0
		case i%2 == 0:
			r.backAt, r.hangs = cutFor, true
		default:
			r.backAt = cutFor + time.Duration(i)*(lastBack-cutFor)/time.Duration(servers)
		}
	}
	path := filepath.Join(t.TempDir(), "freshen.db")
	began, cpu, written := time.Now(), processTime(), processWritten()
	synctest.Test(t, func(t *testing.T) { (&dayWorld{day: d, began: time.Now()}).run(t, path) })
	d.real, d.cpu, d.written = time.Since(began), processTime()-cpu, processWritten()-written
	return d
}

func (w *dayWorld) run(t *testing.T, path string) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := store.Open(ctx, store.Config{Path: path, PerDestination: dayRate, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	var worker *retry.Worker
	engine := refresh.New(refresh.Config{
		ServerName: "a.example", Timeout: dayTimeout, SuccessFor: 30 * time.Second, FailureFor: 10 * time.Second,
		PerUser: boundless, ServerAllowed: func(string) bool { return true }, Retry: dayPolicy,
		Owed: func() { worker.Poke() },
	}, s, w, w, quiet())
	worker = retry.NewWorker(s, retry.Config{
		Pay: func(ctx context.Context, debt store.Debt) error {
			if err := w.claimed(ctx, s, debt); err != nil {
				return err
			}
			return engine.Pay(ctx, debt)
		},
		Lease: engine.LongestPay(), Policy: dayPolicy, Log: quiet(), Now: time.Now,
	})
	if err := w.owe(ctx, s); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { worker.Run(ctx); close(done) }()
	for range 24 {
		time.Sleep(time.Hour)
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.heap = append(w.heap, m.HeapAlloc)
	}
	if w.owed, err = s.Debts(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	engine.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// owe has every user of every server be owed, as by a failure at the day's beginning.
func (w *dayWorld) owe(ctx context.Context, s *store.Store) error {
	now := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, together)
	for caller := range together {
		wg.Go(func() {
			for i := caller; i < len(w.remotes)*w.each && errs[caller] == nil; i += together {
				server := remoteName(i % len(w.remotes))
				f := &freshen.Failure{Destination: server, Reason: freshen.ReasonTimeout, Sentence: server + " did not answer in time."}
				_, errs[caller] = s.RecordFailure(ctx, store.Failed{
					Target: id.NewUserID(fmt.Sprintf("u%d", i/len(w.remotes)), server), Destination: server, At: now,
					Requesters: []id.UserID{"@alice:a.example"}, Failure: f,
				}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
					dest, debt, ending := dayPolicy.Failure(dest, debt, f, now, rand.Float64())
					return dest, debt, ending == retry.Owed
				})
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// claimed looks how late a probe comes.
func (w *dayWorld) claimed(ctx context.Context, s *store.Store, debt store.Debt) error {
	if !debt.Probe {
		return nil
	}
	dest, err := s.Backoff(ctx, debt.Destination)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &w.remotes[remoteNumber(debt.Destination)]
	r.late = append(r.late, time.Since(dest.RetryAt))
	return nil
}

// FetchDeviceList plays the server.
func (w *dayWorld) FetchDeviceList(ctx context.Context, target id.UserID) (*freshen.DeviceList, error) {
	server := freshen.Destination(target)
	at := time.Since(w.began)
	w.mu.Lock()
	r := &w.remotes[remoteNumber(server)]
	r.fetches++
	w.running++
	w.most = max(w.most, w.running)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running--
	}()
	if r.dead || at < r.backAt {
		if r.hangs {
			<-ctx.Done()
			return nil, &freshen.Failure{Destination: server, Reason: freshen.ReasonTimeout, Sentence: server + " did not answer in time."}
		}
		return nil, &freshen.Failure{Destination: server, Reason: freshen.ReasonConnect, Sentence: server + " refused the connection."}
	}
	time.Sleep(dayLatency)
	w.mu.Lock()
	if r.paid == 0 {
		r.began = at
	}
	r.paid++
	r.ended = time.Since(w.began)
	w.mu.Unlock()
	return freshen.ParseDeviceList(deviceList(target, 3, 1), target)
}

// Shares, Sharing and Explore play the homeserver, which nobody asks while a debt is paid.
func (w *dayWorld) Shares(context.Context, id.UserID, homeserver.Credentials, id.UserID) (bool, error) {
	return true, nil
}

func (w *dayWorld) Sharing(context.Context, []id.UserID, id.UserID) (yes, no []id.UserID) {
	return nil, nil
}

func (w *dayWorld) SharesOf(_ context.Context, _ id.UserID, _ homeserver.Credentials, targets []id.UserID) ([]id.UserID, error) {
	return targets, nil
}

func (w *dayWorld) Explore(id.UserID, homeserver.Credentials, id.UserID) {}

// tries is how often a server that stays dead is asked within a day, if the waits are all as long as they get by the
// jitter, and if they are all as short.
func tries() (least, most int) {
	count := func(jitter float64, lost time.Duration) (n int) {
		for at := time.Duration(0); ; n++ {
			at += time.Duration(jitter*float64(retry.Wait(n+1, dayPolicy.First, dayPolicy.Most))) + lost
			if at >= 24*time.Hour {
				return n
			}
		}
	}
	return count(1.25, dayTimeout), count(0.75, 0)
}

func processTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// processWritten is how many bytes the process has sent to disks so far; 0 where the system does not say.
func processWritten() int64 {
	stat, _ := os.ReadFile("/proc/self/io") // only Linux has it
	for line := range strings.Lines(string(stat)) {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

// latest returns, of those servers that come back, how late each of their probes was, and how long after the server was
// found back the last of its debts was paid.
func (d *day) latest() (late, paid []time.Duration) {
	for _, r := range d.remotes {
		if r.dead {
			continue
		}
		late = append(late, r.late...)
		paid = append(paid, r.ended-r.began)
	}
	return late, paid
}

// Servers that hang must not keep those that are back from being asked, nor cost more with every hour: people would wait
// for hours for the sake of servers that they have nothing to do with.
func TestDeadServersCostTheOthersNothing(t *testing.T) {
	servers, debtsEach, worstLate, worstPaid := 100, 10, 20*time.Second, 5*time.Second
	if *wholeDay != "" {
		servers, debtsEach, worstLate, worstPaid = 5_000, 20, time.Minute, 22*time.Second
	}
	d := simulateDay(t, servers, debtsEach)
	least, most := tries()
	dead, deadMost := 0, 0
	for i, r := range d.remotes {
		switch {
		case r.dead:
			dead++
			deadMost = max(deadMost, r.fetches)
			if r.fetches < least || r.fetches > most {
				t.Errorf("%s, which stays dead, was asked %d times in a day, want %d to %d", remoteName(i), r.fetches, least, most)
			}
		case r.paid != debtsEach:
			t.Errorf("%s is back, and %d of its %d debts are paid", remoteName(i), r.paid, debtsEach)
		}
	}
	if want := dead * debtsEach; d.owed != want {
		t.Errorf("%d debts are left, want the %d of the servers that stay dead", d.owed, want)
	}
	late, paid := d.latest()
	if worst := quantile(late, 1); worst > worstLate {
		t.Errorf("a server that is back was asked %v after it was due", worst)
	}
	if worst := quantile(paid, 1); worst > worstPaid {
		t.Errorf("what was owed to a server that is back was paid within %v", worst)
	}
	if first, last := d.heap[0], d.heap[len(d.heap)-1]; last > first+first/2+(4<<20) {
		t.Errorf("memory in use went from %d to %d bytes within the day: %d", first, last, d.heap)
	}
	if *wholeDay == "" {
		return
	}
	figures, err := json.Marshal(dayFigures{
		Debts: servers * debtsEach, Servers: servers,
		Late: [3]time.Duration{quantile(late, 0.5), quantile(late, 0.99), quantile(late, 1)},
		Paid: [2]time.Duration{quantile(paid, 0.5), quantile(paid, 1)}, WorstPaid: worstPaid,
		DeadMost: deadMost, TriesMost: most, Most: d.most,
		HeapFirst: d.heap[0], HeapLast: d.heap[len(d.heap)-1], Real: d.real, CPU: d.cpu, Written: d.written,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*wholeDay, figures, 0o600); err != nil {
		t.Fatal(err)
	}
}
