package main

import (
	"fmt"
	"runtime"

	"freshen/internal/app"
)

type versionCmd struct{}

// Run says the version of freshen, and what it was built with and for.
func (*versionCmd) Run(to console) error {
	_, err := fmt.Fprintf(to.out, "freshen %s (%s, %s/%s)\n", app.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
