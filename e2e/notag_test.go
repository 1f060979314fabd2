//go:build !goolm

package e2e

import "testing"

func TestNeedsTag(t *testing.T) {
	t.Skip("The end-to-end tests need their encrypting clients: run make test, or go test -tags goolm.")
}
