package main

import (
	"testing"
	"time"
)

// Servers that hang must not keep those that are back from being asked, nor cost more with every hour: people would wait
// for hours for the sake of servers that they have nothing to do with.
func TestDeadServersCostTheOthersNothing(t *testing.T) {
	const servers, debtsEach = 200, 10
	d := simulateDay(t, servers, debtsEach)
	least, most := tries()
	dead := 0
	for i, r := range d.remotes {
		switch {
		case r.dead:
			dead++
			if r.fetches < least || r.fetches > most {
				t.Errorf("%s, which stays dead, was asked %d times in a day, want %d to %d", remoteName(i), r.fetches, least, most)
			}
		case r.paid != debtsEach:
			t.Errorf("%s is back, and %d of its %d debts are paid", remoteName(i), r.paid, debtsEach)
		}
	}
	if want := dead * debtsEach; d.owed != want {
		t.Errorf("%d debts are left, want the %d of the servers that stay dead", d.owed, want)
	}
	late, paid := d.latest()
	t.Logf("late %v %v, paid %v %v, most %d, heap %d, took %v, CPU %v, written %d", quantile(late, 0.5), quantile(late, 1), quantile(paid, 0.5), quantile(paid, 1), d.most, d.heap, d.real, d.cpu, d.written)
	if worst := quantile(late, 1); worst > 20*time.Second {
		t.Errorf("a server that is back was asked %v after it was due", worst)
	}
	if worst := quantile(paid, 1); worst > 5*time.Second {
		t.Errorf("what was owed to a server that is back was paid within %v", worst)
	}
	if first, last := d.heap[0], d.heap[len(d.heap)-1]; last > first+first/2+(4<<20) {
		t.Errorf("memory in use went from %d to %d bytes within the day: %d", first, last, d.heap)
	}
}
