//go:build goolm

package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"freshen/internal/testbed/scenario"
)

// A failure means that a slip of the keyboard starts two homeservers, or that scripts cannot tell it from a failed demo.
func TestWrongUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
		says string
	}{
		{[]string{"--help"}, 0, "-keep"},
		{[]string{"--nonsense"}, 2, "nonsense"},
		{[]string{"keep"}, 2, "takes no arguments"},
		{[]string{"--homeserver", "conduit"}, 2, "dendrite or synapse"},
	} {
		var out, errs strings.Builder
		if got := run(t.Context(), c.args, &out, &errs, false); got != c.want || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%v exits with %d and says %q; want %d and %q", c.args, got, errs.String(), c.want, c.says)
		}
		if out.Len() != 0 {
			t.Errorf("%v writes %q", c.args, out.String())
		}
	}
}

// A failure means that logs of a CI run are full of escape codes, or that a failed step looks like one that went well.
func TestLines(t *testing.T) {
	good := scenario.Line{Step: 3, Text: "She asks", Status: 202, Took: 41 * time.Millisecond, Detail: "{}"}
	bad := scenario.Line{Step: 5, Text: "B comes back", Took: 3 * time.Second, Err: errors.New("it did not")}
	var plainOut, colorOut strings.Builder
	for _, s := range []*screen{{out: &plainOut}, {out: &colorOut, color: true}} {
		for _, line := range []scenario.Line{good, bad} {
			s.Begin(scenario.Line{Step: line.Step, Text: line.Text})
			s.End(line)
		}
	}
	want := "✓  3  202    41ms  She asks  {}\n✗  5           3s  B comes back\n"
	if plainOut.String() != want {
		t.Errorf("without colour it reads\n%swant\n%s", plainOut.String(), want)
	}
	if !strings.Contains(colorOut.String(), green+"✓") || !strings.Contains(colorOut.String(), red+"✗") {
		t.Errorf("with colour it reads %q", colorOut.String())
	}
}
