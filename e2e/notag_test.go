//go:build !goolm

package e2e

import (
	"os"
	"testing"
)

func TestNeedsTag(t *testing.T) {
	if os.Getenv("CI") != "" {
		t.Fatal("The end-to-end tests need -tags goolm.")
	}
	t.Skip("The end-to-end tests need their encrypting clients: run make test, or go test -tags goolm.")
}
