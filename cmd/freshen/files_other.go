//go:build !unix

package main

// openFiles is how many files this process may have open at once, where the system has such a limit.
func openFiles() (most uint64, ok bool) { return 0, false }
