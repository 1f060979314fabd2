package overlay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/announce"
	"freshen/internal/homeserver"
	"freshen/internal/kept"
	"freshen/internal/overlay/rawjson"
	"freshen/internal/overlay/splice"
)

// fewKept is up to how many kept lists it is worth finding out that a user can see none of them announced.
const fewKept = 64

// syncShape says where an answer names who has changed, and the top-level member that is its token.
type syncShape struct {
	path  []string
	token string
}

var plainShape = syncShape{path: []string{"device_lists", "changed"}, token: "next_batch"}

// syncExchange is one GET /sync, or one POST of sliding sync. The answer is the homeserver's own: what is owed is merged into it, and if that
// becomes known while the homeserver still waits for news, it is asked again without waiting.
type syncExchange struct {
	p     *Proxy
	ctx   context.Context // the client's
	shape syncShape
	since string
	// waits: the request has a timeout, so that hurrying makes sense, and can be sent again.
	waits   bool
	sliding *slidingRequest // nil for GET /sync

	mu    sync.Mutex
	deaf  bool // a connection of sliding sync without e2ee: it is told nothing
	learn bool // whether its answer has e2ee all the same
	who   *homeserver.Identity
	// unknown: who asks cannot be found out.
	unknown bool
	poll    *announce.Poll
	unseen  *announce.Unseen // the answer, if it has begun before that was known
	ended   bool
	abort   func() // abandons the homeserver's long poll; nil unless one is waiting
	hasten  bool   // hurrying was asked for
	begun   bool   // the answer has begun without it

	turn turn // guarded by hurried.mu
}

func (p *Proxy) serveSync(w http.ResponseWriter, r *http.Request) {
	cred := homeserver.CredentialsOf(r)
	if cred.IsZero() {
		p.pass(w, r, nil)
		return
	}
	timeout, _ := strconv.ParseInt(valueOf(r.URL.RawQuery, "timeout"), 10, 64)
	p.serveExchange(w, r, cred, &syncExchange{
		p: p, shape: plainShape, since: valueOf(r.URL.RawQuery, "since"), waits: timeout > 0 && r.ContentLength == 0,
	})
}

func (p *Proxy) serveExchange(w http.ResponseWriter, r *http.Request, cred homeserver.Credentials, x *syncExchange) {
	defer x.end()
	p.hurried.add(x)
	defer p.hurried.remove(x)
	who, known := p.cfg.Who.Known(cred)
	if k := p.knowledge.Load(); known && k != nil {
		x.ctx = r.Context()
		x.begin(k, who, cred)
		p.pass(w, r, x)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x.ctx = ctx
	// Whose token it is, is asked while the homeserver answers and never before. Once it has been asked, the answer is
	// awaited, since it may have to be known whose an answer was that went out meanwhile.
	go func() {
		who, err := p.cfg.Who.Identify(context.WithoutCancel(ctx), cred)
		if err != nil {
			x.identified(nil)
			return
		}
		select {
		case <-p.learnt:
			x.begin(p.knowledge.Load(), who, cred)
		case <-ctx.Done():
			x.identified(&who)
		}
	}()
	p.pass(w, r, x)
}

// identified tells whose an answer was that has begun before that was known; nil if that cannot be found out.
func (x *syncExchange) identified(who *homeserver.Identity) {
	x.mu.Lock()
	x.who, x.unknown = who, who == nil
	unseen := x.unseen
	x.mu.Unlock()
	switch {
	case unseen == nil:
	case who == nil:
		unseen.Nobodys()
	default:
		unseen.Whose(freshen.Requester{UserID: who.UserID, DeviceID: who.DeviceID})
	}
}

// begins is called when the answer begins before its poll does.
func (x *syncExchange) begins(k *Knowledge) *announce.Unseen {
	unseen := k.Announcer.Unseen()
	x.mu.Lock()
	x.unseen = unseen
	who, unknown := x.who, x.unknown
	x.mu.Unlock()
	if who != nil || unknown {
		x.identified(who)
	}
	return unseen
}

// begin registers the poll once it is known whose it is, and what there is to be told.
func (x *syncExchange) begin(k *Knowledge, who homeserver.Identity, cred homeserver.Credentials) {
	device := freshen.Requester{UserID: who.UserID, DeviceID: who.DeviceID}
	listens, learn := true, false
	if x.sliding != nil {
		listens, learn = x.p.sticky.listens(device, x.sliding)
	}
	x.identified(&who)
	x.mu.Lock()
	ended := x.ended
	x.deaf, x.learn = !listens, learn
	x.mu.Unlock()
	if ended || !listens {
		return
	}
	poll := k.Announcer.Begin(device, cred, x.since, func() { x.p.hurried.hurry(x) })
	x.mu.Lock()
	ended = x.ended
	if !ended {
		x.poll = poll
	}
	x.mu.Unlock()
	if ended {
		poll.End()
	}
}

func (x *syncExchange) end() {
	x.mu.Lock()
	x.ended = true
	poll := x.poll
	x.mu.Unlock()
	if poll != nil {
		poll.End()
	}
}

// hurry abandons the homeserver's long poll, to ask again without waiting. If its answer has begun, there is nothing to
// abandon: then it returns false.
func (x *syncExchange) hurry() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hasten = true
	if x.abort != nil {
		x.abort()
	}
	return !x.begun
}

