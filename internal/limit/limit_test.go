package limit_test

import (
	"testing"
	"time"

	"freshen/internal/limit"
)

// A limit that lets more through would have remote servers turn against ours; one that lets less through, or does not
// recover, would refuse people for nothing.
func TestBurstThenRate(t *testing.T) {
	l := limit.New(limit.Rate{Every: 6 * time.Second, Burst: 3})
	now := time.Unix(1_700_000_000, 0)
	for i := range 3 {
		if wait := l.Take("a", now); wait != 0 {
			t.Fatalf("request %d of the burst must wait %s", i+1, wait)
		}
	}
	for range 2 { // asking costs nothing
		if wait := l.Take("a", now); wait != 6*time.Second {
			t.Fatalf("past the burst the wait is %s, want 6s", wait)
		}
	}
	if wait := l.Take("b", now); wait != 0 {
		t.Errorf("another key must wait %s", wait)
	}
	now = now.Add(6 * time.Second)
	if wait := l.Take("a", now); wait != 0 {
		t.Errorf("after one interval the wait is %s", wait)
	}
	if wait := l.Take("a", now); wait != 6*time.Second {
		t.Errorf("one interval gave back more than one request: wait %s", wait)
	}
	now = now.Add(time.Hour)
	for i := range 3 {
		if wait := l.Take("a", now); wait != 0 {
			t.Errorf("after an hour, request %d of the burst must wait %s", i+1, wait)
		}
	}
	if wait := l.Take("a", now); wait == 0 {
		t.Error("an hour of rest gave more than a whole burst")
	}
}

// Strangers choose the keys: a flood of them must not fill the memory.
func TestForgets(t *testing.T) {
	l := limit.New(limit.Rate{Every: time.Second, Burst: 1})
	now := time.Unix(1_700_000_000, 0)
	for i := range 250_000 {
		l.Take(string(rune(i+1)), now)
	}
	if n := l.Keys(); n > 100_000 {
		t.Errorf("%d keys are remembered", n)
	}
}

// A debt collector with ten thousand calls to make must not keep a person from making theirs.
func TestWhatNobodyWaitsForLeavesHalfOfTheBurst(t *testing.T) {
	l := limit.New(limit.Rate{Every: time.Second, Burst: 20})
	now := time.Unix(1_700_000_000, 0)
	spare := 0
	for l.TakeSpare("a", now) == 0 {
		spare++
	}
	people := 0
	for l.Take("a", now) == 0 {
		people++
	}
	if spare != 10 || people != 10 {
		t.Errorf("%d for what nobody waits for and then %d for people, want 10 and 10", spare, people)
	}
	if wait := l.TakeSpare("a", now); wait != 11*time.Second {
		t.Errorf("what nobody waits for comes back in %s, want 11s", wait)
	}
	now = now.Add(11 * time.Second)
	if l.TakeSpare("a", now) != 0 || l.TakeSpare("a", now) != time.Second {
		t.Error("it does not go on at the configured rate")
	}
	one := limit.New(limit.Rate{Every: time.Second, Burst: 1})
	if one.TakeSpare("a", now) != 0 {
		t.Error("a burst of one leaves nothing at all for what nobody waits for")
	}
}

// A clock that was wrong by a day, and is set right, must not refuse everybody for a day.
func TestAClockThatIsSetBack(t *testing.T) {
	l := limit.New(limit.Rate{Every: 6 * time.Second, Burst: 3})
	now := time.Unix(1_700_000_000, 0)
	for range 3 {
		l.Take("a", now)
	}
	now = now.Add(-24 * time.Hour)
	for range 3 {
		if wait := l.Take("a", now); wait != 0 {
			t.Errorf("a day before, the wait is %s", wait)
		}
	}
	if wait := l.Take("a", now); wait != 6*time.Second {
		t.Errorf("past the burst the wait is %s, want 6s", wait)
	}
}
