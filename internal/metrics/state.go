package metrics

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"freshen/internal/overlay"
	"freshen/internal/retry"
	"freshen/internal/store"
)

// backlogWithin bounds the question of what is owed, which reads all debts.
const backlogWithin = 5 * time.Second

// State is what is read when it is asked for.
type State struct {
	// Backlog, Ended and Announced are ok once the database was there.
	Backlog   func(context.Context) (store.Backlog, error)
	Ended     func() (ended map[retry.Ending]int64, ok bool)
	Announced func() (n int64, ok bool)
	Overlay   func() overlay.Stats
	Now       func() time.Time
	Log       *slog.Logger
}

// Watch has the state served as well. It is called once.
func (m *Metrics) Watch(s State) { m.registry.MustRegister(&collector{s}) }

type collector struct{ state State }

var (
	databaseUp = desc("freshen_database_up", "Whether the database answers: 1 or 0.")
	debts      = desc("freshen_debts", "Device lists that are owed: somebody was told that they will be fetched.")
	oldest     = desc("freshen_oldest_debt_age_seconds", "How long ago the debt was asked for, for the last time, that has waited longest since; 0 where nothing is owed.")
	backingOff = desc("freshen_destinations_backing_off", "Servers that failed last and are left alone for a while.")
	behind     = desc("freshen_undelivered_lists", "Device lists that the homeserver was to announce itself, and is not known to have announced.")
	ended      = desc("freshen_debts_ended_total", "Debts that have ended, by how: paid, given_up, denied, nobody_shares, dropped.", "ending")
	announced  = desc("freshen_announcements_total", "Announcements of a changed device list that this instance has made or heard of.")
	polls      = desc("freshen_polls", "Requests for /sync and sliding sync that are being answered or wait.")
	looked     = desc("freshen_looked_through_answers_total", "Answers of the homeserver that were looked through, for something to be merged in or watched for.", "route")
	edited     = desc("freshen_edited_answers_total", "Answers of the homeserver into which something was merged.", "route")
	bytes      = desc("freshen_looked_through_bytes_total", "Bytes of the answers that were looked through.", "route")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements [prometheus.Collector].
func (*collector) Describe(into chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{databaseUp, debts, oldest, backingOff, behind, ended, announced, polls, looked, edited, bytes} {
		into <- d
	}
}

// Collect implements [prometheus.Collector]. What stands in a database that is away is absent, not 0.
func (c *collector) Collect(into chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64) {
		into <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	counter := func(d *prometheus.Desc, value int64, labels ...string) {
		into <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), backlogWithin)
	defer cancel()
	backlog, err := c.state.Backlog(ctx)
	if err == nil {
		gauge(databaseUp, 1)
		gauge(debts, float64(backlog.Debts))
		gauge(backingOff, float64(backlog.BackingOff))
		gauge(behind, float64(backlog.Undelivered))
		age := 0.0
		if !backlog.Oldest.IsZero() {
			age = max(0, c.state.Now().Sub(backlog.Oldest).Seconds())
		}
		gauge(oldest, age)
	} else {
		c.state.Log.Warn("metrics lack what stands in the database", "err", err)
		gauge(databaseUp, 0)
	}
	if all, ok := c.state.Ended(); ok {
		for how, n := range all {
			counter(ended, n, string(how))
		}
	}
	if n, ok := c.state.Announced(); ok {
		counter(announced, n)
	}
	stats := c.state.Overlay()
	gauge(polls, float64(stats.Polls))
	for route, of := range map[string]overlay.RouteStats{"sync": stats.Sync, "keys_query": stats.KeysQuery} {
		counter(looked, of.Looked, route)
		counter(edited, of.Edited, route)
		counter(bytes, of.Bytes, route)
	}
}
