package doctor

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"freshen/internal/homeserver"
	"freshen/internal/probe"
)

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	// path is how the request arrived at freshen, if it did.
	path    string
	arrived bool
}

// dated is the clock of somebody who answered.
type dated struct {
	who  string
	off  time.Duration // how far theirs is ahead of ours
	self bool          // the site itself, which may well have our own clock
}

// question is a request. Its path is escaped, below base.
type question struct {
	method, base, path, query, body string
	header                          map[string]string
	follow, local                   bool
}

// ask puts a question. The error is without the URL.
func (d *doctor) ask(ctx context.Context, q question) (a answer, err error) {
	var body io.Reader = http.NoBody
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	request, err := http.NewRequestWithContext(ctx, q.method, q.base+q.path, body)
	if err != nil {
		return a, err
	}
	request.URL.RawQuery = q.query
	request.Header.Set("User-Agent", "freshen/"+d.Version+" (doctor)")
	for name, value := range q.header {
		request.Header.Set(name, value)
	}
	ask := d.probe.Ask(time.Now())
	request.Header.Set(probe.Header, ask)
	client := d.plain
	switch {
	case q.follow:
		client = d.follow
	case q.local:
		client = d.local
	}
	began := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return a, homeserver.WithoutURL(err)
	}
	defer response.Body.Close()
	d.dated(response, request.URL.Host, began)
	a.status, a.header = response.StatusCode, response.Header
	a.path, a.arrived = d.probe.Arrived(ask, q.method, response.Header.Get(probe.Header))
	a.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	return a, err
}

// dated compares the clock of who answered to ours. A Date has whole seconds.
func (d *doctor) dated(response *http.Response, who string, began time.Time) {
	date, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return
	}
	ended := time.Now()
	off := time.Duration(0)
	switch {
	case date.Add(time.Second).Before(began):
		off = date.Add(time.Second).Sub(began)
	case date.After(ended):
		off = date.Sub(ended)
	}
	d.dates = append(d.dates, dated{who: who, off: off.Round(time.Second), self: who != d.Server})
}
