//go:build unix

package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	// pollFor is how long a device lets a /sync wait.
	pollFor = 3 * time.Second
	// pause is how long a client waits after a request that broke.
	pause = 20 * time.Millisecond
	// answerWithin bounds any request of a client's.
	answerWithin = time.Minute
)

// device syncs like a client that keeps its token, and comes back whatever happens.
type device struct {
	ledger *ledger
	hs     *homeserver
	user   id.UserID
	id     id.DeviceID
	token  string
	via    string // the instance, or "" for the proxy
	base   string // URL
	random *rand.Rand
	http   *http.Client
}

func (d *device) String() string { return fmt.Sprintf("%s on %s", d.user, d.id) }

// run syncs until ctx ends. Now and then the client itself hangs up, or ends after it has got an answer and before it
// has kept anything of it; but not twice in a row, since freshen counts three such answers under one token as heard.
func (d *device) run(ctx context.Context) {
	since, spared := "", true
	for ctx.Err() == nil {
		began := time.Now()
		patience, hangsUp := answerWithin, !spared && d.random.IntN(15) == 0
		if hangsUp {
			patience = time.Duration(d.random.IntN(800)) * time.Millisecond
		}
		once, cancel := context.WithTimeout(ctx, patience)
		a, next, err := d.sync(once, since)
		hungUp := hangsUp && once.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			lost := !spared && d.random.IntN(10) == 0
			d.ledger.polled(a, lost)
			spared = lost
			if lost {
				continue
			}
			if len(a.changed) > 0 && d.random.IntN(3) == 0 {
				d.query(ctx, a.changed)
			}
			since = next
		case hungUp:
			spared = true
		default:
			d.ledger.failed(failure{what: fmt.Sprintf("/sync of %s", d), via: d.via, began: began, err: err})
			wait(ctx, pause)
		}
	}
}

func (d *device) sync(ctx context.Context, since string) (a answer, next string, err error) {
	return d.poll(ctx, since, pollFor)
}

// poll is one /sync that may wait for so long.
func (d *device) poll(ctx context.Context, since string, waits time.Duration) (a answer, next string, err error) {
	path := pathSync + "?timeout=0"
	if since != "" {
		path = fmt.Sprintf("%s?since=%s&timeout=%d", pathSync, since, waits.Milliseconds())
	}
	status, body, err := request(ctx, d.http, http.MethodGet, d.base+path, d.token, "")
	if err != nil {
		return a, "", err
	}
	if status != http.StatusOK {
		return a, "", statusError(status, body)
	}
	var wire struct {
		NextBatch   string `json:"next_batch"`
		Number      int    `json:"number"`
		DeviceLists struct {
			Changed []id.UserID `json:"changed"`
		} `json:"device_lists"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		d.ledger.complain("%s got a /sync that is no JSON: %v: %.200s", d, err, body)
		return a, "", err
	}
	if !d.hs.gave(wire.Number) || wire.NextBatch == "" {
		d.ledger.complain("%s got a /sync that is not the homeserver's: %.200s", d, body)
	}
	changed := slices.DeleteFunc(wire.DeviceLists.Changed, func(u id.UserID) bool { return u == stranger })
	return answer{device: d, received: time.Now(), changed: changed}, wire.NextBatch, nil
}

// query asks for the keys of whom it heard, as an encrypting client does. That acknowledges as well.
func (d *device) query(ctx context.Context, users []id.UserID) {
	began := time.Now()
	asked := map[id.UserID][]string{}
	for _, user := range users {
		asked[user] = []string{}
	}
	body, _ := json.Marshal(map[string]any{"device_keys": asked}) // strings only
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	status, answered, err := request(ctx, d.http, http.MethodPost, d.base+pathKeys, d.token, string(body))
	switch {
	case errors.Is(err, context.Canceled):
		return
	case err == nil && status == http.StatusOK:
		d.ledger.queried(d.keys(answered))
		return
	case err == nil:
		err = statusError(status, answered)
	}
	d.ledger.failed(failure{what: fmt.Sprintf("/keys/query of %s", d), via: d.via, began: began, err: err})
}

// keys reads which lists a /keys/query brought. The remote servers number them by the name of their one device.
func (d *device) keys(body []byte) answer {
	var wire struct {
		DeviceKeys map[id.UserID]map[string]json.RawMessage `json:"device_keys"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		d.ledger.complain("%s got a /keys/query that is no JSON: %v: %.200s", d, err, body)
	}
	a := answer{device: d, received: time.Now(), lists: map[id.UserID]int{}}
	for target, devices := range wire.DeviceKeys {
		for name := range devices {
			number, err := strconv.Atoi(strings.TrimPrefix(name, "D"))
			if err != nil {
				d.ledger.complain("%s was told of a device of %s that does not exist: %s", d, target, name)
			}
			a.changed = append(a.changed, target)
			a.lists[target] = number
		}
	}
	return a
}

// asker asks for refreshes.
type asker struct {
	ledger *ledger
	user   id.UserID
	token  string
	via    string // the instance, or "" for the proxy
	base   string // URL
	http   *http.Client
}

// run asks for random targets until ctx ends. Its last request is answered all the same.
func (a *asker) run(ctx context.Context, random *rand.Rand, targets []id.UserID, every time.Duration) {
	for wait(ctx, time.Duration(random.Int64N(int64(2*every)))) {
		a.refresh(ctx, targets[random.IntN(len(targets))])
	}
}

// refresh asks once and records what was answered.
func (a *asker) refresh(ctx context.Context, target id.UserID) outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
	defer cancel()
	asking := a.ledger.ask(a.user, target, a.via)
	path := "/_matrix/client/v3/user/" + url.PathEscape(string(target)) + "/devices/refresh"
	status, body, err := request(ctx, a.http, http.MethodPost, a.base+path, a.token, "")
	if errors.Is(err, syscall.ECONNREFUSED) {
		a.ledger.unsent(asking)
		return refused
	}
	what, retryIn := broken, time.Duration(0)
	if err == nil {
		what, retryIn, err = read(status, body)
	}
	a.ledger.asked(asking, what, retryIn, string(body))
	if err != nil {
		a.ledger.failed(failure{
			what: fmt.Sprintf("the refresh of %s that %s asked for", target, a.user), via: a.via, isAsk: true, began: asking.sent, err: err,
		})
	}
	return what
}

// read tells what an answer means. The error is one that only a disturbance excuses.
func read(status int, body []byte) (what outcome, retryIn time.Duration, err error) {
	var wire struct {
		ErrCode string `json:"errcode"`
		Error   string `json:"error"`
		Failure *struct {
			RetryAfterMS int64 `json:"retry_after_ms"`
		} `json:"org.matrix.msc2638.failure"`
	}
	bad := json.Unmarshal(body, &wire)
	switch {
	case bad != nil: // a proxy's
		return broken, 0, statusError(status, body)
	case status == http.StatusAccepted:
		return fresh, 0, nil
	case wire.Failure != nil && strings.Contains(wire.Error, "freshen tries again by itself"):
		return promised, time.Duration(wire.Failure.RetryAfterMS) * time.Millisecond, nil
	default:
		return refused, 0, statusError(status, body)
	}
}

func statusError(status int, body []byte) error {
	return fmt.Errorf("answered %d %.300s", status, body)
}

func request(ctx context.Context, client *http.Client, method, url, token, body string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// wait returns after d, or false at once when ctx ends.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
