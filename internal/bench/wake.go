package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

const (
	wakesOfOne   = 200
	wakesOfMany  = 10
	many         = 1000
	refreshCount = 300
)

// wakes measures how long after the remote's answer the woken sync is there, for one client and for many.
func wakes(b *bench) error {
	var all []time.Duration
	one, err := newWorld(b, 1)
	if err != nil {
		return err
	}
	for i := range wakesOfOne + 20 {
		each, err := one.wake()
		if err != nil {
			return err
		}
		if i >= 20 { // the first find no connection, and no room known
			all = append(all, each...)
		}
	}
	p50 := quantile(all, 0.5)
	b.out.add(row{
		name: fmt.Sprintf("wake, 1 poll, %d times: p50", wakesOfOne), freshen: ms(p50), target: "< 20 ms", met: p50 < 20*time.Millisecond,
	})
	b.out.add(row{name: "wake, 1 poll: p99", freshen: ms(quantile(all, 0.99))})

	crowd, err := newWorld(b, many)
	if err != nil {
		return err
	}
	first, err := crowd.wake()
	if err != nil {
		return err
	}
	var later []time.Duration
	var slower, beside []float64
	var writing, least, waking, bursts []time.Duration
	var spent time.Duration
	for range wakesOfMany {
		written, err := crowd.write()
		if err != nil {
			return err
		}
		questioned, err := crowd.question()
		if err != nil {
			return err
		}
		each, err := crowd.wake()
		if err != nil {
			return err
		}
		spent += crowd.spent
		later, bursts = append(later, each...), append(bursts, quantile(each, 0.99))
		last := quantile(each, 1)
		writing, waking, slower = append(writing, written), append(waking, last), append(slower, float64(last)/float64(written))
		least, beside = append(least, written+questioned), append(beside, float64(last)/float64(written+questioned))
	}
	for _, part := range []struct {
		name string
		of   []time.Duration
	}{{"nobody's rooms known", first}, {"rooms known", later}} {
		p99 := quantile(part.of, 0.99)
		r := row{
			name:    fmt.Sprintf("wake of %d users' polls, %s: p50, p99, last", many, part.name),
			freshen: fmt.Sprintf("%s, %s, %s", ms(quantile(part.of, 0.5)), ms(p99), ms(quantile(part.of, 1))),
		}
		if part.name == "rooms known" {
			r.target, r.met = "p99 ≤ 50 ms", p99 <= 50*time.Millisecond
		}
		b.out.add(r)
	}
	b.out.add(row{name: fmt.Sprintf("- of each of %d times the p99: the least, median, worst", wakesOfMany), freshen: fmt.Sprintf("%s, %s, %s",
		ms(quantile(bursts, 0)), ms(median(bursts)), ms(quantile(bursts, 1)))})
	b.out.add(row{name: "- CPU each", freshen: fmt.Sprintf("%d µs", (spent / (many * wakesOfMany)).Microseconds())})
	if err := wakesOfTwo(b); err != nil {
		return err
	}
	ratio := median(slower)
	b.out.add(row{
		name: fmt.Sprintf("the last of %d wakes, beside the last of %d answers written at once", many, many), direct: ms(median(writing)),
		freshen: ms(median(waking)), ratio: fmt.Sprintf("%.2f×", ratio), target: "≤ 3×", met: ratio <= 3,
	})
	b.out.add(row{
		name: fmt.Sprintf("the same, beside %d answers and as many questions to the homeserver", many), direct: ms(median(least)),
		freshen: ms(median(waking)), ratio: fmt.Sprintf("%.2f×", median(beside)),
	})
	return nil
}

// wakesOfTwo measures the same for polls half of which wait at another instance than the one that announces.
func wakesOfTwo(b *bench) error {
	name := fmt.Sprintf("wake of %d users' polls, half at each of two instances on one Postgres", many)
	server, err := storetest.Start(b.ctx, storetest.Options{Durable: true})
	if errors.Is(err, storetest.ErrMissing) {
		b.out.add(row{name: name, freshen: "there is no Postgres here"})
		return nil
	}
	if err != nil {
		return err
	}
	b.Cleanup(func() {
		if err := server.Close(); err != nil {
			b.Error(err)
		}
	})
	database, err := server.CreateDatabase(b.ctx)
	if err != nil {
		return err
	}
	crowd, err := newWorld(b, many, server.URL(database), server.URL(database))
	if err != nil {
		return err
	}
	var here, there []time.Duration
	for i := range wakesOfMany + 1 {
		each, err := crowd.wake()
		if err != nil {
			return err
		}
		for user, took := range each {
			switch {
			case i == 0: // nobody's rooms are known
			case user%2 == 0:
				here = append(here, took)
			default:
				there = append(there, took)
			}
		}
	}
	p99 := quantile(append(here, there...), 0.99)
	for _, part := range []struct {
		where string
		of    []time.Duration
	}{{name, append(here, there...)}, {"- those at the one that announces", here}, {"- those at the other", there}} {
		r := row{name: part.where, freshen: fmt.Sprintf("%s, %s, %s", ms(quantile(part.of, 0.5)), ms(quantile(part.of, 0.99)), ms(quantile(part.of, 1)))}
		if part.where == name {
			r.target, r.met = "p99 ≤ 50 ms", p99 <= 50*time.Millisecond
		}
		b.out.add(r)
	}
	return nil
}

