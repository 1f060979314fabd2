package dial

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// race is one call of [Dialer.Dial] over the addresses that may be dialled.
type race struct {
	dialer *Dialer
	host   string
	port   uint16
	addrs  []netip.Addr
	secure Secure

	progress chan progress // unbuffered: a connection has a receiver or is closed by its own goroutine
	runners  []runner      // the addresses that were begun, only used in run
	running  int
}

// runner is how far one address has got.
type runner struct {
	stage Stage
	since time.Time
	took  time.Duration // in the stage in which it ended
	err   error         // why it ended
}

// progress is told by the goroutine of one address: a stage that it enters, or how it ended.
type progress struct {
	runner int
	stage  Stage
	ended  bool
	conn   net.Conn
	err    error
}

// run returns when the first address has won or all have lost; what still runs is cancelled, and closes its connection
// should it get one.
func (r *race) run(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.progress = make(chan progress)
	r.begin(ctx)
	silence := time.NewTimer(attemptDelay)
	defer silence.Stop()
	for {
		next := false
		select {
		case <-silence.C:
			next = true
		case p := <-r.progress:
			switch {
			case p.ended && p.err == nil:
				return p.conn, nil
			case p.ended:
				failed := &r.runners[p.runner]
				failed.err, failed.took = p.err, time.Since(failed.since)
				r.running--
				next = true
			default:
				r.runners[p.runner].stage, r.runners[p.runner].since = p.stage, time.Now()
				if p.stage == StageHandshake {
					silence.Reset(handshakeDelay)
				}
			}
		case <-ctx.Done():
			return nil, r.lost(ctx.Err())
		}
		if next && len(r.runners) < len(r.addrs) {
			r.begin(ctx)
			silence.Reset(attemptDelay)
		}
		if r.running == 0 {
			return nil, r.lost(nil)
		}
	}
}

func (r *race) begin(ctx context.Context) {
	i := len(r.runners)
	r.runners = append(r.runners, runner{stage: StageWaiting, since: time.Now()})
	r.running++
	tell := func(p progress) {
		p.runner = i
		select {
		case r.progress <- p:
		case <-ctx.Done():
			if p.conn != nil {
				_ = p.conn.Close()
			}
		}
	}
	go func() {
		conn, err := r.dial(ctx, r.addrs[i], func(stage Stage) { tell(progress{stage: stage}) })
		tell(progress{ended: true, conn: conn, err: err})
	}()
}

func (r *race) dial(ctx context.Context, addr netip.Addr, enter func(Stage)) (net.Conn, error) {
	sockets := r.dialer.Sockets
	if err := sockets.acquire(ctx); err != nil {
		return nil, err
	}
	enter(StageConnect)
	raw, err := r.dialer.connect(ctx, netip.AddrPortFrom(addr, r.port))
	if err != nil {
		sockets.release()
		return nil, err
	}
	socket := sockets.hold(raw, r.host, r.port)
	if r.secure == nil {
		return socket, nil
	}
	enter(StageHandshake)
	conn, err := r.secure(ctx, socket)
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return conn, nil
}

// lost tells of all addresses that were begun; unfinished is the failure of those that have not ended.
func (r *race) lost(unfinished error) error {
	failed := &Error{Host: r.host, Port: r.port}
	for i, runner := range r.runners {
		if runner.err == nil {
			runner.err, runner.took = unfinished, time.Since(runner.since)
		}
		failed.Addrs = append(failed.Addrs, AddrError{Addr: r.addrs[i], Stage: runner.stage, Took: runner.took, Err: runner.err})
	}
	return failed
}

func (d *Dialer) connect(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	if d.Connect != nil {
		return d.Connect(ctx, addr)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", addr.String())
}
