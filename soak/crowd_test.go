//go:build unix

package soak

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store/storetest"
)

const (
	// crowdRooms is in how many of the remotes' rooms each user is.
	crowdRooms = 2
	// mostMemory is what one freshen may take: 500 polls and the readers, far below what they are being answered.
	mostMemory = 256 << 20
)

// slowReaders is how many each read an answer of huge bytes, slowly.
func slowReaders() int { return max(4, *clients/20) }

// crowd is a homeserver's users on many devices, at one freshen or two.
type crowd struct {
	*world
	server  *crowdServer
	http    *http.Client
	clients []*crowdClient
	// instances are those of freshen.
	instances []*instance
	members   map[id.UserID]map[id.UserID]bool // user → targets with whom they share a room
	// twiceAtMost is how many of a thousand acknowledgements may be followed by the same once more. One instance tells it again
	// where the homeserver takes longer than a second to say whose an answer was that ended in the same token. Several do where
	// the machine is too busy for another's answer within a second, and where what one heard of a target was in question at the other.
	twiceAtMost int

	mu      sync.Mutex
	changed []change
}

// TestCrowd lets 500 devices sync in every way there is, through two instances and what stands in front of them, while
// lists change. When it fails, a client has not heard of a change, or hears of the same one again and again.
func TestCrowd(t *testing.T) {
	t.Run("two instances on Postgres", func(t *testing.T) {
		server := storetest.StartPostgres(t, storetest.Options{})
		name, err := server.CreateDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		testCrowd(t, server.URL(name).String(), "a", "b")
	})
	t.Run("one instance on SQLite", func(t *testing.T) {
		testCrowd(t, filepath.Join(t.TempDir(), "freshen.db"), "a")
	})
}

func testCrowd(t *testing.T, database string, names ...string) {
	lasts := 4 * time.Second
	if *clients >= 500 {
		lasts = 2 * time.Minute
	}
	began := time.Now()
	var instances []*instance
	var places []place
	var upstreams []string
	for _, name := range names {
		i := &instance{name: name, listen: reserve(t), database: database}
		instances, upstreams = append(instances, i), append(upstreams, i.listen)
		places = append(places, place{name, i.URL()})
	}
	nginx := startNginx(t, *cutAfter, upstreams...)
	w := newCrowd(t, places, place{"", "http://" + nginx})
	w.instances, w.twiceAtMost = instances, 1
	if len(instances) > 1 {
		w.twiceAtMost = 5
	}
	for _, i := range instances {
		i.w = w.world
		t.Cleanup(i.showLog)
		i.start()
	}
	for _, i := range instances {
		i.ready()
	}

	endSync := w.syncAll()
	defer endSync()
	endSlow := w.readSlowly(places)
	defer endSlow()
	wait(t.Context(), 2*time.Second) // all have begun
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { w.change(ctx, places) })
	all.Go(func() { w.signOuts(ctx, lasts) })
	all.Wait()
	w.awaitAllHeard()
	for _, i := range instances {
		if peak := peakMemory(t, i.process.PID()); peak > mostMemory {
			t.Errorf("%s took %d MB at its peak, while %d slow readers were being answered %d MB", i.life, peak>>20, slowReaders(), slowReaders()*huge>>20)
		} else {
			t.Logf("%s took %d MB at its peak.", i.life, peak>>20)
		}
	}
	endSlow()
	endSync()

	history := w.ledger.history()
	complaints, numbers := w.check(&history)
	for _, complaint := range complaints {
		t.Error(complaint)
	}
	if numbers.entries == 0 || numbers.acknowledged == 0 {
		t.Errorf("nothing was told (%d) or acknowledged (%d), so nothing is proven", numbers.entries, numbers.acknowledged)
	}
	slices.Sort(numbers.waited)
	var exchanges int
	for _, c := range w.clients {
		exchanges += len(c.exchanges)
	}
	t.Logf("seed %d, %v: %d changes, %d syncs of %d devices, %d entries, %d acknowledgements certain, %d of which were followed by the same once more; told after a median of %v, 99 of 100 within %v, all within %v",
		seed(), time.Since(began).Round(time.Second), len(w.changed), exchanges, len(w.clients), numbers.entries, numbers.acknowledged, numbers.twice,
		quantile(numbers.waited, 0.5), quantile(numbers.waited, 0.99), quantile(numbers.waited, 1))
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))].Round(time.Millisecond)
}

