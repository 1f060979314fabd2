package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"freshen/internal/config"
	"freshen/internal/listen"
	"freshen/internal/store"
)

const (
	// filesAtLeast is what freshen needs for retries and itself, besides two for each poll.
	filesAtLeast = 400
	// pollsAtLeast is for how many polls there should be room on any site.
	pollsAtLeast = 500
	// startedWithin is how exactly the system knows when a program was started: it counts from when it itself was, by a clock that was
	// set since.
	startedWithin = 30 * time.Second
	// FilesAtLeast is how many files freshen should be allowed to open on any site.
	FilesAtLeast = 2*pollsAtLeast + filesAtLeast
	// MoreFiles says how to have more.
	MoreFiles = "Raise the limit: LimitNOFILE=65536 in the systemd unit, or ulimit -n 65536 before it starts."
)

// freshen asks the one that runs how it is.
func (d *doctor) freshen(ctx context.Context) {
	if d.admin == "" {
		d.say("freshen", Warning, fmt.Sprintf("freshen was not asked: admin.listen is %s, and %v.", d.Config.Config.Admin.Listen, listen.ErrUnknown),
			"Set "+config.EnvAdminListen+" to where that socket listens, and run the doctor again.")
		return
	}
	metrics, err := d.ask(ctx, question{method: http.MethodGet, base: d.admin, path: "/metrics", local: true})
	switch {
	case listen.Nobody(err):
		d.say("freshen", Failed, "freshen does not run: nothing listens on "+d.Config.Config.Admin.Listen+" (admin.listen).",
			"Start it: freshen serve, or systemctl start freshen. If it does not stay, it says why: journalctl -u freshen. If it runs on another machine, run the doctor there.")
		return
	case err != nil:
		d.say("freshen", Failed, fmt.Sprintf("freshen cannot be asked at %s (admin.listen): %v.", d.Config.Config.Admin.Listen, err),
			"Look at its log, and whether admin.listen is the address that it serves.")
		return
	}
	values := d.values(metrics.body)
	if metrics.status != http.StatusOK || values.version == "" {
		d.say("freshen", Failed, fmt.Sprintf("What listens on %s (admin.listen) is not this freshen: it answered /metrics with %d.", d.Config.Config.Admin.Listen, metrics.status),
			"Restart freshen if it is an older one, or give admin.listen a port that no other program has.")
		return
	}
	d.running = true
	if values.started > 0 && d.Changed.After(time.Unix(int64(values.started), 0).Add(startedWithin)) {
		d.stale = "But the configuration was changed after it had started, and most of it counts from the next start."
	}
	switch {
	case values.version != d.Version:
		d.say("freshen", Warning, fmt.Sprintf("The freshen that runs is %s, and this program is %s.", values.version, d.Version), "Restart freshen after an upgrade.")
	case !metrics.arrived:
		d.running = false
		d.say("freshen", Failed, "The freshen that runs has another signing key than the configuration names.",
			"Restart it: a key counts from the next start. If it was started with another file, name that with --config.")
	default:
		d.say("freshen", OK, "It runs, version "+d.Version+".", "")
	}
	d.files(values)
	ready, err := d.ask(ctx, question{method: http.MethodGet, base: d.admin, path: "/ready", local: true})
	if err != nil || ready.status != http.StatusOK {
		d.ready = strings.TrimSpace(string(ready.body))
		if err != nil {
			d.ready = "no answer: " + err.Error()
		}
	}
}

// values are what the running freshen says of itself.
type values struct {
	version               string
	files, polls, started float64
}

var versionLabel = regexp.MustCompile(`^freshen_build_info\{.*version="([^"]*)"\} 1$`)

