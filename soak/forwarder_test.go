//go:build unix

package soak

import (
	"io"
	"net"
	"sync"
	"testing"
)

// forwarder leads TCP connections to another address, and can be cut.
type forwarder struct {
	listener net.Listener
	to       string
	serving  sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	conns map[net.Conn]bool
}

// forward starts one. It stops with the test.
func forward(t *testing.T, to string) *forwarder {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{listener: listener, to: to, conns: map[net.Conn]bool{}}
	f.serving.Go(f.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		f.cut()
		f.serving.Wait()
	})
	return f
}

func (f *forwarder) addr() string { return f.listener.Addr().String() }

func (f *forwarder) accept() {
	for {
		from, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.serving.Go(func() { f.serve(from) })
	}
}

func (f *forwarder) serve(from net.Conn) {
	defer from.Close()
	if !f.enter(from) {
		return
	}
	defer f.leave(from)
	to, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer to.Close()
	if !f.enter(to) {
		return
	}
	defer f.leave(to)
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(from, to)
		_ = from.Close()
	})
	_, _ = io.Copy(to, from)
	_ = to.Close()
	back.Wait()
}

func (f *forwarder) enter(conn net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[conn] = true
	return !f.isCut
}

func (f *forwarder) leave(conn net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, conn)
}

// cut breaks all connections, and each new one, until mend.
func (f *forwarder) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isCut = true
	for conn := range f.conns {
		_ = conn.Close()
	}
}

func (f *forwarder) mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isCut = false
}
