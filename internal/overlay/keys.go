package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/kept"
	"freshen/internal/overlay/keyquery"
	"freshen/internal/overlay/versions"
	"freshen/internal/store"
)

const (
	// extraTime is the most that a key query may take longer because of us: for fetching a doubtful list again, or for
	// learning who asks.
	extraTime = 2 * time.Second
	// maxKeyQuery bounds the requests that are looked at. Clients ask for a few hundred users at a time.
	maxKeyQuery = 1 << 20
	// maxKeyAnswer bounds the answers that are edited, which takes them into memory, and the kept lists that go into one.
	maxKeyAnswer = 32 << 20
	// maxRefetches bounds the lists that are fetched again at a time for one query.
	maxRefetches = 64
	// maxVersions bounds the answer of /versions.
	maxVersions = 1 << 20
)

// keysExchange is one POST /keys/query that asks for somebody whose list is kept, or whom something was announced of.
type keysExchange struct {
	p   *Proxy
	k   *Knowledge
	ctx context.Context
	req keyquery.Request
	// arrived is the announcement stream's head when the query came: what the answer acknowledges.
	arrived int64
	who     func() (homeserver.Identity, bool)
	// again waits for the lists that may be out of date, which are being fetched again.
	again func()
}

// keptList is a list that may be served, and which fetch it is of.
type keptList struct {
	list *freshen.DeviceList
	info store.KeptInfo
}

