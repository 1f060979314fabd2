//go:build unix

package listen

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// lockFolder waits until no other process makes a socket in the folder.
func lockFolder(folder string) (unlock func(), err error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	for {
		switch err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err {
		case nil:
			return func() { _ = dir.Close() }, nil
		case syscall.EINTR:
		default:
			_ = dir.Close()
			return nil, fmt.Errorf("the folder %s cannot be locked: %w", folder, err)
		}
	}
}

// restrict gives a socket that is not bound yet the mode that its file is to have at the most. Where a system cannot,
// the umask has to do until it is changed.
func restrict(fd uintptr, mode fs.FileMode) { _ = syscall.Fchmod(int(fd), uint32(mode)) }

// accepts says whether connections come in on a socket.
func accepts(file *os.File) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	listens := 0
	if raw.Control(func(fd uintptr) {
		listens, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	}) != nil {
		return false
	}
	return err == nil && listens != 0
}
