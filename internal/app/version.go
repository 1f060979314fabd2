package app

import "runtime/debug"

// linkedVersion is set by the build: -ldflags "-X freshen/internal/app.linkedVersion=v1.2.3".
var linkedVersion string

// Version is what the build was told, or else what the Go toolchain knows of the module, or else "unknown". Remote
// servers see it in our User-Agent.
func Version() string {
	if linkedVersion != "" {
		return linkedVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
