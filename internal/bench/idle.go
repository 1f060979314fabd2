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

const idle = 1000

// idlePolls is what a poll costs that waits for nothing.
func idlePolls(b *bench) error {
	up, err := b.startUpstream()
	if err != nil {
		return err
	}
	fresh, err := b.startFreshen("idle", up, filepath.Join(b.TempDir(), "freshen.db"))
	if err != nil {
		return err
	}
	// What the process takes by itself, and for having been under load, is not a poll's.
	warm := request{fresh.addr, "/_matrix/client/v3/bench/1024", token("alice")}
	if _, err := load(b.ctx, warm, 8, time.Second); err != nil {
		return err
	}
	before, err := fresh.memory("VmRSS")
	if err != nil {
		return err
	}
	for i := range idle {
		c, err := dial(b.ctx, fresh.addr)
		if err != nil {
			return err
		}
		b.Cleanup(func() { c.conn.Close() })
		r := request{fresh.addr, "/_matrix/client/v3/sync?since=s1&timeout=30000", token("user" + strconv.Itoa(i))}
		if _, err := c.conn.Write(r.bytes()); err != nil {
			return err
		}
	}
	after, err := settled(b.ctx, func() (int64, error) { return fresh.memory("VmRSS") })
	if err != nil {
		return err
	}
	b.out.add(row{
		name: fmt.Sprintf("%d waiting polls: resident memory each", idle), freshen: fmt.Sprintf("%.1f KB", float64(after-before)/idle/1e3),
	})
	return nil
}

// settled reads until the same comes three times in a row, a second in all at the least.
func settled(ctx context.Context, read func() (int64, error)) (last int64, err error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for same := 0; same < 3; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		now, err := read()
		if err != nil {
			return 0, err
		}
		if now == last {
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
