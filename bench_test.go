package freshen_test

import (
	"fmt"
	"testing"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// BenchmarkDeviceList measures what is done with a list of real size whose signatures all hold; the check of the
// signatures, with two of them a device, is done beside the answer and stops at its bounds.
func BenchmarkDeviceList(b *testing.B) {
	for _, devices := range []int{5, 500} {
		body := fedtest.NewPerson(bob).List(devices, 1)
		list, err := freshen.ParseDeviceList(body, bob)
		if err != nil {
			b.Fatal(err)
		}
		checked := devices
		if odd := list.Oddities(); len(odd) > 0 {
			checked -= odd[freshen.OddUnchecked]
		}
		for _, part := range []struct {
			name string
			of   int
			do   func()
		}{
			{"parse", devices, func() { _, _ = freshen.ParseDeviceList(body, bob) }},
			{"hash", devices, func() { list.Hash() }},
			{"encode", devices, func() { list.Encode() }},
			{"signatures", checked, func() { list.Oddities() }},
		} {
			b.Run(fmt.Sprintf("%s/devices=%d", part.name, devices), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					part.do()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(part.of), "ns/device")
			})
		}
	}
}
