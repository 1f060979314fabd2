package main

import (
	"log"
	"log/slog"
	"strings"
	"testing"

	"freshen/internal/config"
)

// TestStandardLoggerIsTamed: net/http writes a line, with up to 4 KiB from the other end, for each thing that a server
// sends unasked; an administrator who did not ask for them gets none.
func TestStandardLoggerIsTamed(t *testing.T) {
	defer log.SetOutput(log.Writer())
	defer log.SetFlags(log.Flags())
	for level, lines := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 1} {
		var written strings.Builder
		tameStandardLogger(newLogger(&written, config.LogJSON, level))
		log.Default().Printf("Unsolicited response received on idle HTTP channel starting with %q", "evil\n{}\x1b[2J")
		if got := strings.Count(written.String(), "\n"); got != lines || strings.Contains(written.String(), "\x1b") {
			t.Errorf("at level %s it wrote %q, want %d lines", level, written.String(), lines)
		}
	}
}
