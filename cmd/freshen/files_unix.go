//go:build unix

package main

import "syscall"

// openFiles is how many files this process may have open at once; Go has raised that to the most that it was given.
func openFiles() (most uint64, ok bool) {
	var limit syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	return uint64(limit.Cur), err == nil //nolint:unconvert // on FreeBSD it is an int64
}
