//go:build goolm

package main

import (
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"freshen/internal/testbed"
	"freshen/internal/testbed/scenario"
)

// screen writes the demo for a person. With color the output is a terminal's: a line is shown while it happens.
type screen struct {
	out   io.Writer
	color bool
}

const (
	green = "\x1b[32m"
	red   = "\x1b[31m"
	faint = "\x1b[2m"
	bold  = "\x1b[1m"
	plain = "\x1b[0m"
	// restart returns to the beginning of the line and empties it.
	restart = "\r\x1b[K"
)

func (s *screen) paint(style, text string) string {
	if !s.color {
		return text
	}
	return style + text + plain
}

func (s *screen) header() {
	fmt.Fprintln(s.out, s.paint(bold, "freshen: a user refreshes somebody's stale device list (MSC2638), between two real Matrix homeservers."))
	fmt.Fprintln(s.out, "Alice's homeserver A has freshen before it; Bob's, B, knows nothing of it. What the network loses makes Alice's list of")
	fmt.Fprintln(s.out, "Bob's devices go stale; one request mends it, and when B is down freshen remembers and mends it later. (✓ what, HTTP status, time)")
	fmt.Fprintln(s.out)
}

func (s *screen) running(world *testbed.World, took time.Duration) {
	fmt.Fprintf(s.out, "Running after %s: %s A is %s, %s B is %s, freshen listens at %s.\n", short(took),
		world.A.Kind, world.A.ServerName, world.B.Kind, world.B.ServerName, world.Freshen.URL)
	fmt.Fprintln(s.out, s.paint(faint, fmt.Sprintf(
		"For the demo freshen tries again after %s (usually 30 s), and its caches last %s and %s (usually 30 s and 10 s).",
		testbed.FirstRetry, testbed.SuccessCache, testbed.FailureCache)))
}

// Begin shows a line that happens now.
func (s *screen) Begin(line scenario.Line) {
	if s.color {
		fmt.Fprintf(s.out, "%s  %d  %s", faint+"…"+plain, line.Step, line.Text)
	}
}

// End replaces it by what came of it.
func (s *screen) End(line scenario.Line) {
	if s.color {
		fmt.Fprint(s.out, restart)
	}
	mark, status := s.paint(green, "✓"), "   "
	if line.Err != nil {
		mark = s.paint(red, "✗")
	}
	if line.Status != 0 {
		status = strconv.Itoa(line.Status)
	}
	fmt.Fprintf(s.out, "%s  %d  %s %7s  %s", mark, line.Step, s.paint(bold, status), short(line.Took), line.Text)
	if line.Detail != "" {
		fmt.Fprint(s.out, s.paint(faint, "  "+line.Detail))
	}
	fmt.Fprintln(s.out)
}

func (s *screen) done(took time.Duration) {
	fmt.Fprintf(s.out, "\n%s Every step was as it should be, in %s.\n", s.paint(green, "✓"), short(took))
}

func (s *screen) failed(err error) {
	fmt.Fprintf(s.out, "\n%s %v\n", s.paint(red, "✗"), err)
}

// kept says what runs and how to play with it.
func (s *screen) kept(world *testbed.World, cast *scenario.Cast) {
	bob := url.PathEscape(cast.Laptop.UserID().String())
	section := func(title string) { fmt.Fprintf(s.out, "\n%s\n", s.paint(bold, title)) }
	section("Everything is left running")
	fmt.Fprintf(s.out, "  freshen       %s   (before A; its own health: %s)\n", world.Freshen.URL, world.Freshen.AdminURL)
	for _, h := range []*testbed.Homeserver{world.A, world.B} {
		fmt.Fprintf(s.out, "  %-13s %s   server name %s\n", string(h.Kind)+" "+h.Name, h.URL, h.ServerName)
	}
	fmt.Fprintf(s.out, "  Data, logs    %s\n", world.Dir)
	section("Users (password of both: " + scenario.Password + ")")
	fmt.Fprintf(s.out, "  %s\n    token at A and freshen: %s\n", cast.Alice.UserID(), cast.Alice.Token())
	fmt.Fprintf(s.out, "  %s\n    token at B (laptop):    %s\n", cast.Laptop.UserID(), cast.Laptop.Token())
	section("Things to do (the link from B to A still loses device-list updates)")
	for _, example := range s.examples(world, cast, bob) {
		fmt.Fprintf(s.out, "  %s\n    %s\n", s.paint(faint, "# "+example[0]), strings.ReplaceAll(example[1], "\n", "\n    "))
	}
	section("Ctrl-C stops everything and removes its data.")
}

func (s *screen) examples(world *testbed.World, cast *scenario.Cast, bob string) [][2]string {
	alice := "-H 'Authorization: Bearer " + cast.Alice.Token() + "'"
	return [][2]string{
		{"Where Alice's /sync stands", "SINCE=$(curl -s " + alice + " '" + world.Freshen.URL + "/_matrix/client/v3/sync' | sed -n 's/.*\"next_batch\":\"\\([^\"]*\\)\".*/\\1/p')"},
		{"A /sync that waits, in another terminal with the same SINCE", "curl -s " + alice + " \"" + world.Freshen.URL + "/_matrix/client/v3/sync?timeout=30000&since=$SINCE\""},
		{"Bob renames his laptop, and A never hears of it", "curl -s -X PUT -H 'Authorization: Bearer " + cast.Laptop.Token() + "' '" + world.B.URL +
			"/_matrix/client/v3/devices/" + url.PathEscape(cast.Laptop.DeviceID().String()) + "' -d '{\"display_name\":\"Renamed laptop\"}'"},
		{"Alice refreshes Bob's device list", "curl -i -X POST " + alice + " '" + world.Freshen.URL + "/_matrix/client/v3/user/" + bob + "/devices/refresh'"},
		{"What she would encrypt for", "curl -s -X POST " + alice + " '" + world.Freshen.URL + "/_matrix/client/v3/keys/query' -d '{\"device_keys\":{\"" + cast.Laptop.UserID().String() + "\":[]}}'"},
		{"What freshen does", "tail -f " + world.Freshen.LogFile},
	}
}

func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}
