package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"freshen/internal/testbed/testbedtest"
)

// promtool is of Debian's package prometheus.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testbedtest.Program(t, "promtool", "prometheus"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Prometheus must take the metrics, and they must name nobody: they go to more people than the log does.
func TestMetrics(t *testing.T) {
	t.Parallel()
	freshen := start(t, command(t, configure(t, homeserverOf(t), "freshen.db"), "serve"))
	freshen.refresh(t, "bob", http.StatusBadGateway, "freshen tries again by itself")
	freshen.do(t, http.MethodPost, freshen.url+"/_matrix/client/v3/user/@carol:example.org/devices/refresh")
	if status, body := freshen.do(t, http.MethodGet, freshen.url+"/metrics"); status != http.StatusOK || body != "{}" {
		t.Errorf("/metrics on the public listener is not the homeserver's: %d %s", status, body)
	}
	status, scraped := freshen.do(t, http.MethodGet, freshen.admin+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics: %d %s", status, scraped)
	}
	for _, line := range []string{
		`freshen_refreshes_total{outcome="failed",reason="connect"} 1`,
		`freshen_refreshes_total{outcome="local",reason=""} 1`,
		`freshen_federation_fetch_seconds_count{outcome="connect"} 1`,
		`freshen_federation_fetch_seconds_count{outcome="ok"} 0`,
		`freshen_debts 1`, `freshen_destinations_backing_off 1`, `freshen_database_up 1`, `freshen_polls 0`,
		`freshen_debts_ended_total{ending="given_up"} 0`, `freshen_announcements_total 1`,
		`freshen_edited_answers_total{route="sync"} 0`, `freshen_wake_seconds_count 0`,
	} {
		if !strings.Contains(scraped, "\n"+line+"\n") {
			t.Errorf("%s is missing", line)
		}
	}
	if !regexp.MustCompile(`\nfreshen_build_info\{goversion="go[^"]+",version="v0\.0\.0-test"\} 1\n`).MatchString(scraped) ||
		!regexp.MustCompile(`\nfreshen_database_commit_seconds_count [1-9]`).MatchString(scraped) ||
		!regexp.MustCompile(`\nfreshen_oldest_debt_age_seconds [0-9.e-]+\n`).MatchString(scraped) {
		t.Errorf("a metric is missing:\n%s", scraped)
	}
	for _, name := range []string{"bob", "alice", "carol", "example.org", "127.0.0.1", "@"} {
		if strings.Contains(scraped, name) {
			t.Errorf("the metrics name %s", name)
		}
	}
	promtool(t, scraped, "check", "metrics")

	// What the dashboard and the alerts ask for must be there: else they are silent for ever.
	served := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^([a-z_]+)[ {]`).FindAllStringSubmatch(scraped, -1) {
		served[match[1]] = true
	}
	for _, file := range []string{"../../deploy/prometheus/freshen.rules.yml", "../../deploy/grafana/freshen.json"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		asked := regexp.MustCompile(`\b(freshen_[a-z_]+|process_[a-z_]+)\b`).FindAllString(string(text), -1)
		if len(asked) < 8 {
			t.Errorf("%s asks for %v only", file, asked)
		}
		for _, name := range asked {
			if !served[name] {
				t.Errorf("%s asks for %s, which freshen does not serve", file, name)
			}
		}
	}

	// The documentation explains each, and no other.
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, match := range regexp.MustCompile("`(freshen_[a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
		explained[match[1]] = true
	}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (freshen_[a-z_]+) `).FindAllStringSubmatch(scraped, -1) {
		if !explained[match[1]] {
			t.Errorf("docs/operations.md does not explain %s", match[1])
		}
		delete(explained, match[1])
	}
	for name := range explained {
		t.Errorf("docs/operations.md explains %s, which freshen does not serve", name)
	}
}

func TestAlertRulesAndDashboard(t *testing.T) {
	t.Parallel()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../../deploy/grafana/freshen.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	// promtool reads the dashboard's queries as rules.
	var all []map[string]string
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 {
			t.Errorf("the panel %q shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*").Replace(target.Expr)
			all = append(all, map[string]string{"record": fmt.Sprintf("panel:%d", len(all)), "expr": expr})
		}
	}
	file, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": all}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "panels.yml", string(file))
	promtool(t, "", "check", "rules", "../../deploy/prometheus/freshen.rules.yml", filepath.Join(dir, "panels.yml"))
	promtool(t, "", "test", "rules", "../../deploy/prometheus/freshen.rules.test.yml")
}

// Profiles show what passes through; who wants them says so.
func TestProfilesAreOptional(t *testing.T) {
	t.Parallel()
	dir := configure(t, homeserverOf(t), "freshen.db")
	freshen := start(t, command(t, dir, "serve"))
	if status, _ := freshen.do(t, http.MethodGet, freshen.admin+"/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("without admin.pprof: %d", status)
	}
	other := configure(t, homeserverOf(t), "freshen.db")
	edit(t, filepath.Join(other, "freshen.yaml"), `"127.0.0.1:0"}`, `"127.0.0.1:0", pprof: true}`)
	freshen = start(t, command(t, other, "serve"))
	if status, body := freshen.do(t, http.MethodGet, freshen.admin+"/debug/pprof/goroutine?debug=1"); status != http.StatusOK || !strings.Contains(body, "goroutine profile") {
		t.Errorf("with admin.pprof: %d", status)
	}
	if status, body := freshen.do(t, http.MethodGet, freshen.url+"/debug/pprof/"); status != http.StatusOK || body != "{}" {
		t.Errorf("on the public listener: %d %s", status, body)
	}
}