// arm says how the long poll can be abandoned; false means that it is not to be begun at all.
func (x *syncExchange) arm(abort func()) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.hasten {
		return false
	}
	x.abort, x.begun = abort, false
	return true
}

// disarm is called when the answer has begun or failed; hurried says that it was abandoned before.
func (x *syncExchange) disarm() (hurried bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.abort = nil
	x.begun = !x.hasten
	return x.hasten
}

var errHurried = errors.New("the long poll was abandoned, to bring an announcement at once")

// patiently sends the request, which may wait. If that is hurried, it abandons it and sends it again without waiting.
func (x *syncExchange) patiently(parent context.Context, send func(ctx context.Context, wait bool) (*http.Response, error)) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(parent)
	if x.arm(func() { cancel(errHurried) }) {
		resp, err := send(ctx, true)
		if !x.disarm() {
			if err != nil {
				cancel(err)
				return nil, err
			}
			if resp.Body == http.NoBody {
				cancel(nil)
				return resp, nil
			}
			resp.Body = &cancelOnClose{resp.Body, func() { cancel(nil) }}
			return resp, nil
		}
		if err == nil {
			_ = resp.Body.Close()
		}
	}
	cancel(errHurried)
	defer x.p.hurried.done(x)
	return send(parent, false)
}

// hurrier is the transport that can abandon a long poll, of the requests that httputil.ReverseProxy passes.
type hurrier struct{ base http.RoundTripper }

func (h hurrier) RoundTrip(req *http.Request) (*http.Response, error) {
	x, ok := exchangeOf(req.Context()).(*syncExchange)
	if !ok || !x.waits {
		return h.base.RoundTrip(req)
	}
	return x.patiently(req.Context(), func(ctx context.Context, wait bool) (*http.Response, error) {
		if wait {
			return h.base.RoundTrip(req.WithContext(ctx))
		}
		again := req.Clone(ctx)
		query, body := x.withoutWaiting(req.URL.RawQuery)
		again.URL.RawQuery = query
		if body != nil {
			again.Body, again.ContentLength, again.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		}
		return h.base.RoundTrip(again)
	})
}

type cancelOnClose struct {
	io.ReadCloser
	cancel func()
}

func (c *cancelOnClose) ready() bool { return ready(c.ReadCloser) }

func (c *cancelOnClose) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// withoutWaiting is the request's query and body with a timeout of 0 and every other byte as it was. The body is nil where
// there is none.
func (x *syncExchange) withoutWaiting(rawQuery string) (query string, body []byte) {
	if x.sliding == nil {
		return withoutTimeout(rawQuery), nil
	}
	if !x.sliding.inBody {
		return withoutTimeout(rawQuery), x.sliding.body
	}
	edited, err := rawjson.Rewrite(x.sliding.body, []rawjson.Edit{{Name: "timeout", Apply: rawjson.Set([]byte("0"))}})
	if err != nil {
		return rawQuery, x.sliding.body
	}
	return rawQuery, edited
}

// valueOf is [url.Values.Get] of a query, without making a map of all of it.
func valueOf(rawQuery, name string) string {
	for part := range strings.SplitSeq(rawQuery, "&") {
		found, value, _ := strings.Cut(part, "=")
		if strings.Contains(part, ";") {
			continue // net/url takes it for a mistake
		}
		if found, err := url.QueryUnescape(found); err != nil || found != name {
			continue
		}
		if value, err := url.QueryUnescape(value); err == nil {
			return value
		}
	}
	return ""
}

// withoutTimeout sets timeout=0 in a query.
func withoutTimeout(rawQuery string) string {
	parts := strings.Split(rawQuery, "&")
	for i, part := range parts {
		name, _, _ := strings.Cut(part, "=")
		if name, err := url.QueryUnescape(name); err == nil && name == "timeout" {
			parts[i] = "timeout=0"
		}
	}
	return strings.Join(parts, "&")
}

