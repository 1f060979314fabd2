package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

const (
	rounds = 5
	aRound = 500 * time.Millisecond
)

// paired is what rounds of direct and proxied loads measured, one of each a round.
type paired struct {
	direct, through []loaded
	cpu             time.Duration // of freshen, a request
}

// inTurns loads both, in turns, and swaps who goes first each round.
func (b *bench) inTurns(direct, through request, freshen *process, connections int) (p paired, err error) {
	var spent time.Duration
	requests := 0
	for round := range rounds {
		pair := [2]request{direct, through}
		if round%2 == 1 {
			pair[0], pair[1] = through, direct
		}
		for _, r := range pair {
			before, err := freshen.cpuTime()
			if err != nil {
				return p, err
			}
			l, err := load(b.ctx, r, connections, aRound)
			if err != nil {
				return p, fmt.Errorf("%s at %s: %w", r.path, r.addr, err)
			}
			if r == direct {
				p.direct = append(p.direct, l)
				continue
			}
			p.through = append(p.through, l)
			after, err := freshen.cpuTime()
			if err != nil {
				return p, err
			}
			spent += after - before
			requests += l.requests + connections
		}
	}
	p.cpu = spent / time.Duration(requests)
	return p, nil
}

func each(all []loaded, f func(loaded) float64) []float64 {
	values := make([]float64, len(all))
	for i, l := range all {
		values[i] = f(l)
	}
	return values
}

// at is the median over the rounds of one quantile of the latency.
func at(all []loaded, q float64) time.Duration {
	return time.Duration(median(each(all, func(l loaded) float64 { return float64(quantile(l.each, q)) })))
}

func passThrough(b *bench) error {
	up, err := b.startUpstream()
	if err != nil {
		return err
	}
	fresh, err := b.startFreshen("pass", up, filepath.Join(b.TempDir(), "freshen.db"))
	if err != nil {
		return err
	}
	for _, size := range []struct {
		name  string
		bytes int
	}{{"1 KB", 1 << 10}, {"200 KB", 200 << 10}} {
		for _, connections := range []int{64, 1} {
			direct := request{up.addr, "/_matrix/client/v3/bench/" + strconv.Itoa(size.bytes), token("alice")}
			through := direct
			through.addr = fresh.addr
			p, err := b.inTurns(direct, through, fresh, connections)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%s answer, %d connections: ", size.name, connections)
			if connections == 1 {
				name = size.name + " answer, 1 connection: "
			}
			b.throughput(name, p)
			for _, q := range []float64{0.5, 0.99} {
				d, f := at(p.direct, q), at(p.through, q)
				b.out.add(row{
					name: fmt.Sprintf("%sp%.0f (added)", name, 100*q), direct: ms(d), freshen: ms(f), ratio: signed(f - d),
				})
			}
			b.out.add(row{name: name + "CPU a request", freshen: us(p.cpu)})
		}
	}
	return nil
}

func (b *bench) throughput(name string, p paired) {
	d, f := each(p.direct, loaded.perSecond), each(p.through, loaded.perSecond)
	ratio := median(ratios(f, d))
	b.out.add(row{
		name: name + "requests/s", direct: fmt.Sprintf("%.0f", median(d)), freshen: fmt.Sprintf("%.0f", median(f)), ratio: times(ratio),
	})
}

// The users of the big syncs, each in one of the three states that a sync can be in.
const (
	far     = "far"     // nothing owed, and shares no room with anybody whose list is kept
	nearBy  = "nearby"  // nothing owed, but the homeserver may announce somebody whose list is kept
	owedOne = "owedone" // one announcement, which is never acknowledged
)

