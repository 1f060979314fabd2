package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// StartPostgres starts a server for one test, for stories that spoil it. Where the machine has no Postgres the test is
// skipped, or fails if CI is set.
func StartPostgres(tb testing.TB, options Options) *Postgres {
	tb.Helper()
	p, err := Start(context.Background(), options)
	need(tb, err)
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

func need(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case errors.Is(err, ErrMissing) && os.Getenv("CI") == "":
		tb.Skip(err)
	default:
		tb.Fatal(err)
	}
}

// shared is the server that all tests of a binary share.
var shared struct {
	hasMain bool
	once    sync.Once
	server  *Postgres
	err     error
}

// Shared is a server for all tests of the binary, started when it is first asked for. Each takes a database of its own
// with [Postgres.NewDatabase]. The package's TestMain must call [Main].
func Shared(tb testing.TB) *Postgres {
	tb.Helper()
	if !shared.hasMain {
		tb.Fatal("storetest.Shared: TestMain does not call storetest.Main, which stops the server")
	}
	shared.once.Do(func() { shared.server, shared.err = Start(context.Background(), Options{}) })
	need(tb, shared.err)
	return shared.server
}

// Main runs the tests of a binary, stops the shared server, and fails if a goroutine is left over.
func Main(m *testing.M) {
	shared.hasMain = true
	goleak.VerifyTestMain(runner(func() int {
		code := m.Run()
		if shared.server == nil {
			return code
		}
		if err := shared.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
		return code
	}))
}

type runner func() int

func (r runner) Run() int { return r() }

// NewDatabase makes an empty database, which goes with the test.
func (p *Postgres) NewDatabase(tb testing.TB) *url.URL {
	tb.Helper()
	name, err := p.CreateDatabase(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if p.running == nil {
			return // gone with its data
		}
		if err := p.DropDatabase(context.Background(), name); err != nil {
			tb.Error(err)
		}
	})
	return p.URL(name)
}
