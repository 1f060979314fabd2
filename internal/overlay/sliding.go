package overlay

import (
	"net/http"
	"net/url"
	"strconv"
	"sync"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"freshen"
	"freshen/internal/homeserver"
)

const (
	// maxSliding bounds the requests of sliding sync that are looked at; a longer one passes as it is.
	maxSliding = 1 << 20
	// maxConnections bounds the connections that are remembered as having asked for e2ee.
	maxConnections = 100_000
)

// slidingShape is where simplified sliding sync (MSC4186) has what GET /sync has at the top.
var slidingShape = syncShape{path: []string{"extensions", "e2ee", "device_lists", "changed"}, token: "pos"}

// e2eeDepth is how many names of that path lead to the e2ee extension.
const e2eeDepth = 2

// wish is what a request says about the e2ee extension.
type wish uint8

const (
	wishUnsaid wish = iota
	wishOn
	wishOff
)

// slidingRequest is what matters here of one request of simplified sliding sync.
type slidingRequest struct {
	pos    string
	waits  bool   // it has a timeout
	connID string // tells the connections of one device apart
	e2ee   wish
	body   []byte
	// inBody: pos and timeout stand in the body (v4), not in the query.
	inBody bool
}

// parseSliding reads a request's body and query. ok is false for a body that is none; the homeserver says what is wrong
// with it.
func parseSliding(body []byte, query url.Values, inBody bool) (s slidingRequest, ok bool) {
	var wire struct {
		Pos        string         `json:"pos"`
		Timeout    jsontext.Value `json:"timeout"`
		ConnID     string         `json:"conn_id"`
		Extensions struct {
			E2EE struct {
				Enabled *bool `json:"enabled"`
			} `json:"e2ee"`
		} `json:"extensions"`
	}
	lenient := jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if err := jsonv2.Unmarshal(body, &wire, lenient); err != nil {
		return slidingRequest{}, false
	}
	s = slidingRequest{pos: query.Get("pos"), connID: wire.ConnID, body: body, inBody: inBody}
	timeout, _ := strconv.ParseInt(query.Get("timeout"), 10, 64)
	if inBody {
		s.pos = wire.Pos
		timeout, _ = strconv.ParseInt(string(wire.Timeout), 10, 64)
	}
	s.waits = timeout > 0
	if enabled := wire.Extensions.E2EE.Enabled; enabled != nil {
		s.e2ee = wishOff
		if *enabled {
			s.e2ee = wishOn
		}
	}
	return s, true
}

func (p *Proxy) serveSliding(w http.ResponseWriter, r *http.Request, inBody bool) {
	cred := homeserver.CredentialsOf(r)
	if cred.IsZero() || r.Body == nil || r.Header.Get("Content-Encoding") != "" {
		p.pass(w, r, nil)
		return
	}
	length := r.ContentLength
	body, all, whole := take(r.Body, maxSliding)
	r.Body, r.ContentLength = all, length
	if !whole {
		p.pass(w, r, nil)
		return
	}
	asked, ok := parseSliding(body, r.URL.Query(), inBody)
	if !ok {
		p.pass(w, r, nil)
		return
	}
	p.serveExchange(w, r, cred, &syncExchange{
		p: p, shape: slidingShape, since: asked.pos, sliding: &asked, waits: asked.waits,
	})
}

// connection is one sliding sync connection of a device.
type connection struct {
	who    freshen.Requester
	connID string
}

// stickiness remembers which connections have asked for the e2ee extension. On Synapse that holds for the one request
// that says so; the Conduit family goes on with it until told otherwise. Which of the two stands behind us is learnt
// from an answer that has the extension although its request did not mention it.
type stickiness struct {
	mu     sync.Mutex
	sticky bool
	on     map[connection]struct{}
}

// listens says whether an answer to this request is one with the e2ee extension. learn says that its presence there
// would be news.
func (s *stickiness) listens(who freshen.Requester, asked *slidingRequest) (listens, learn bool) {
	c := connection{who, asked.connID}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, on := s.on[c]
	switch {
	case asked.e2ee == wishOn:
		if !on && len(s.on) >= maxConnections {
			clear(s.on)
		}
		if s.on == nil {
			s.on = map[connection]struct{}{}
		}
		s.on[c] = struct{}{}
		return true, false
	case asked.e2ee == wishOff, asked.pos == "": // a connection that begins anew says all that it wants
		delete(s.on, c)
		return false, false
	}
	return on && s.sticky, on && !s.sticky
}

func (s *stickiness) learnt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sticky = true
}
