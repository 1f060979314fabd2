package overlay

import (
	"context"
	"io"
	"net/http"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/kept"
	"freshen/internal/overlay/splice"
)

// changesShape is where GET /keys/changes names who has changed.
var changesShape = syncShape{path: []string{"changed"}}

// changesExchange is one GET /keys/changes: a client that was away asks who has changed between two of its tokens. What
// the device is owed belongs to that. It acknowledges nothing: only a /sync or a /keys/query does. Whom the homeserver
// itself names here, it has announced as in a /sync.
type changesExchange struct {
	k    *Knowledge
	from string
	who  func() (homeserver.Identity, bool)
}

func (p *Proxy) serveKeysChanges(w http.ResponseWriter, r *http.Request) {
	cred := homeserver.CredentialsOf(r)
	k := p.knowledge.Load()
	if k == nil || (k.Announcer.Head() == 0 && k.Lists.Len() == 0) || cred.IsZero() {
		p.pass(w, r, nil)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	p.pass(w, r, &changesExchange{
		k: k, from: r.URL.Query().Get("from"),
		who: inBackground(ctx, func(ctx context.Context) (homeserver.Identity, bool) {
			who, err := p.cfg.Who.Identify(ctx, cred)
			return who, err == nil
		}),
	})
}

func (x *changesExchange) edit(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	who, ok := x.who()
	if !ok {
		return nil
	}
	entries := x.k.Announcer.OwedSince(freshen.Requester{UserID: who.UserID, DeviceID: who.DeviceID}, x.from)
	watch := x.k.mayBeAnnounced(&who)
	if (len(entries) == 0 && !watch) || !decode(resp) {
		return nil
	}
	edit := splice.Edit{Path: changesShape.path}
	for _, e := range entries {
		edit.Add = append(edit.Add, string(e.Target))
	}
	if watch {
		edit.Watch = func(entry []byte) bool { return x.k.Lists.Has(id.UserID(entry)) }
	}
	resp.Body = &changesBody{Reader: splice.NewReader(resp.Body, edit), source: resp.Body, lists: x.k.Lists}
	changedLength(resp, -1)
	return nil
}

// changesBody is the edited answer. What it has shown of the homeserver's own is noted before the client has all of it.
type changesBody struct {
	*splice.Reader
	source io.Closer
	lists  *kept.Lists
}

func (b *changesBody) Close() error {
	announced(b.lists, b.Result())
	_ = b.Reader.Close()
	return b.source.Close()
}

// announced notes whose kept lists the homeserver itself has said have changed.
func announced(lists *kept.Lists, seen splice.Result) {
	switch {
	case seen.SeenMore: // too many to name
		lists.Announced(lists.Users())
	case len(seen.Seen) > 0:
		users := make([]id.UserID, len(seen.Seen))
		for i, user := range seen.Seen {
			users[i] = id.UserID(user)
		}
		lists.Announced(users)
	}
}
