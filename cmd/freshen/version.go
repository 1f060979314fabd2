package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// linkedVersion is set by the build: -ldflags "-X main.linkedVersion=v1.2.3".
var linkedVersion string

type versionCmd struct{}

// Run says the version of freshen, and what it was built with and for.
func (*versionCmd) Run(to console) error {
	_, err := fmt.Fprintf(to.out, "freshen %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version is what the build was told, or else what the Go toolchain knows of the module, or else "unknown".
func version() string {
	if linkedVersion != "" {
		return linkedVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
