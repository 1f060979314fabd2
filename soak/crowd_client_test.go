//go:build unix

package soak

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// away is how far a client is from freshen: the time between an answer and the request that follows it.
const away = 40 * time.Millisecond

// crowdPolls is how long a client of a crowd lets a poll wait, which is 30 s on many sites, as is what proxies cut.
func crowdPolls() time.Duration { return 2 * *cutAfter }

// kindOfSync is the route by which a client syncs.
type kindOfSync int

const (
	plain kindOfSync = iota
	sliding
	slidingV4
)

// exchange is one request to sync and what was answered. received is zero for one that broke or was given up.
type exchange struct {
	via         string // the instance, or "" for the proxy
	since, next string
	sent        time.Time
	received    time.Time
	ended       time.Time // however it did
	changed     []id.UserID
	lost        bool // the client forgot the answer
}

// queried is one /keys/query that was answered.
type queriedKeys struct {
	via            string
	sent, received time.Time
	users          []id.UserID
}

// crowdClient is a device, with one connection or two that sync by tokens of their own.
type crowdClient struct {
	w           *crowd
	user        id.UserID
	device      id.DeviceID
	kind        kindOfSync
	connections int
	places      []place
	leaves      bool // signs out in the middle

	mu        sync.Mutex
	token     string
	tokens    int
	out       time.Time // when it signed out
	exchanges []exchange
	queries   []queriedKeys
	asked     []id.UserID // named by /keys/changes
	refused   int         // polls answered 401 after it signed out
}

func (c *crowdClient) String() string { return fmt.Sprintf("%s on %s", c.user, c.device) }

// run syncs by one connection until ctx ends.
func (c *crowdClient) run(ctx context.Context, random *rand.Rand) {
	since, spared := "", true
	for ctx.Err() == nil {
		patience, hangsUp := answerWithin, !spared && random.IntN(12) == 0
		if hangsUp {
			patience = time.Duration(random.IntN(1000)) * time.Millisecond
		}
		once, cancel := context.WithTimeout(ctx, patience)
		e, status := c.sync(once, since, c.places[random.IntN(len(c.places))])
		cancel()
		e.ended = time.Now()
		e.lost = !e.received.IsZero() && !spared && random.IntN(10) == 0
		spared = e.lost || hangsUp
		if ctx.Err() == nil {
			c.mu.Lock()
			c.exchanges = append(c.exchanges, e)
			c.mu.Unlock()
		}
		switch {
		case status == http.StatusUnauthorized:
			if !c.refusal() {
				return
			}
			continue
		case e.received.IsZero():
			wait(ctx, pause)
			continue
		case e.lost:
			wait(ctx, away)
			continue
		}
		since = e.next
		wait(ctx, away)
		if len(e.changed) > 0 && random.IntN(3) == 0 {
			c.query(ctx, e.changed, c.places[random.IntN(len(c.places))])
		}
		switch random.IntN(60) {
		case 0:
			c.changes(ctx, since, c.places[random.IntN(len(c.places))])
		case 1:
			c.refreshToken()
		}
	}
}

// refusal counts a poll that was answered 401: false if the client has signed out, so that it ends. Otherwise its token
// has just been changed by its other connection.
func (c *crowdClient) refusal() (goOn bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.out.IsZero() {
		c.refused++
	}
	return c.out.IsZero()
}

// refreshToken gets the device another access token, as by a refresh token, and has the old one refused.
func (c *crowdClient) refreshToken() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.out.IsZero() {
		return
	}
	old := c.token
	c.tokens++
	c.token = fmt.Sprintf("%s-%s-%d", c.user, c.device, c.tokens)
	c.w.server.AddUser(c.token, c.user, c.device)
	c.w.server.RemoveUser(old)
}

// signOut ends the device.
func (c *crowdClient) signOut(ctx context.Context) {
	c.mu.Lock()
	token := c.token
	c.out = time.Now()
	c.mu.Unlock()
	status, body, err := request(ctx, c.w.http, http.MethodPost, c.places[0].url+pathLogout, token, "{}")
	if err == nil && status != http.StatusOK && status != http.StatusGatewayTimeout {
		err = statusError(status, body)
	}
	if err != nil && ctx.Err() == nil {
		c.w.ledger.complain("%s could not sign out: %v", c, err)
	}
	c.w.server.RemoveUser(token)
}