func (p *Proxy) serveKeysQuery(w http.ResponseWriter, r *http.Request) {
	k := p.knowledge.Load()
	if k == nil {
		p.pass(w, r, nil)
		return
	}
	arrived := k.Announcer.Head()
	cred := homeserver.CredentialsOf(r)
	if (k.Lists.Len() == 0 && arrived == 0) || cred.IsZero() {
		p.pass(w, r, nil)
		return
	}
	length := r.ContentLength
	body, all, whole := take(r.Body, maxKeyQuery)
	r.Body, r.ContentLength = all, length
	if !whole {
		p.pass(w, r, nil)
		return
	}
	req, err := keyquery.ParseRequest(body)
	if err != nil {
		p.pass(w, r, nil) // the homeserver says what is wrong with it
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x := &keysExchange{p: p, k: k, ctx: r.Context(), req: req, arrived: arrived}
	x.who = inBackground(ctx, func(ctx context.Context) (homeserver.Identity, bool) {
		who, err := p.cfg.Who.Identify(ctx, cred)
		return who, err == nil
	})
	again := inBackground(ctx, func(ctx context.Context) (struct{}, bool) {
		k.fetchDoubtful(ctx, req, p.cfg.Now)
		return struct{}{}, true
	})
	x.again = func() { _, _ = again() }
	p.pass(w, r, x)
}

// inBackground begins ask at once. The function it returns waits for the answer, until extraTime has passed since then.
func inBackground[T any](ctx context.Context, ask func(context.Context) (T, bool)) func() (T, bool) {
	type answer struct {
		value T
		ok    bool
	}
	answers := make(chan answer, 1)
	ctx, cancel := context.WithTimeout(ctx, extraTime)
	go func() {
		defer cancel()
		value, ok := ask(ctx)
		answers <- answer{value, ok}
	}()
	return sync.OnceValues(func() (T, bool) {
		select {
		case a := <-answers:
			return a.value, a.ok
		case <-ctx.Done():
		}
		select { // done is also what an answer makes it
		case a := <-answers:
			return a.value, a.ok
		default:
			var none T
			return none, false
		}
	})
}

// doubtful says that a list may be out of date.
func doubtful(info store.KeptInfo, now time.Time) bool {
	return info.Suspect || now.Sub(info.FetchedAt).Abs() > kept.MaxAge // the clock may have been set back
}

// fetchDoubtful fetches the lists again that are asked for and may be out of date.
func (k *Knowledge) fetchDoubtful(ctx context.Context, req keyquery.Request, now func() time.Time) {
	var fetches errgroup.Group
	fetches.SetLimit(maxRefetches)
	for user := range req.Devices {
		if info, ok := k.Lists.Info(user); ok && doubtful(info, now()) {
			fetches.Go(func() error {
				k.fetchAgain(ctx, user, now)
				return nil
			})
		}
	}
	_ = fetches.Wait() // none returns an error
}

// fetchAgain fetches one list. If the homeserver announces the user meanwhile, it is in doubt still, and fetched once more.
func (k *Knowledge) fetchAgain(ctx context.Context, user id.UserID, now func() time.Time) {
	for range 2 {
		if ctx.Err() != nil || !k.Refresher.Again(ctx, user) {
			return
		}
		if info, ok := k.Lists.Info(user); !ok || !doubtful(info, now()) {
			return
		}
	}
}

// keptLists reads the lists that are kept of those asked for, as they are when the homeserver has answered: it may have
// taken its time. Where a list is still doubtful, or cannot be read in time, or all together are too long, the
// homeserver's answer stands.
func (x *keysExchange) keptLists() map[id.UserID]keptList {
	ctx, cancel := context.WithTimeout(x.ctx, extraTime)
	defer cancel()
	found := map[id.UserID]keptList{}
	size := 0
	for user := range x.req.Devices {
		info, ok := x.k.Lists.Info(user)
		if !ok || doubtful(info, x.p.cfg.Now()) {
			continue
		}
		list, err := x.k.Lists.Read(ctx, user)
		if err != nil {
			if x.ctx.Err() == nil && !errors.Is(err, kept.ErrNotRead) {
				x.p.cfg.Log.Error("cannot read kept device lists; the homeserver's answer stands", "target", user, "err", err)
			}
			break
		}
		if list == nil {
			continue
		}
		if size += list.Size(); size > maxKeyAnswer {
			x.p.cfg.Log.Warn("the kept device lists for one key query are too long together; for some users the homeserver's answer stands", "users", len(x.req.Devices), "limit", maxKeyAnswer)
			break
		}
		found[user] = keptList{list, info}
	}
	return found
}

func (x *keysExchange) edit(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	who, ok := x.who()
	if !ok {
		return nil // without knowing the requester, their signatures would be lost
	}
	x.again()
	lists := x.keptLists()
	requester := freshen.Requester{UserID: who.UserID, DeviceID: who.DeviceID}
	targets := x.req.Whole()
	if len(lists) == 0 && !x.k.Announcer.Pending(requester, targets) {
		return nil
	}
	if !decode(resp) {
		return nil
	}
	answer, all, whole := take(resp.Body, maxKeyAnswer)
	resp.Body = all
	if !whole {
		changedLength(resp, -1)
		return nil
	}
	edited, healed := x.overlay(answer, who.UserID, lists)
	x.p.counters.keysQuery.count(int64(len(edited)), len(lists) > 0)
	acked := answered(edited, targets)
	resp.Body = &deliveredBody{Reader: bytes.NewReader(edited), Closer: resp.Body, delivered: func() {
		if x.ctx.Err() != nil {
			return
		}
		x.k.Announcer.Acked(requester, acked, x.arrived)
		for _, user := range healed {
			x.k.Lists.Retire(user, lists[user].info.FetchedAt)
		}
	}}
	changedLength(resp, -1) // a client that counts would have all of it before the body is closed
	return nil
}

func (x *keysExchange) overlay(answer []byte, requester id.UserID, lists map[id.UserID]keptList) (edited []byte, healed []id.UserID) {
	if len(lists) == 0 {
		return answer, nil
	}
	served := make(map[id.UserID]*freshen.DeviceList, len(lists))
	for user, k := range lists {
		served[user] = k.list
	}
	edited, healed, err := keyquery.Overlay(answer, x.req, requester, served)
	if err != nil {
		x.p.cfg.Log.Warn("the homeserver's answer to a key query cannot be edited; it passes as it is", "err", err)
		return answer, nil
	}
	return edited, healed
}

// answered says about which of the targets the answer tells: their devices stand there, and their server is not among
// the failures.
func answered(answer []byte, targets []id.UserID) []id.UserID {
	var said struct {
		DeviceKeys map[id.UserID]json.RawMessage `json:"device_keys"`
		Failures   map[string]json.RawMessage    `json:"failures"`
	}
	if json.Unmarshal(answer, &said) != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(targets), func(target id.UserID) bool {
		_, told := said.DeviceKeys[target]
		_, failed := said.Failures[freshen.Destination(target)]
		return !told || failed
	})
}

// deliveredBody calls delivered when it is closed after its last byte was written to the client, and before the client
// can have had an answer to act on.
type deliveredBody struct {
	io.Reader
	io.Closer
	delivered func()
	whole     bool
}

func (b *deliveredBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		b.whole = true
	}
	return n, err
}

func (b *deliveredBody) Close() error {
	if b.whole {
		b.delivered()
	}
	return b.Closer.Close()
}

// versionsExchange is one GET /versions: the homeserver's own answer, with our flag.
type versionsExchange struct{}

func (versionsExchange) edit(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK || !decode(resp) {
		return nil
	}
	answer, all, whole := take(resp.Body, maxVersions)
	resp.Body = all
	if !whole {
		changedLength(resp, -1)
		return nil
	}
	edited := versions.Advertise(answer)
	resp.Body = &readCloser{bytes.NewReader(edited), resp.Body}
	changedLength(resp, int64(len(edited)))
	return nil
}
