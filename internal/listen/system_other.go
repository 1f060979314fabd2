//go:build !unix

package listen

import (
	"io/fs"
	"os"
)

// lockFolder has no lock to take here.
func lockFolder(string) (unlock func(), err error) { return func() {}, nil }

// restrict has no mode to give here.
func restrict(uintptr, fs.FileMode) {}

// accepts cannot tell here; systemd is not here either.
func accepts(*os.File) bool { return true }
