// Command prepare installs Synapse for the tests and the demo, where its progress shows and no test's deadline runs. It
// exits with 0 also where a laptop lacks what that takes, since the tests that need it are then left out; with CI set it
// exits with 1.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"freshen/internal/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	_, err := testbed.BuildSynapse(ctx, os.Stdout)
	interrupted := ctx.Err() != nil
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, err)
	if interrupted || os.Getenv("CI") != "" {
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "Tests that need Synapse are left out (with CI set, they fail).")
}
