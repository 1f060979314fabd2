//go:build !goolm

package e2e

import (
	"errors"
	"testing"

	"freshen/internal/testbed/testbedtest"
)

func TestNeedsTag(t *testing.T) {
	testbedtest.Require(t, "encrypting clients", errors.New("run make test, or go test -tags goolm"))
}
