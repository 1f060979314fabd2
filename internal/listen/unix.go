package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// openUnix listens on a unix socket. One that is left over from a process that is gone is replaced; one on which
// somebody listens, and a file that is no socket, are left alone and are an error. Two processes that start at once do
// not take each other's for left over.
func openUnix(ctx context.Context, address Address) (net.Listener, error) {
	path := address.Name
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	defer unlock()
	if err := makeRoom(ctx, path); err != nil {
		return nil, err
	}
	// From its first moment nobody may connect who may not later.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { restrict(fd, address.Mode) })
	}}
	opened, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	listener := opened.(*net.UnixListener)
	listener.SetUnlinkOnClose(false) // it would remove whatever is there by then
	if err := os.Chmod(path, address.Mode); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot give %s the mode %04o: %w", path, address.Mode, err), listener.Close())
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot listen on %s: %w", path, err), listener.Close())
	}
	return &unixListener{UnixListener: listener, path: path, made: made}, nil
}

// makeRoom removes a socket that nobody listens on.
func makeRoom(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot listen on %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s %w", path, errNoSocket)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("cannot listen on %s: another program does; stop it, or name another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s is there, and it cannot be told whether another program listens on it: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("the socket of a program that is gone cannot be removed: %w", err)
	}
	return nil
}

// unixListener removes its socket at the end, if that is still its own.
type unixListener struct {
	*net.UnixListener
	path   string
	made   fs.FileInfo
	remove sync.Once
}

// Close removes the socket first: once it refuses connections, another process may take it for left over.
func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if is, err := os.Lstat(l.path); err == nil && os.SameFile(is, l.made) && is.ModTime().Equal(l.made.ModTime()) {
			_ = os.Remove(l.path) // what stays is replaced at the next start
		}
	})
	return l.UnixListener.Close()
}