func (*doctor) values(metrics []byte) (v values) {
	lines := bufio.NewScanner(strings.NewReader(string(metrics)))
	for lines.Scan() {
		if match := versionLabel.FindStringSubmatch(lines.Text()); match != nil {
			v.version = match[1]
		}
		name, text, _ := strings.Cut(lines.Text(), " ")
		number, _ := strconv.ParseFloat(text, 64)
		switch name {
		case "process_max_fds":
			v.files = number
		case "process_start_time_seconds":
			v.started = number
		case "freshen_polls":
			v.polls = number
		}
	}
	return v
}

// files compares how many files freshen may open to what its polls need. Where the system does not tell, nothing is said.
func (d *doctor) files(v values) {
	if v.files == 0 {
		return
	}
	now, most := 2*v.polls+filesAtLeast, 2*2*v.polls+filesAtLeast
	text := fmt.Sprintf("freshen may open %.0f files, and %.0f polls wait: that needs %.0f.", v.files, v.polls, now)
	switch {
	case v.files < now:
		d.say("files", Failed, text, MoreFiles)
	case v.files < max(most, FilesAtLeast):
		d.say("files", Warning, text+" That leaves little for more people.", MoreFiles)
	default:
		d.say("files", OK, text, "")
	}
}

// database asks the running freshen; where it is not well, or none runs, it looks for itself.
func (d *doctor) database(ctx context.Context) {
	database := d.Config.Config.Database
	if d.running && !strings.Contains(d.ready, "database") && !strings.HasPrefix(d.ready, "no answer") {
		d.say("database", OK, database.Redacted()+" takes what freshen writes.", "")
		return
	}
	var err error
	if database.URL != nil {
		err = store.CheckPostgres(ctx, database.URL)
	} else {
		err = d.sqlite(ctx, database.Path)
	}
	switch {
	case err != nil:
		d.say("database", Failed, sentence(strings.TrimPrefix(err.Error(), "database: ")), d.databaseFix(err))
	case d.running:
		d.say("database", Failed, fmt.Sprintf("freshen says: %s. Seen from here, %s is well.", d.ready, database.Redacted()), "Look at freshen's log, which says what is wrong.")
	case database.URL == nil && os.Geteuid() == 0:
		d.say("database", Warning, database.Redacted()+" can be used by root, as whom the doctor runs; whether the user that freshen runs as may write it, root cannot tell.",
			"If freshen does not start, its log says whether that is why: journalctl -u freshen.")
	default:
		d.say("database", OK, database.Redacted()+" can be used.", "")
	}
}

func (d *doctor) databaseFix(err error) string {
	path, absErr := filepath.Abs(d.Config.Config.Database.Path)
	if absErr != nil {
		path = d.Config.Config.Database.Path
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("Give %s, and %s in it, to the user that freshen runs as (chown): it must be able to write both. Then start freshen.", filepath.Dir(path), filepath.Base(path))
	case errors.Is(err, syscall.EROFS):
		return "Mount that file system for writing, or name another place with database. With systemd, ReadWritePaths= and StateDirectory= say what a service may write."
	case d.running:
		return "Bring it back, or name another with database. freshen tries again by itself."
	}
	return "Bring it back, or name another with database; then start freshen."
}

// sqlite looks whether the file is whole, ours and can be written, without taking it from a freshen that uses it.
func (*doctor) sqlite(ctx context.Context, path string) error {
	if err := store.CheckFile(ctx, path); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = file.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the database %s cannot be written: %w", path, reason(err))
	}
	// SQLite makes files beside it.
	trial, err := os.CreateTemp(filepath.Dir(path), ".freshen-doctor-*")
	if err != nil {
		return fmt.Errorf("nothing can be written beside the database %s: %w", path, reason(err))
	}
	return errors.Join(trial.Close(), os.Remove(trial.Name()))
}

// reason is an error of the file system without what was called, and on which path.
func reason(err error) error {
	if inner, ok := errors.AsType[*fs.PathError](err); ok {
		return inner.Err
	}
	return err
}

// sentence begins with a capital and ends with a full stop.
func sentence(text string) string {
	if text == "" {
		return text
	}
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}
