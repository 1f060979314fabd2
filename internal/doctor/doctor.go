// Package doctor looks at a site as it runs, from where freshen is and from where clients are, and says of each thing
// whether it is right, why not, and what to do.
package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"time"

	"freshen/internal/config"
	"freshen/internal/federation"
	"freshen/internal/listen"
	"freshen/internal/probe"
)

// askTimeout bounds one question, and within all of them.
const (
	askTimeout = 15 * time.Second
	within     = 3 * time.Minute
	// maxAnswer bounds what is read of an answer.
	maxAnswer = 4 << 20
)

// Status is how a check went.
type Status string

// The values of Status.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "failed"
)

// Line is what was found by one check.
type Line struct {
	// Check names it: one of a fixed set.
	Check  string `json:"check"`
	Status Status `json:"status"`
	// Text says what was found, Fix what to do; Fix is empty where nothing is to be done.
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"`
}

// Report is all that was found.
type Report struct {
	Lines []Line `json:"lines"`
	// Missing is configuration of the reverse proxy that is missing; empty if none is.
	Missing string `json:"missing,omitempty"`
}

// Failed says whether anything is wrong.
func (r *Report) Failed() bool {
	for _, line := range r.Lines {
		if line.Status == Failed {
			return true
		}
	}
	return false
}

// Config is what to look at.
type Config struct {
	Config *config.Config
	Key    *federation.SigningKey
	Roots  *x509.CertPool
	// Changed is when the file that Config was read from was last changed.
	Changed time.Time
	// Version is this program's.
	Version string
	// PublicURL is the site's base URL; empty to find it as clients do, by the server name.
	PublicURL string
	// Server is another server to fetch a device list from; empty for none.
	Server string
	// Dial connects; nil for the network. For tests.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// doctor is one visit.
type doctor struct {
	Config
	report Report
	plain  *http.Client // follows no redirect
	follow *http.Client // follows some, as clients do to find a site
	local  *http.Client // connects to admin.listen, whose base URL is in admin
	admin  string       // empty where admin.listen is a socket of systemd's
	probe  probe.Key

	running bool // freshen answers at admin.listen
	ready   string
	// homeserverAway and misnamed say that something is wrong already from which other failures follow: the homeserver does not
	// answer as one, and the signing key or the server name, whose check is named, is not the homeserver's.
	homeserverAway bool
	misnamed       string
	stale          string // why freshen may run with another configuration
	dates          []dated
	missing        []way
	server         string // what the public server calls itself
}

// Run looks at everything. It takes minutes at the most, and changes nothing.
func Run(ctx context.Context, cfg Config) *Report {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	// No proxy of the environment: what it sees is not what clients see.
	transport := &http.Transport{
		DialContext: cfg.Dial, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots}, ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	admin, dial, err := listen.Reach(cfg.Config.Admin.Listen, cfg.Dial)
	if err != nil {
		admin, dial = "", cfg.Dial
	}
	local := &http.Transport{DialContext: dial}
	defer local.CloseIdleConnections()
	d := &doctor{
		Config: cfg, admin: admin, local: &http.Client{Transport: local, Timeout: askTimeout}, probe: cfg.Key.Derive(probe.Purpose),
		follow: &http.Client{Transport: transport, Timeout: askTimeout},
		plain: &http.Client{
			Transport: transport, Timeout: askTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	d.freshen(ctx)
	d.database(ctx)
	d.homeserver(ctx)
	compared := d.signingKey(ctx, cfg.Config.Homeserver.URL.String())
	public := d.findPublic(ctx)
	if !compared && (public == "" || !d.signingKey(ctx, public)) {
		d.notCompared()
	}
	if public != "" {
		d.ways(ctx, public)
	}
	d.federation(ctx)
	d.clock()
	d.doubtful()
	d.report.Missing = d.snippet()
	return &d.report
}

// doubtful says that freshen may run with another configuration than the file has now, where something is wrong: then what is wrong
// may be that alone.
func (d *doctor) doubtful() {
	if d.stale == "" || !d.report.Failed() {
		return
	}
	for i := range d.report.Lines {
		if line := &d.report.Lines[i]; line.Check == "freshen" && line.Status == OK {
			*line = Line{line.Check, Warning, line.Text + " " + d.stale, "Restart it, and ask again."}
		}
	}
}

func (d *doctor) say(check string, status Status, text, fix string) {
	if status == OK {
		fix = ""
	}
	d.report.Lines = append(d.report.Lines, Line{check, status, text, fix})
}
