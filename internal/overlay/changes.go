package overlay

import (
	"context"
	"io"
	"net/http"

	"freshen"
	"freshen/internal/announce"
	"freshen/internal/homeserver"
	"freshen/internal/overlay/splice"
)

// changesShape is where GET /keys/changes names who has changed.
var changesShape = syncShape{path: []string{"changed"}}

// changesExchange is one GET /keys/changes: a client that was away asks who has changed between two of its tokens. What
// the device is owed belongs to that. It acknowledges nothing: only a /sync or a /keys/query does.
type changesExchange struct {
	announcer *announce.Announcer
	from      string
	who       func() (homeserver.Identity, bool)
}

func (p *Proxy) serveKeysChanges(w http.ResponseWriter, r *http.Request) {
	cred := homeserver.CredentialsOf(r)
	k := p.knowledge.Load()
	if k == nil || k.Announcer.Head() == 0 || cred.IsZero() {
		p.pass(w, r, nil)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	p.pass(w, r, &changesExchange{
		announcer: k.Announcer, from: r.URL.Query().Get("from"),
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
	entries := x.announcer.OwedSince(freshen.Requester{UserID: who.UserID, DeviceID: who.DeviceID}, x.from)
	if len(entries) == 0 || !decode(resp) {
		return nil
	}
	edit := splice.Edit{Path: changesShape.path}
	for _, e := range entries {
		edit.Add = append(edit.Add, string(e.Target))
	}
	spliced := splice.NewReader(resp.Body, edit)
	resp.Body = &splicedBody{Reader: spliced, source: resp.Body}
	changedLength(resp, -1)
	return nil
}

// splicedBody is an edited answer of which nothing is to be learnt.
type splicedBody struct {
	*splice.Reader
	source io.Closer
}

func (b *splicedBody) Close() error {
	_ = b.Reader.Close()
	return b.source.Close()
}
