//go:build !unix

package wire

import "syscall"

// quiet cannot tell here, so no connection is used twice.
func quiet(syscall.RawConn) bool { return false }

// await leaves the waiting to the read that follows.
func await(syscall.RawConn) error { return nil }
