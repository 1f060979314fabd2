package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one line of the table. direct is what freshen is held against. Empty cells are printed as dashes.
type row struct {
	name, direct, freshen, ratio string
	target                       string
	met                          bool // of the target, if there is one
}

type table struct {
	out  io.Writer
	rows []row
}

func newTable(out io.Writer) *table { return &table{out: out} }

func (t *table) add(r row) { t.rows = append(t.rows, r) }

// machine says what the numbers were made on.
func (t *table) machine() error {
	_, err := fmt.Fprintf(t.out, "%s, %s/%s, %d cores (%s), load before %s\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpuModel(), loadAverage())
	return err
}

func (t *table) print() error {
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t%s\t%s\t%s\t%s\t\n", "reference", "freshen", "ratio", "target")
	for _, r := range t.rows {
		verdict := ""
		if r.target != "" {
			verdict = "missed"
			if r.met {
				verdict = "ok"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, dash(r.direct), dash(r.freshen), dash(r.ratio), dash(r.target), verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(t.out, "load after %s\n", loadAverage())
	return err
}

func dash(cell string) string {
	if cell == "" {
		return "-"
	}
	return cell
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // only Linux has it
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func loadAverage() string {
	load, _ := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(load)); len(fields) > 0 {
		return fields[0]
	}
	return "unknown"
}

// quantile is the value that a share q of all is not above; 0 of nothing. It sorts in place.
func quantile[T int64 | float64 | time.Duration](of []T, q float64) T {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return of[min(int(q*float64(len(of))), len(of)-1)]
}

func median[T int64 | float64 | time.Duration](of []T) T { return quantile(of, 0.5) }

// ratios divides what was measured in the same round.
func ratios(of, by []float64) []float64 {
	all := make([]float64, min(len(of), len(by)))
	for i := range all {
		all[i] = of[i] / by[i]
	}
	return all
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }

func us(d time.Duration) string { return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond)) }

func times(ratio float64) string { return fmt.Sprintf("%.2f×", ratio) }

// signed shows a difference that may be below zero in a noisy run.
func signed(d time.Duration) string {
	return fmt.Sprintf("%+.2f ms", float64(d)/float64(time.Millisecond))
}