// refreshes compares a whole refresh with a plain signed GET of the same list on a kept connection to the same server,
// in turns, and with the commit alone, into a database of its own beside freshen's.
func refreshes(b *bench) error {
	w, err := newWorld(b, 1)
	if err != nil {
		return err
	}
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool(), MinVersion: tls.VersionTLS12}}
	defer base.CloseIdleConnections()
	plain := &mxfed.Client{HTTP: &http.Client{Transport: overTLS{base}}, ServerName: serverName, Key: w.key, ResponseSizeLimit: 16 << 20}
	other, err := store.Open(b.ctx, store.Config{Path: filepath.Join(w.dir, "other.db"), Log: quiet()})
	if err != nil {
		return err
	}
	defer func() { _ = other.Close() }()

	var asking, getting, keeping []time.Duration
	for i := range refreshCount {
		w.change()
		list, err := freshen.ParseDeviceList(deviceList(w.bob, 5, w.lists), w.bob)
		if err != nil {
			return err
		}
		for _, part := range []struct {
			into *[]time.Duration
			do   func() error
		}{
			{&asking, func() error { return w.refresh() }},
			{&getting, func() error {
				_, _, err := plain.MakeFullRequest( //nolint:bodyclose // it reads and closes the body itself
					b.ctx, mxfed.RequestParams{
						ServerName: w.remote.Name, Method: http.MethodGet, Path: mxfed.URLPath{"v1", "user", "devices", w.bob}, Authenticate: true,
					})
				return err
			}},
			{&keeping, func() error {
				_, err := other.Keep(b.ctx, store.Fetched{List: list, At: time.Now(), Requesters: []id.UserID{userID(w.users[0].name)}})
				return err
			}},
		} {
			began := time.Now()
			if err := part.do(); err != nil {
				return err
			}
			if i >= 10 {
				*part.into = append(*part.into, time.Since(began))
			}
		}
	}
	for _, q := range []float64{0.5, 0.99} {
		g, a := quantile(getting, q), quantile(asking, q)
		b.out.add(row{
			name: fmt.Sprintf("refresh of 5 devices, beside a signed GET: p%.0f", 100*q), direct: ms(g), freshen: ms(a),
			ratio: times(float64(a) / float64(g)),
		})
	}
	k, a := median(keeping), median(asking)
	b.out.add(row{name: "of it the durable commit: p50", freshen: ms(k), ratio: fmt.Sprintf("%.0f %%", 100*float64(k)/float64(a))})
	return nil
}

// overTLS sends what mautrix signs over https as it stands.
type overTLS struct{ base *http.Transport }

func (o overTLS) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := req.Clone(req.Context())
	sent.URL.Scheme = "https"
	return o.base.RoundTrip(sent)
}

// splicing runs the splicer's own benchmark, which knows the tap that it is held against.
func splicing(b *bench) error {
	cmd := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkSync$", "-benchmem", "-count", "3", "-benchtime", "2s", "freshen/internal/overlay/splice")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("the splicer's benchmark: %w", err)
	}
	found := parseBenchmarks(out)
	tap, splice := found["jsontext_tap"], found["splice,_Read"]
	if len(tap.mbs) == 0 || len(splice.mbs) == 0 {
		return fmt.Errorf("the splicer's benchmark does not name what is looked for:\n%s", out)
	}
	ratio := median(ratios(splice.mbs, tap.mbs))
	b.out.add(row{
		name: "one owed, 20 MB in memory: MB/s, jsontext as a tap and freshen", direct: fmt.Sprintf("%.0f", median(tap.mbs)),
		freshen: fmt.Sprintf("%.0f", median(splice.mbs)), ratio: times(ratio), target: "≥ 2.5×", met: ratio >= 2.5,
	})
	b.out.add(row{
		name: "allocated a pass of 20 MB, the same two", direct: fmt.Sprintf("%.0f B", median(tap.bytes)),
		freshen: fmt.Sprintf("%.0f B", median(splice.bytes)), ratio: times(median(splice.bytes) / median(tap.bytes)),
		target: "< 4 KB", met: median(splice.bytes) < 4<<10,
	})
	return nil
}

// benchmarked is what go test says of one benchmark, run by run.
type benchmarked struct{ mbs, bytes []float64 }

// parseBenchmarks reads the lines of go test -bench, by the name after the last slash without the number of cores.
func parseBenchmarks(out []byte) map[string]benchmarked {
	found := map[string]benchmarked{}
	for line := range bytes.Lines(out) {
		fields := bytes.Fields(line)
		if len(fields) < 3 || !bytes.HasPrefix(fields[0], []byte("Benchmark")) {
			continue
		}
		name := fields[0][bytes.LastIndexByte(fields[0], '/')+1:]
		if dash := bytes.LastIndexByte(name, '-'); dash >= 0 {
			name = name[:dash]
		}
		one := found[string(name)]
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(string(fields[i]), 64)
			if err != nil {
				continue
			}
			switch string(fields[i+1]) {
			case "MB/s":
				one.mbs = append(one.mbs, value)
			case "B/op":
				one.bytes = append(one.bytes, value)
			}
		}
		found[string(name)] = one
	}
	return found
}