func (c *crowdClient) currentToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// sync makes one request. Whatever breaks is a lost answer to this client; what may not break, the ledger is told.
func (c *crowdClient) sync(ctx context.Context, since string, at place) (e exchange, status int) {
	waits := crowdPolls().Milliseconds()
	e = exchange{via: at.via, since: since, sent: time.Now()}
	var body []byte
	var err error
	switch c.kind {
	case plain:
		path := fmt.Sprintf("%s?timeout=%d", pathSync, waits)
		if since != "" {
			path += "&since=" + since
		}
		status, body, err = request(ctx, c.w.http, http.MethodGet, at.url+path, c.currentToken(), "")
	case sliding:
		path := fmt.Sprintf("%s?timeout=%d", pathSliding, waits)
		if since != "" {
			path += "&pos=" + since
		}
		status, body, err = request(ctx, c.w.http, http.MethodPost, at.url+path, c.currentToken(), `{"conn_id":"e","extensions":{"e2ee":{"enabled":true}}}`)
	case slidingV4:
		status, body, err = request(ctx, c.w.http, http.MethodPost, at.url+pathSlidingV4, c.currentToken(),
			fmt.Sprintf(`{"conn_id":"e","pos":%q,"timeout":%d,"extensions":{"e2ee":{"enabled":true}}}`, since, waits))
	}
	switch {
	case err != nil:
		if ctx.Err() == nil {
			c.w.ledger.complain("a sync of %s at %q broke: %v", c, at.via, err)
		}
		return e, 0
	case status == http.StatusUnauthorized, status == http.StatusGatewayTimeout && at.via == "": // cut by the proxy
		return e, status
	case status != http.StatusOK:
		c.w.ledger.complain("a sync of %s at %q was answered %d %.200s", c, at.via, status, body)
		return e, status
	}
	type lists struct {
		Changed []id.UserID `json:"changed"`
	}
	var wire struct {
		NextBatch   string `json:"next_batch"`
		Pos         string `json:"pos"`
		DeviceLists lists  `json:"device_lists"`
		Extensions  struct {
			E2EE struct {
				DeviceLists lists `json:"device_lists"`
			} `json:"e2ee"`
		} `json:"extensions"`
	}
	if err := json.Unmarshal(body, &wire); err != nil || wire.NextBatch+wire.Pos == "" {
		c.w.ledger.complain("%s got a sync that is none: %v: %.200s", c, err, body)
		return e, 0
	}
	e.received, e.next = time.Now(), wire.NextBatch+wire.Pos
	e.changed = slices.DeleteFunc(append(wire.DeviceLists.Changed, wire.Extensions.E2EE.DeviceLists.Changed...), func(u id.UserID) bool { return u == stranger })
	return e, status
}

func (c *crowdClient) query(ctx context.Context, users []id.UserID, at place) {
	asked := map[id.UserID][]string{}
	for _, user := range users {
		asked[user] = []string{}
	}
	body, _ := json.Marshal(map[string]any{"device_keys": asked}) // strings only
	q := queriedKeys{via: at.via, sent: time.Now()}
	status, answered, err := request(ctx, c.w.http, http.MethodPost, at.url+pathKeys, c.currentToken(), string(body))
	var wire struct {
		DeviceKeys map[id.UserID]json.RawMessage `json:"device_keys"`
	}
	if err == nil && status == http.StatusOK && json.Unmarshal(answered, &wire) == nil {
		q.received = time.Now()
		q.users = slices.Collect(maps.Keys(wire.DeviceKeys)) // about the others, nothing was said
		c.mu.Lock()
		c.queries = append(c.queries, q)
		c.mu.Unlock()
	}
}

func (c *crowdClient) changes(ctx context.Context, from string, at place) {
	status, body, err := request(ctx, c.w.http, http.MethodGet, at.url+pathChanges+"?from="+from+"&to="+from, c.currentToken(), "")
	if err != nil || status != http.StatusOK {
		return // its token may have changed meanwhile
	}
	var wire struct {
		Changed []id.UserID `json:"changed"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		c.w.ledger.complain("%s got a /keys/changes that is none: %v: %.200s", c, err, body)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, wire.Changed...)
}
