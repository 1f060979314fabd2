package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"time"
)

const (
	idle = 10_000
	// idleTarget is the most that one may take, in bytes.
	idleTarget = 30e3
)

// idlePolls is what a poll costs that waits for nothing, of freshen and of the other proxies.
func idlePolls(b *bench) error {
	up, err := b.startUpstream()
	if err != nil {
		return err
	}
	fresh, err := b.startFreshen("idle", up.addr, filepath.Join(b.TempDir(), "freshen.db"))
	if err != nil {
		return err
	}
	others, err := b.startProxies(up)
	if err != nil {
		return err
	}
	files, err := openFiles()
	if err != nil {
		return err
	}
	polls := min(idle, files/2-100) // a proxy has two connections for each
	each := map[string]float64{}
	for _, p := range append([]proxy{{ours, fresh}}, others...) {
		if each[p.name], err = b.waiting(p, polls); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	kb := func(bytes float64) string { return fmt.Sprintf("%.1f KB", bytes/1e3) }
	name := fmt.Sprintf("%d waiting polls: resident memory each", polls)
	b.out.add(row{name: name, freshen: kb(each[ours]), target: "≤ " + kb(idleTarget), met: each[ours] <= idleTarget})
	for _, p := range others {
		b.out.add(row{name: name + ", beside " + p.name, direct: kb(each[p.name]), freshen: kb(each[ours]), ratio: times(each[ours] / each[p.name])})
	}
	return nil
}

// waiting is by how many bytes each of so many polls makes the proxy's process larger.
func (b *bench) waiting(p proxy, polls int) (float64, error) {
	// What the process takes by itself, and for having been under load, is not a poll's.
	warm := request{p.addr, "/_matrix/client/v3/bench/1024", token("alice")}
	if _, err := load(b.ctx, warm, 8, time.Second); err != nil {
		return 0, err
	}
	resident := func() (int64, error) { return p.memory("VmRSS") }
	before, err := settled(b.ctx, resident)
	if err != nil {
		return 0, err
	}
	clients := make([]*client, 0, polls)
	defer func() {
		for _, c := range clients {
			_ = c.conn.Close()
		}
	}()
	for i := range polls {
		c, err := dial(b.ctx, p.addr)
		if err != nil {
			return 0, err
		}
		clients = append(clients, c)
		r := request{p.addr, "/_matrix/client/v3/sync?since=s1&mb=0", token("user" + strconv.Itoa(i))}
		if _, err := c.get(r.bytes(), io.Discard); err != nil { // a client that waits has synced before
			return 0, err
		}
		c.in, c.copy = nil, nil // nothing will come
		r.path = "/_matrix/client/v3/sync?since=s2&timeout=30000"
		if _, err := c.conn.Write(r.bytes()); err != nil {
			return 0, err
		}
	}
	after, err := settled(b.ctx, resident)
	return float64(after-before) / float64(polls), err
}

// settled reads until three readings in a row, half a second apart, lie within 1 % of each other, for ten seconds at the
// most: the runtime gives memory back to the system bit by bit.
func settled(ctx context.Context, read func() (int64, error)) (last int64, err error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for same, readings := 0, 0; same < 3 && readings < 20; readings++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		now, err := read()
		if err != nil {
			return 0, err
		}
		if now-last < last/100 && last-now < last/100 {
			same++
		} else {
			same = 0
		}
		last = now
	}
	return last, nil
}

// acknowledge asks for target's keys, as a client does that has heard of their change.
func acknowledge(ctx context.Context, through request) error {
	body := []byte(`{"device_keys":{"` + target + `":[]}}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+through.addr+"/_matrix/client/v3/keys/query", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+through.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for keys: status %d", resp.StatusCode)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
