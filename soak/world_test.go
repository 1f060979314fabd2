//go:build unix

package soak

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
)

const (
	ours = "example.org"

	remotes       = 8
	targetsOfEach = 5
	users         = 8
	// asksAtOnce is how many refreshes one user may have under way.
	asksAtOnce = 4
	// askEvery is how long a user waits between two of them, in the mean.
	askEvery = 60 * time.Millisecond
	// moodEvery is how long a remote server's mood lasts, in the mean.
	moodEvery = 500 * time.Millisecond
)

// world is everything around freshen.
type world struct {
	t      *testing.T
	dir    string
	binary string
	caFile string
	ledger *ledger
	lives  *lives
	hs     *homeserver

	remotes []*remote
	targets []id.UserID
	askers  []*asker
	devices map[id.UserID][]*device
}

// place is where a client connects to.
type place struct {
	via string // the instance, or "" for the proxy
	url string
}

// newWorld makes a homeserver with users, some of them on two devices, and remote servers that are well. The clients are
// spread over the places in turn.
func newWorld(t *testing.T, places ...place) *world {
	t.Helper()
	binary, err := buildFreshen()
	if err != nil {
		t.Fatal(err)
	}
	ca := fedtest.NewCA(t)
	w := &world{
		t: t, dir: t.TempDir(), binary: binary, caFile: ca.File(), ledger: newLedger(), lives: newLives(),
		devices: map[id.UserID][]*device{},
	}
	w.hs = newHomeserver(t, w.random("homeserver"))
	cert := ca.Issue("127.0.0.1")
	for n := range remotes {
		r := &remote{
			t: t, name: reserve(t), cert: cert, h2: n%2 == 0, ledger: w.ledger, lives: w.lives,
			random: w.random(fmt.Sprint("remote", n)), changed: make(chan struct{}), lists: map[string]int{},
		}
		r.up()
		t.Cleanup(func() { r.set(refuses) })
		w.remotes = append(w.remotes, r)
		for u := range targetsOfEach {
			w.targets = append(w.targets, id.UserID(fmt.Sprintf("@t%d:%s", u, r.name)))
		}
	}
	client := 0
	for n := range users {
		user := id.UserID(fmt.Sprintf("@user%d:%s", n, ours))
		for k := range 1 + (n+1)%2 {
			d := &device{
				ledger: w.ledger, hs: w.hs, user: user, id: id.DeviceID(fmt.Sprintf("DEVICE%d", k)), token: fmt.Sprintf("token-%d-%d", n, k),
				via: places[client%len(places)].via, base: places[client%len(places)].url, random: w.random(fmt.Sprint("device", n, k)), http: newClient(t),
			}
			w.hs.AddUser(d.token, d.user, d.id)
			w.devices[user] = append(w.devices[user], d)
			client++
		}
		first := w.devices[user][0]
		w.askers = append(w.askers, &asker{ledger: w.ledger, user: user, token: first.token, via: first.via, base: first.base, http: newClient(t)})
	}
	// Each remote server's users share a room with three of ours, who hear of changes without asking.
	for n, r := range w.remotes {
		members := slices.Clone(w.targets[n*targetsOfEach : (n+1)*targetsOfEach])
		for k := range 3 {
			members = append(members, w.askers[(n+k)%users].user)
		}
		w.hs.SetRoom(id.RoomID(fmt.Sprintf("!room%d:%s", n, r.name)), members...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("The seed was %d.", seed())
		}
	})
	return w
}

// newClient makes a client with connections of its own, which go with the test.
func newClient(t *testing.T) *http.Client {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 10}}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// random is the dice of one actor.
func (w *world) random(name string) *rand.Rand {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(w.t.Name() + " " + name))
	return rand.New(rand.NewPCG(seed(), sum.Sum64()))
}

// chaos has users ask and remote servers fail and recover, until the function that it returns is called: then the last
// request is answered, and all remote servers are well.
func (w *world) chaos() (calm func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	all.Go(func() { w.ask(ctx) })
	all.Go(func() { w.moods(ctx) })
	return func() { cancel(); all.Wait() }
}

// moods has the remote servers fail and recover until ctx ends; then all of them are well.
func (w *world) moods(ctx context.Context) {
	var all sync.WaitGroup
	for n, r := range w.remotes {
		all.Go(func() {
			random := w.random(fmt.Sprint("mood", n))
			for wait(ctx, time.Duration(random.Int64N(int64(2*moodEvery)))) {
				m := well
				if random.IntN(2) == 0 {
					m = mood(random.IntN(int(moods)))
				}
				r.set(m)
			}
			r.set(well)
		})
	}
	all.Wait()
}

// sync has every device sync until the function that it returns is called.
func (w *world) sync() (end func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	for _, devices := range w.devices {
		for _, d := range devices {
			all.Go(func() { d.run(ctx) })
		}
	}
	return func() { cancel(); all.Wait() }
}

// ask has every user ask until ctx ends and the last request is answered.
func (w *world) ask(ctx context.Context) {
	var all sync.WaitGroup
	for n, a := range w.askers {
		for k := range asksAtOnce {
			all.Go(func() { a.run(ctx, w.random(fmt.Sprint("asker", n, k)), w.targets, askEvery) })
		}
	}
	all.Wait()
}

// overheard complains of announcements that reached somebody whom they do not concern.
func (w *world) overheard(h *history) []string {
	concerns := map[pair]bool{}
	for _, a := range h.asks {
		concerns[pair{a.user, a.target}] = true
	}
	for n := range w.remotes {
		for _, target := range w.targets[n*targetsOfEach : (n+1)*targetsOfEach] {
			for k := range 3 {
				concerns[pair{w.askers[(n+k)%users].user, target}] = true
			}
		}
	}
	var complaints []string
	for _, a := range h.answers {
		for _, target := range a.changed {
			if !concerns[pair{a.device.user, target}] {
				complaints = append(complaints, fmt.Sprintf("%s heard of %s, for whom they did not ask, and with whom they share no room", a.device, target))
			}
		}
	}
	return some(complaints)
}

// summary says in plain words what happened.
func summary(h *history) string {
	counts := map[outcome]int{}
	for _, a := range h.asks {
		counts[a.outcome]++
	}
	ends := map[string]int{}
	for _, d := range h.disturbances {
		how, _, _ := strings.Cut(d.what, " of ")
		ends[how]++
	}
	var fetches, successes, named int
	for _, all := range h.fetches {
		fetches += len(all)
		for _, f := range all {
			if f.ok {
				successes++
			}
		}
	}
	for _, a := range h.answers {
		if a.lists == nil {
			named += len(a.changed)
		}
	}
	var text strings.Builder
	for _, how := range slices.Sorted(mapsKeys(ends)) {
		fmt.Fprintf(&text, "%d × %s; ", ends[how], how)
	}
	fmt.Fprintf(&text, "\n%d refreshes were asked for: %d were answered 202, %d with a failure and the promise to try again, %d with an error that promises nothing, %d broke off.\n",
		len(h.asks), counts[fresh], counts[promised], counts[refused], counts[broken])
	fmt.Fprintf(&text, "The remote servers were asked %d times and answered %d times with a list.\n", fetches, successes)
	fmt.Fprintf(&text, "%d answers to /sync were taken, %d more were lost by the client on purpose; %d entries in device_lists.changed.", h.polls-h.lost, h.lost, named)
	return text.String()
}
