package homeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

const (
	// refreshTimeout is longer than Dendrite waits for a fetch that it was told to make, which is 10 s, and for its turn
	// among others.
	refreshTimeout = 30 * time.Second
	// storedTimeout bounds the question of what Dendrite has.
	storedTimeout = 10 * time.Second
)

// DendriteConfig says how a Dendrite is told to fetch lists.
type DendriteConfig struct {
	// URL is its client-server API.
	URL *url.URL
	// TokenFile holds the access token of an administrator and nothing else. It is read each time that it is needed.
	TokenFile string
	// Stored asks Dendrite, as another server would, what it has of another server's user. The error is a
	// [*DownError] where Dendrite does not answer.
	Stored func(ctx context.Context, target id.UserID) (*freshen.DeviceList, error)
	// Transport is what Dendrite is asked over.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Dendrite makes a Dendrite fetch device lists that it takes for current, and so announce them to its own clients, by its
// admin call refreshDevices. Dendrite answers that call with 200 when it has marked the user stale in its own database,
// whatever came of the fetch, and also when it did nothing, since it stores no device of theirs: so what it has
// afterwards is looked at. It is safe for concurrent use.
type Dendrite struct {
	cfg  DendriteConfig
	http *http.Client
}

// NewDendrite opens no connection. The error is about the file of the token.
func NewDendrite(cfg DendriteConfig) (*Dendrite, error) {
	d := &Dendrite{cfg: cfg, http: &http.Client{
		Transport:     cfg.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	_, err := ReadToken(cfg.TokenFile)
	return d, err
}

// Close drops all connections.
func (d *Dendrite) Close() error {
	d.http.CloseIdleConnections()
	return nil
}

// Mark does nothing: what Dendrite is to be told, whoever calls must remember.
func (*Dendrite) Mark(context.Context, id.UserID) error { return nil }

// Deliver makes Dendrite fetch the list of a user, and compares what it has then with the list that freshen has got.
func (d *Dendrite) Deliver(ctx context.Context, todo Delivery) Outcome {
	before, failed := d.stored(ctx, todo.Target)
	if failed.Hole != HoleNone {
		return failed
	}
	if failed := d.refresh(ctx, todo.Target); failed.Hole != HoleNone {
		return failed
	}
	if before == nil || todo.List == nil {
		return Outcome{} // nothing to compare, or nobody who tells
	}
	after, failed := d.stored(ctx, todo.Target)
	if failed.Hole != HoleNone || after == nil {
		return failed
	}
	if len(after.Devices) == 0 && len(todo.List.Devices) > 0 {
		// It stores no device, so it did nothing. What it does at its clients' own queries knows no such exception.
		if failed := d.query(ctx, todo.Target); failed.Hole != HoleNone {
			return failed
		}
		if after, failed = d.stored(ctx, todo.Target); failed.Hole != HoleNone || after == nil {
			return failed
		}
	}
	return compare(before, after, todo)
}

// compare says what of the list Dendrite does not have, or will not announce.
func compare(before, after *freshen.DeviceList, todo Delivery) Outcome {
	was, is, want := keysOf(before), keysOf(after), keysOf(todo.List)
	if !todo.Loose && len(is.devices) != len(want.devices) || !holds(is.devices, want.devices) ||
		want.master != "" && is.master != want.master || want.selfSigning != "" && is.selfSigning != want.selfSigning {
		return Outcome{Hole: HoleNotFetched, Sentence: "Dendrite has another list than freshen got: it did not fetch it, mostly since it backs off from the other server."}
	}
	if want.master == "" && is.master != "" || want.selfSigning == "" && is.selfSigning != "" {
		return Outcome{Hole: HoleKeysGone, Sentence: "Dendrite goes on to serve cross-signing keys that are gone."}
	}
	announced := !holds(was.devices, is.devices) || was.master != is.master || was.selfSigning != is.selfSigning
	switch gone := len(was.devices) - len(is.devices); {
	case announced:
	case len(is.devices) == 0 && len(was.devices) > 0:
		return Outcome{Hole: HoleNoDevices, Sentence: "Dendrite stores that the user has no devices any more, and announces it to nobody."}
	case gone > 0:
		return Outcome{Hole: HoleDevicesGone, Sentence: fmt.Sprintf("Dendrite stores that devices are gone (%d), and announces it to nobody.", gone)}
	}
	return Outcome{}
}

// keys are the public keys of a list, by device, each as one text. Dendrite drops what it does not know around them.
type keys struct {
	devices             map[id.DeviceID]string
	master, selfSigning string
}

func keysOf(list *freshen.DeviceList) keys {
	k := keys{map[id.DeviceID]string{}, publicKeys(list.MasterKey), publicKeys(list.SelfSigningKey)}
	for _, device := range list.Devices {
		k.devices[device.ID] = publicKeys(device.Keys)
	}
	return k
}

// publicKeys is the member keys of a signed object, in an order of its own; "" where there is none.
func publicKeys(raw json.RawMessage) string {
	var object struct {
		Keys map[string]string `json:"keys"`
	}
	if len(raw) == 0 || json.Unmarshal(raw, &object) != nil || len(object.Keys) == 0 {
		return ""
	}
	for name, key := range object.Keys {
		object.Keys[name] = strings.TrimRight(key, "=")
	}
	text, err := json.Marshal(object.Keys)
	if err != nil {
		return ""
	}
	return string(text)
}

// holds says whether all of want is there.
func holds(has, want map[id.DeviceID]string) bool {
	for device := range maps.Keys(want) {
		if key, ok := has[device]; !ok || key != want[device] {
			return false
		}
	}
	return true
}

// stored is what Dendrite has. The list is nil where it does not tell, as behind a proxy that serves its clients alone.
func (d *Dendrite) stored(ctx context.Context, target id.UserID) (*freshen.DeviceList, Outcome) {
	ctx, cancel := context.WithTimeout(ctx, storedTimeout)
	defer cancel()
	list, err := d.cfg.Stored(ctx, target)
	if _, down := errors.AsType[*DownError](err); down {
		return nil, unanswered(err, "Dendrite gives no answer")
	}
	if err != nil {
		d.cfg.Log.Warn("Dendrite does not tell which device list it has, so nobody can say whether it has fetched one", "target", target, "err", err)
		return nil, Outcome{}
	}
	return list, Outcome{}
}

// refresh is the admin call.
func (d *Dendrite) refresh(ctx context.Context, target id.UserID) Outcome {
	return d.post(ctx, "/_dendrite/admin/refreshDevices/"+url.PathEscape(string(target)), nil)
}

// query asks for all devices of target as the administrator's own client would, which has Dendrite fetch them.
func (d *Dendrite) query(ctx context.Context, target id.UserID) Outcome {
	return d.post(ctx, "/_matrix/client/v3/keys/query", map[string]any{"device_keys": map[id.UserID][]string{target: {}}})
}

func (d *Dendrite) post(ctx context.Context, path string, body any) Outcome {
	token, err := ReadToken(d.cfg.TokenFile)
	if err != nil {
		return Outcome{HoleAway, "homeserver.dendrite.admin_token_file cannot be read.", err}
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return Outcome{HoleAway, "Dendrite cannot be asked.", err}
	}
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(d.cfg.URL.String(), "/")+path, bytes.NewReader(raw))
	if err != nil {
		return Outcome{HoleAway, "Dendrite cannot be asked.", WithoutURL(err)}
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := d.http.Do(request)
	if err != nil {
		return unanswered(err, "Dendrite gives no answer")
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = readAtMost(response.Body, maxResyncBytes) // so that the connection can be used again
	switch response.StatusCode {
	case http.StatusOK:
		return Outcome{}
	case http.StatusUnauthorized, http.StatusForbidden:
		return Outcome{Hole: HoleAway, Sentence: fmt.Sprintf("Dendrite answers %d: homeserver.dendrite.admin_token_file must hold the access token of an administrator.", response.StatusCode)}
	case http.StatusNotFound:
		return Outcome{Hole: HoleAway, Sentence: "Dendrite has no admin call refreshDevices at homeserver.url: is it Dendrite's own listener?"}
	}
	return Outcome{Hole: HoleNotFetched, Sentence: fmt.Sprintf("Dendrite answers the admin call refreshDevices with HTTP status %d.", response.StatusCode)}
}
