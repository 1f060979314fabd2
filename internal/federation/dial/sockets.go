package dial

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrBusy is the failure of what waited for a free socket as long as it might.
var ErrBusy = errors.New("as many sockets are open as may be")

// Sockets bounds how many sockets are open at once: connections that are being made, used or kept, and name lookups. A
// flood of requests to thousands of dead hosts waits here instead of taking every file of the process. A nil *Sockets
// bounds nothing. It may be used by several goroutines at once.
type Sockets struct {
	slots chan struct{}
	full  func()

	mu     sync.Mutex
	open   map[*Socket]struct{}
	closed bool
}

// NewSockets lets most sockets be open at once. full is called when one more is wanted, to close what is only kept.
func NewSockets(most int, full func()) *Sockets {
	return &Sockets{slots: make(chan struct{}, most), full: full, open: map[*Socket]struct{}{}}
}

// Open says how many sockets there are.
func (s *Sockets) Open() int { return len(s.slots) }

// Close closes every connection, whoever uses it, and those that are made from now on.
func (s *Sockets) Close() {
	s.mu.Lock()
	s.closed = true
	var open []*Socket
	for socket := range s.open {
		open = append(open, socket)
	}
	s.mu.Unlock()
	for _, socket := range open {
		_ = socket.Close()
	}
}

// acquire takes a slot, and waits for one within ctx. The error is ErrBusy.
func (s *Sockets) acquire(ctx context.Context) error {
	if s == nil {
		return nil
	}
	select {
	case s.slots <- struct{}{}:
		return nil
	default:
	}
	s.full()
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ErrBusy
	}
}

func (s *Sockets) release() {
	if s != nil {
		<-s.slots
	}
}

// hold makes conn give its slot back when it is closed.
func (s *Sockets) hold(conn net.Conn, host string, port uint16) *Socket {
	socket := &Socket{Conn: conn, Host: host, Port: port, owner: s}
	if s == nil {
		return socket
	}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.open[socket] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		_ = socket.Close()
	}
	return socket
}

// Socket is a TCP connection that [Dialer.Dial] made.
type Socket struct {
	net.Conn
	// Host and Port are what was dialled.
	Host string
	Port uint16

	owner    *Sockets
	once     sync.Once
	closeErr error
	heard    atomic.Int64 // when something was last read, in nanoseconds since 1970
	dropped  atomic.Bool
}

// Read implements [net.Conn].
func (s *Socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if n > 0 {
		s.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// SilentSince says whether nothing was read after the moment t.
func (s *Socket) SilentSince(t time.Time) bool { return s.heard.Load() <= t.UnixNano() }

// Drop closes the connection because it is no longer trusted to carry an answer.
func (s *Socket) Drop() {
	s.dropped.Store(true)
	_ = s.Close()
}

// Dropped says whether Drop was called.
func (s *Socket) Dropped() bool { return s.dropped.Load() }

// Close implements [net.Conn].
func (s *Socket) Close() error {
	s.once.Do(func() {
		s.closeErr = s.Conn.Close()
		if s.owner == nil {
			return
		}
		s.owner.mu.Lock()
		delete(s.owner.open, s)
		s.owner.mu.Unlock()
		s.owner.release()
	})
	return s.closeErr
}
