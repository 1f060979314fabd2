// Package metrics is what freshen tells Prometheus about itself, in a registry of its own. No label holds a name of a
// user, device or server: strangers could make as many of those as they like, and metrics are read by more people than
// the log.
package metrics

import (
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"freshen"
)

// Metrics counts and times. Its methods are safe for concurrent use and never block.
type Metrics struct {
	registry  *prometheus.Registry
	refreshes *prometheus.CounterVec
	fetches   *prometheus.HistogramVec
	wakes     prometheus.Histogram
	commits   prometheus.Histogram
	changes   prometheus.Counter
}

// New returns the metrics of a freshen of that version.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "freshen_refreshes_total",
			Help: "Requests to refresh a device list, by what came of them and, where they failed, why.",
		}, []string{"outcome", "reason"}),
		fetches: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "freshen_federation_fetch_seconds",
			Help:    "Fetches of a device list from another server, retries included, by outcome: ok, or how it failed.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"outcome"}),
		wakes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "freshen_wake_seconds",
			Help:    "From waking a poll that waits, because something is to be told, to the beginning of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "freshen_database_commit_seconds",
			Help:    "One commit to the database, of one change or many.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "freshen_database_changes_total",
			Help: "Changes that were put into commits, whether those succeeded or not.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "freshen_build_info",
		Help:        "Always 1; the labels say which freshen this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.refreshes, m.fetches, m.wakes, m.commits, m.changes, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// What has not happened yet is 0 and not absent, so that the first time shows as an increase.
	for _, outcome := range []string{"fetched_changed", "fetched_unchanged", "fetched_just_before", "local"} {
		m.refreshes.WithLabelValues(outcome, "")
	}
	m.fetches.WithLabelValues("ok")
	for _, reason := range []freshen.Reason{
		freshen.ReasonDNS, freshen.ReasonConnect, freshen.ReasonTLS, freshen.ReasonTimeout, freshen.ReasonHTTP, freshen.ReasonBadResponse,
	} {
		m.refreshes.WithLabelValues("failed", string(reason))
		m.fetches.WithLabelValues(string(reason))
	}
	m.refreshes.WithLabelValues("failed", string(freshen.CodeDatabaseAway))
	m.refreshes.WithLabelValues("refused", string(freshen.CodeLimited))
	return m
}

// Handler serves them at any path.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4, // each counts what is owed
	})
}

// Refreshed counts a request. how is what came of it in a few words, of a fixed set; err what the client was told.
func (m *Metrics) Refreshed(how string, err error) {
	reason := ""
	if told, ok := errors.AsType[*freshen.Error](err); ok {
		reason = string(told.Code)
		if told.Failure != nil {
			reason = string(told.Failure.Reason)
		}
	}
	m.refreshes.WithLabelValues(label.Replace(how), reason).Inc()
}

var label = strings.NewReplacer(", ", "_", " ", "_")

// Fetched times a fetch from another server.
func (m *Metrics) Fetched(took time.Duration, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "other"
	}
	if failure, ok := errors.AsType[*freshen.Failure](err); ok {
		outcome = string(failure.Reason)
	}
	m.fetches.WithLabelValues(outcome).Observe(took.Seconds())
}

// Woken times the answer of a poll that was woken.
func (m *Metrics) Woken(took time.Duration) { m.wakes.Observe(max(took, 0).Seconds()) }

// Committed times a commit of so many changes.
func (m *Metrics) Committed(took time.Duration, changes int) {
	m.commits.Observe(took.Seconds())
	m.changes.Add(float64(changes))
}
