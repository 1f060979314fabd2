package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What the dashboard shows of clients must be what they had: a poll that was woken, an answer that was edited, and none
// that is held once all are answered.
func TestMetricsOfPolls(t *testing.T) {
	w := running(t)
	call, replies := w.waiting(aliceToken, "i0")
	w.scrapes("freshen_polls 1")
	w.refreshed(aliceToken, alice)
	await(t, call.gone, "waking the device")
	w.next().ok(`{"next_batch":"i1"}`)
	answer := await(t, replies, "the woken answer")
	w.scrapes("freshen_wake_seconds_count 1", "freshen_announcements_total 1", "freshen_polls 0",
		`freshen_edited_answers_total{route="sync"} 1`, fmt.Sprintf(`freshen_looked_through_bytes_total{route="sync"} %d`, len(answer.body)))
}

// scrapes waits until the metrics have these lines.
func (w *world) scrapes(lines ...string) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		status, body := w.admin("/metrics")
		missing := ""
		for _, line := range lines {
			if !strings.Contains(body, "\n"+line+"\n") {
				missing = line
			}
		}
		if status == http.StatusOK && missing == "" {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("/metrics: %d, and %q does not come:\n%s", status, missing, body)
		}
	}
}