// bigSyncs passes syncs of 20 MB for each of the three.
func bigSyncs(b *bench) error {
	path := filepath.Join(b.TempDir(), "freshen.db")
	if err := b.owe(path); err != nil {
		return err
	}
	up, err := b.startUpstream()
	if err != nil {
		return err
	}
	fresh, err := b.startFreshen("sync", up, path)
	if err != nil {
		return err
	}
	for _, s := range []struct{ user, name string }{
		{far, "20 MB /sync, nothing owed: "},
		{nearBy, "20 MB /sync, nothing owed, but watched: "},
		{owedOne, "20 MB /sync, one user owed: "},
	} {
		direct := request{up.addr, "/_matrix/client/v3/sync?since=s1&mb=20", token(s.user)}
		through := direct
		through.addr = fresh.addr
		if err := b.settle(direct, through, s.user); err != nil {
			return err
		}
		for _, connections := range []int{1, 4} {
			p, err := b.inTurns(direct, through, fresh, connections)
			if err != nil {
				return err
			}
			d, f := each(p.direct, loaded.megabytes), each(p.through, loaded.megabytes)
			b.out.add(row{
				name: fmt.Sprintf("%sMB/s, %d at a time", s.name, connections), direct: fmt.Sprintf("%.0f", median(d)),
				freshen: fmt.Sprintf("%.0f", median(f)), ratio: times(median(ratios(f, d))),
			})
			b.out.add(row{name: s.name + "CPU each", freshen: ms(p.cpu)})
		}
	}
	return b.memoryOfSyncs(fresh)
}

// owe keeps a list of target's that owedOne asked for, and so announces it.
func (b *bench) owe(path string) error {
	s, err := store.Open(b.ctx, store.Config{Path: path, Log: quiet()})
	if err != nil {
		return err
	}
	defer func() {
		if err := s.Close(); err != nil {
			b.Errorf("closing the database: %v", err)
		}
	}()
	list, err := freshen.ParseDeviceList(deviceList(target, 5, 1), target)
	if err != nil {
		return err
	}
	_, err = s.Keep(b.ctx, store.Fetched{List: list, At: time.Now(), Requesters: []id.UserID{userID(owedOne)}})
	return err
}

// settle repeats the sync until freshen has learnt in the background what it will go on knowing of the user, and checks
// the answer against the direct one.
func (b *bench) settle(direct, through request, user string) error {
	plain, err := once(b.ctx, direct)
	if err != nil {
		return err
	}
	merged := bytes.Replace(plain, []byte(`"@carol:remote.test"]`), []byte(`"@carol:remote.test","`+target+`"]`), 1)
	switch user {
	case owedOne:
		return b.await(through, merged)
	case nearBy:
		// The room is known once the announcement comes; then it is acknowledged.
		if err := b.await(through, merged); err != nil {
			return err
		}
		if err := acknowledge(b.ctx, through); err != nil {
			return err
		}
	}
	return b.await(through, plain)
}

// await repeats the sync until its answer is what is wanted, for twenty times in a row.
func (b *bench) await(through request, want []byte) error {
	inRow := 0
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		got, err := once(b.ctx, through)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			inRow = 0
		} else if inRow++; inRow == 20 {
			return nil
		}
	}
	return fmt.Errorf("the sync of %s does not come to be what it should", through.token)
}

// memoryOfSyncs compares the most memory that freshen took for bodies of two sizes.
func (b *bench) memoryOfSyncs(fresh *process) error {
	var peaks [2]int64
	for i, megabytes := range []int{20, 400} {
		through := request{fresh.addr, "/_matrix/client/v3/sync?since=s1&mb=" + strconv.Itoa(megabytes), token(owedOne)}
		if err := fresh.forgetPeak(); err != nil {
			return err
		}
		if _, err := load(b.ctx, through, 1, time.Second); err != nil {
			return err
		}
		var err error
		if peaks[i], err = fresh.memory("VmHWM"); err != nil {
			return err
		}
	}
	b.out.add(row{
		name: "peak memory, one owed, 20 MB and 400 MB /sync", direct: megabyte(peaks[0]), freshen: megabyte(peaks[1]),
		ratio: times(float64(peaks[1]) / float64(peaks[0])), target: "does not grow", met: peaks[1]-peaks[0] < 10<<20,
	})
	return nil
}

func megabyte(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
