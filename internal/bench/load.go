package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// request is a GET that a load repeats.
type request struct {
	addr  string // host:port
	path  string
	token string
}

func (r request) bytes() []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: hs.test\r\nUser-Agent: bench\r\nAuthorization: Bearer %s\r\n\r\n", r.path, r.token)
}

// loaded is what one load measured.
type loaded struct {
	requests int
	bytes    int64
	took     time.Duration
	each     []time.Duration
}

func (l loaded) perSecond() float64 { return float64(l.requests) / l.took.Seconds() }

func (l loaded) megabytes() float64 { return float64(l.bytes) / 1e6 / l.took.Seconds() }

// load repeats the request on as many kept connections for as long as asked, each waiting for its answer before the next
// request: a closed loop. Connecting and a first request each are not measured.
//
// It is a plain client on purpose: what the client costs is taken from the cores that freshen needs.
func load(ctx context.Context, r request, connections int, during time.Duration) (loaded, error) {
	clients := make([]*client, connections)
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.conn.Close()
			}
		}
	}()
	for i := range clients {
		c, err := dial(ctx, r.addr)
		if err != nil {
			return loaded{}, err
		}
		clients[i] = c
		if _, err := c.get(r.bytes(), io.Discard); err != nil {
			return loaded{}, err
		}
	}
	var mu sync.Mutex
	var all loaded
	var failed error
	var running sync.WaitGroup
	began := time.Now()
	for _, c := range clients {
		running.Go(func() {
			one, err := c.repeat(ctx, r.bytes(), began.Add(during))
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			all.requests += one.requests
			all.bytes += one.bytes
			all.each = append(all.each, one.each...)
		})
	}
	running.Wait()
	all.took = time.Since(began)
	return all, failed
}

type client struct {
	conn net.Conn
	in   *bufio.Reader
	copy []byte
}

func dial(ctx context.Context, addr string) (*client, error) { return dialWith(ctx, addr, 64<<10) }

// dialWith connects, with buffers of so many bytes.
func dialWith(ctx context.Context, addr string, buffer int) (*client, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &client{conn: conn, in: bufio.NewReaderSize(conn, buffer), copy: make([]byte, buffer)}, nil
}

// get sends the request and writes the answer's body to where it is wanted.
func (c *client) get(request []byte, body io.Writer) (int64, error) {
	if _, err := c.conn.Write(request); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	// A writer alone: io.Discard would read into 8 KB buffers of its own.
	n, err := io.CopyBuffer(struct{ io.Writer }{body}, resp.Body, c.copy)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the answer has status %d", resp.StatusCode)
	}
	return n, err
}

func (c *client) repeat(ctx context.Context, request []byte, until time.Time) (l loaded, err error) {
	for began := time.Now(); began.Before(until) && ctx.Err() == nil; {
		n, err := c.get(request, io.Discard)
		if err != nil {
			return l, err
		}
		now := time.Now()
		l.requests++
		l.bytes += n
		l.each = append(l.each, now.Sub(began))
		began = now
	}
	return l, ctx.Err()
}

// once gets the whole answer on a connection of its own.
func once(ctx context.Context, r request) ([]byte, error) {
	c, err := dial(ctx, r.addr)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	var body buffer
	_, err = c.get(r.bytes(), &body)
	return body, err
}

type buffer []byte

func (b *buffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}
