package store_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

// What is done for every retry and every refresh must be found through an index: a table that is read from end to end
// makes each of them as slow as everything that is owed to dead servers.
func TestWhatIsDoneForEachRetryReadsNoWholeTable(t *testing.T) {
	each(t, testWhatIsDoneForEachRetryReadsNoWholeTable)
}

func testWhatIsDoneForEachRetryReadsNoWholeTable(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	fill(t, s)
	for name, query := range s.Hot() {
		plan, err := s.Explain(context.Background(), query.SQL, query.Args...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s\n\t%s", name, strings.Join(plan, "\n\t"))
		for _, line := range plan {
			if wholeTable.MatchString(line) {
				t.Errorf("%s reads a whole table: %s", name, line)
			}
		}
	}
}

// wholeTable is how SQLite ("SCAN debts", but not "SCAN debts USING INDEX" or of a constant row) and Postgres say it.
var wholeTable = regexp.MustCompile(`^SCAN (debts|destinations|requesters|kept_lists|announcements)( USING COVERING INDEX \S+)?$|Seq Scan on (debts|destinations|requesters|kept_lists|announcements)`)

// fill has as much be owed as makes a table worth an index, most of it to few servers, and some servers fine.
func fill(t *testing.T, s *store.Store) {
	t.Helper()
	jobs := make(chan int)
	errs := make(chan error, 64)
	for range 64 {
		go func() {
			var failed error
			for i := range jobs {
				target := id.UserID(fmt.Sprintf("@u%d:s%d.org", i, i%5000))
				_, err := s.RecordFailure(context.Background(), store.Failed{
					Target: target, Destination: freshen.Destination(target), At: start, Requesters: []id.UserID{"@alice:a.org"},
				}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
					if i%5000 > 1000 {
						dest.Failures, dest.RetryAt = 1, start.Add(time.Duration(i%5000)*time.Second)
					}
					return dest, debt, true
				})
				failed = errors.Join(failed, err)
				if i%7 == 0 {
					kept := id.UserID(fmt.Sprintf("@k%d:kept.org", i))
					list, err := freshen.ParseDeviceList([]byte(`{"user_id":"`+string(kept)+`","stream_id":1,"devices":[]}`), kept)
					if err == nil {
						_, err = s.Keep(context.Background(), store.Fetched{List: list, At: start, Requesters: []id.UserID{"@alice:a.org"}})
					}
					failed = errors.Join(failed, err)
				}
			}
			errs <- failed
		}()
	}
	for i := range 10_000 {
		jobs <- i
	}
	close(jobs)
	for range 64 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Analyze(context.Background()); err != nil {
		t.Fatal(err)
	}
}
