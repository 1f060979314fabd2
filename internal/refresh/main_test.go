package refresh_test

import (
	"flag"
	"testing"

	"freshen/internal/store/storetest"
)

// TestMain has the model try the same sequences each time, so that a run says something about the change it is for. More
// are tried by -rapid.seed=0 (any) -rapid.checks=500.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.seed": "1", "rapid.checks": "15"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	storetest.Main(m) // parses the command line, which goes before
}
