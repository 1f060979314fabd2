//go:build unix

package wire

import "syscall"

// quiet says that a connection without a request is open and that nothing has come on it: a server that closes it, or
// says on its own that it will, must not be taken for answering the next request.
func quiet(raw syscall.RawConn) bool {
	open := false
	err := raw.Read(func(fd uintptr) bool {
		open = nothingYet(fd)
		return true
	})
	return err == nil && open
}

// await returns once something has come, the end included, or the deadline has passed. It needs no buffer to read into.
func await(raw syscall.RawConn) error {
	return raw.Read(func(fd uintptr) bool { return !nothingYet(fd) })
}

func nothingYet(fd uintptr) bool {
	var first [1]byte
	for {
		switch _, _, err := syscall.Recvfrom(int(fd), first[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT); err {
		case syscall.EINTR:
		case syscall.EAGAIN:
			return true
		default:
			return false
		}
	}
}
