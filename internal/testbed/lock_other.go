//go:build !unix

package testbed

import "context"

// lockFile does nothing where there is no flock: two builds at once cost time, the result is the same.
func lockFile(context.Context, string, func()) (func(), error) {
	return func() {}, nil
}