// newCrowd puts users on two devices each behind the instances: most come to any instance by turns, some through the
// proxy.
func newCrowd(t *testing.T, places []place, proxy place) *crowd {
	t.Helper()
	w := &crowd{world: newWorld(t, places...), members: map[id.UserID]map[id.UserID]bool{}}
	w.server = newCrowdServer(w.hs.Server, w.random("crowd"))
	transport := &http.Transport{MaxIdleConnsPerHost: *clients, MaxIdleConns: 0}
	w.http = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	rooms := make([][]id.UserID, remotes)
	for n := range *clients {
		user := id.UserID(fmt.Sprintf("@crowd%d:%s", n/2, ours))
		c := &crowdClient{
			w: w, user: user, device: id.DeviceID(fmt.Sprintf("D%dS", n%2)), connections: 1, places: places, leaves: n%25 == 7,
			token: fmt.Sprintf("%s-%d", user, n),
		}
		switch n % 10 {
		case 4, 5:
			c.kind = sliding
		case 6:
			c.kind = slidingV4
		case 7, 8:
			c.places = []place{proxy}
		case 9:
			c.connections = 2
		}
		if n%4 < 2 && c.connections == 1 {
			c.device = id.DeviceID(fmt.Sprintf("D%dD", n%2))
		}
		w.server.AddUser(c.token, user, c.device)
		w.clients = append(w.clients, c)
		if n%2 == 1 {
			continue
		}
		w.members[user] = map[id.UserID]bool{}
		for k := range crowdRooms {
			r := (n/2*crowdRooms + k*3) % remotes
			rooms[r] = append(rooms[r], user)
			for _, target := range w.targets[r*targetsOfEach : (r+1)*targetsOfEach] {
				w.members[user][target] = true
			}
		}
	}
	for r, members := range rooms {
		all := append(slices.Clone(w.targets[r*targetsOfEach:(r+1)*targetsOfEach]), members...)
		w.server.SetRoom(id.RoomID(fmt.Sprintf("!room%d:%s", r, w.remotes[r].name)), all...)
	}
	return w
}

// syncAll has every device sync until the function that it returns is called.
func (w *crowd) syncAll() (end func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	for n, c := range w.clients {
		for k := range c.connections {
			all.Go(func() { c.run(ctx, w.random(fmt.Sprint("client", n, k))) })
		}
	}
	return func() { cancel(); all.Wait() }
}

// change has one target's list refreshed after the other, by one of those whom it concerns or by anybody.
func (w *crowd) change(ctx context.Context, places []place) {
	random := w.random("changes")
	for n := 0; wait(ctx, time.Duration(50+random.IntN(150))*time.Millisecond); n++ {
		target := w.targets[(n*7)%len(w.targets)]
		var c *crowdClient
		for c == nil || c.leaves || (random.IntN(5) > 0 && !w.members[c.user][target]) {
			c = w.clients[random.IntN(len(w.clients))]
		}
		at := places[random.IntN(len(places))]
		token := "asks-" + string(c.user)
		w.server.AddUser(token, c.user, "ASKS")
		a := &asker{ledger: w.ledger, user: c.user, token: token, via: at.via, base: at.url, http: w.http}
		one := change{target: target, by: c.user, from: time.Now()}
		for a.refresh(ctx, target) != fresh { // a machine that is busy is not up to a server's time
			if time.Since(one.from) > time.Minute {
				w.t.Errorf("all is well, and the refresh of %s that %s asked for is not answered 202", target, c.user)
				return
			}
		}
		one.to = time.Now()
		w.mu.Lock()
		w.changed = append(w.changed, one)
		w.mu.Unlock()
	}
}

// signOuts has those devices leave that are to, at any time.
func (w *crowd) signOuts(ctx context.Context, within time.Duration) {
	random := w.random("sign-outs")
	var all sync.WaitGroup
	for _, c := range w.clients {
		if c.leaves {
			after := time.Duration(random.Int64N(int64(within)))
			all.Go(func() {
				if wait(ctx, after) {
					c.signOut(ctx)
				}
			})
		}
	}
	all.Wait()
}

// readSlowly has answers read that are far larger than any buffer, at a few KB in each moment.
func (w *crowd) readSlowly(places []place) (end func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	for n := range slowReaders() {
		user, token := id.UserID(fmt.Sprintf("@slow%d:%s", n, ours)), fmt.Sprint("slow-", n)
		w.server.AddUser(token, user, "SLOW")
		all.Go(func() {
			for ctx.Err() == nil {
				w.readOne(ctx, places[n%len(places)], token)
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

func (w *crowd) readOne(ctx context.Context, at place, token string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.url+pathSync+"?since="+hugeSince+"&timeout=1000", nil)
	if err != nil {
		w.t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.http.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	for wait(ctx, 50*time.Millisecond) {
		if _, err := io.CopyN(io.Discard, resp.Body, 8<<10); err != nil {
			return
		}
	}
}

// awaitAllHeard returns when every device has heard all, or could have: the check says what is missing.
func (w *crowd) awaitAllHeard() {
	deadline := time.Now().Add(time.Minute)
	for wait(w.t.Context(), time.Second) && time.Now().Before(deadline) {
		if !w.anyUnheard() {
			wait(w.t.Context(), crowdPolls()) // what is told again then is told too often
			return
		}
	}
}

func (w *crowd) anyUnheard() bool {
	history := w.ledger.history()
	changes := w.changesSeen(&history)
	for _, c := range w.clients {
		c.mu.Lock()
		mine := map[id.UserID][]change{}
		for _, one := range changes {
			if w.concerns(c.user, one) {
				mine[one.target] = append(mine[one.target], one)
			}
		}
		missing := 0
		for target, changes := range mine {
			if c.out.IsZero() {
				missing += len(c.unheard(target, changes, c.carriersOf(target), &told{}))
			}
		}
		c.mu.Unlock()
		if missing > 0 {
			return true
		}
	}
	return false
}

// peakMemory is the most that a process has had resident, in bytes; 0 where the system does not say.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("the system does not say how much memory freshen took")
	return 0
}
