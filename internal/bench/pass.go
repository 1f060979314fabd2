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

func passThrough(b *bench) error {
	up, err := b.startUpstream()
	if err != nil {
		return err
	}
	fresh, err := b.startFreshen("pass", up.addr, filepath.Join(b.TempDir(), "freshen.db"))
	if err != nil {
		return err
	}
	others, err := b.startProxies(up)
	if err != nil {
		return err
	}
	proxies := append([]proxy{{direct, up}, {ours, fresh}}, others...)
	for _, size := range []struct {
		name    string
		bytes   int
		targets map[string]float64
	}{
		{"1 KB", 1 << 10, map[string]float64{nginx: 0.6, caddy: 1.5}},
		{"200 KB", 200 << 10, map[string]float64{nginx: 1.6, caddy: 1.3}},
	} {
		for _, connections := range []int{64, 1} {
			all, err := b.inTurns(proxies, "/_matrix/client/v3/bench/"+strconv.Itoa(size.bytes), token("alice"), connections)
			if err != nil {
				return err
			}
			name, targets := fmt.Sprintf("%s answer, %d connections", size.name, connections), size.targets
			if connections == 1 {
				name, targets = size.name+" answer, 1 connection", nil
			}
			b.beside(name+": requests/s", all, loaded.perSecond, targets)
			b.addedBeside(name, all)
			b.cpuBeside(name, all, us)
		}
	}
	return nil
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
	fresh, err := b.startFreshen("sync", up.addr, path)
	if err != nil {
		return err
	}
	others, err := b.startProxies(up)
	if err != nil {
		return err
	}
	for _, s := range []struct {
		user, name string
		proxies    []proxy
	}{
		{far, "20 MB /sync, nothing owed", others},
		{nearBy, "20 MB /sync, nothing owed, but watched", nil},
		{owedOne, "20 MB /sync, one user owed", nil},
	} {
		const path = "/_matrix/client/v3/sync?since=s1&mb=20"
		if err := b.settle(request{up.addr, path, token(s.user)}, request{fresh.addr, path, token(s.user)}, s.user); err != nil {
			return err
		}
		for _, connections := range []int{1, 4} {
			all, err := b.inTurns(append([]proxy{{direct, up}, {ours, fresh}}, s.proxies...), path, token(s.user), connections)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%s, %d at a time", s.name, connections)
			var targets map[string]float64
			if connections == 4 {
				targets = map[string]float64{nginx: 1.4, plainGo: 0.95}
			}
			b.beside(name+": MB/s", all, loaded.megabytes, targets)
			b.cpuBeside(name, all, ms)
			if len(s.proxies) == 0 {
				b.out.add(row{name: name + ": CPU each", freshen: ms(all[ours].cpu)})
			}
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