// edit merges what is owed into the answer while it streams past. Where nothing is owed and nothing is to be watched,
// the answer is not looked at.
func (x *syncExchange) edit(resp *http.Response) error {
	k := x.p.knowledge.Load()
	if resp.StatusCode != http.StatusOK || k == nil {
		return nil
	}
	x.mu.Lock()
	poll, who, deaf, learn := x.poll, x.who, x.deaf, x.learn
	x.mu.Unlock()
	var entries []announce.Entry
	var unseen *announce.Unseen // its token is watched for
	switch {
	case poll != nil:
		entries = poll.Owed()
	case !deaf:
		unseen = x.begins(k)
	}
	// Where an answer is edited in any case, watching it as well costs less than to find out that there is nothing to watch for.
	watch := (!deaf || learn) && (len(entries) > 0 || k.mayBeAnnounced(who))
	if len(entries) == 0 && !watch && !learn {
		if unseen != nil {
			x.lookForToken(resp, unseen)
		}
		return nil
	}
	if !decode(resp) {
		switch {
		case len(entries) > 0: // they stay owed, but must not hurry the client round and round
			resp.Body = &deliveredBody{Reader: resp.Body, Closer: resp.Body, delivered: func() { x.delivered(poll, entries, "") }}
		case unseen != nil:
			unseen.Ended("")
		}
		return nil
	}
	edit := splice.Edit{Path: x.shape.path, Token: x.shape.token}
	for _, e := range entries {
		edit.Add = append(edit.Add, string(e.Target))
	}
	if watch {
		edit.Watch = func(entry []byte) bool { return k.Lists.Has(id.UserID(entry)) }
	}
	resp.Body = &syncBody{spliced: splice.NewReader(resp.Body, edit), source: resp.Body, x: x, lists: k.Lists, poll: poll, unseen: unseen, entries: entries, learn: learn}
	changedLength(resp, -1)
	return nil
}

// lookForToken passes an answer on as it came, and has its token noticed before the client can tell that it has ended: so its
// end is marked by the last chunk, and not known from its length.
func (x *syncExchange) lookForToken(resp *http.Response, unseen *announce.Unseen) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		unseen.Ended("")
		return
	}
	edit := splice.Edit{Path: x.shape.path, Token: x.shape.token}
	resp.Body = &syncBody{spliced: splice.NewReader(resp.Body, edit), source: resp.Body, x: x, unseen: unseen}
	resp.ContentLength = -1
	resp.Header.Del("Content-Length")
}

// delivered records a whole answer, unless the client has gone.
func (x *syncExchange) delivered(poll *announce.Poll, entries []announce.Entry, token string) {
	if x.ctx.Err() == nil {
		poll.Delivered(entries, token)
	}
}

// mayBeAnnounced says whether the homeserver could announce somebody to this user whose list is kept. Where it is not
// known who the user is or with whom they share rooms, it could.
func (k *Knowledge) mayBeAnnounced(who *homeserver.Identity) bool {
	switch n := k.Lists.Len(); {
	case n == 0:
		return false
	case who == nil, n > fewKept:
		return true
	}
	for _, user := range k.Lists.Users() {
		if shares, known := k.Rooms.Known(who.UserID, user); shares || !known {
			return true
		}
	}
	return false
}

// syncBody is the edited answer. It is closed after its last byte was written to the client, and before the client can
// tell that it was the last.
type syncBody struct {
	spliced *splice.Reader
	source  io.Closer
	x       *syncExchange
	lists   *kept.Lists
	poll    *announce.Poll
	unseen  *announce.Unseen
	entries []announce.Entry
	learn   bool
	whole   bool
	bytes   int64
}

func (b *syncBody) Read(into []byte) (int, error) {
	n, err := b.spliced.Read(into)
	b.bytes += int64(n)
	if errors.Is(err, io.EOF) {
		b.whole = true
	}
	return n, err
}

func (b *syncBody) Close() error {
	result := b.spliced.Result()
	b.x.p.counters.sync.count(b.bytes, len(b.entries) > 0)
	announced(b.lists, result)
	if b.learn && result.Depth >= e2eeDepth {
		b.x.p.sticky.learnt()
	}
	token := ""
	if result.Complete && result.HasToken {
		token = result.Token
	}
	switch {
	case !b.whole:
	case b.poll != nil:
		b.x.delivered(b.poll, b.entries, token)
	case b.unseen != nil:
		b.unseen.Ended(token)
	}
	return errors.Join(b.spliced.Close(), b.source.Close())
}
