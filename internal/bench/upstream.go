package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	roleUpstream = "upstream"
	roleFreshen  = "freshen"

	serverName = "hs.test"
	// sharedRoom is where target and each user whose name begins with "near" are.
	sharedRoom = "!shared:" + serverName
	target     = id.UserID("@bob:remote.test")
)

func token(user string) string { return "token-" + user }

func userID(user string) id.UserID { return id.UserID("@" + user + ":" + serverName) }

// upstream is the homeserver: it knows everybody by a token, does next to nothing for an answer, and answers
//
//	GET /_matrix/client/v3/bench/{n}     n bytes
//	GET /_matrix/client/v3/sync?mb={n}   a sync of n megabytes, whose device lists come last
//	GET /_matrix/client/v3/sync?timeout= nothing until the client hangs up
type upstream struct {
	small              []byte
	head, middle, tail []byte // of a sync; middle is a megabyte
}

func newUpstream() *upstream {
	u := &upstream{small: bytes.Repeat([]byte("0123456789abcdef"), 1<<16)}
	u.head = []byte(`{"next_batch":"s2","account_data":{"events":[]},"rooms":{"join":{`)
	var middle bytes.Buffer
	for room := 0; middle.Len() < 1e6; room++ {
		fmt.Fprintf(&middle, `"!room%d:hs.test":{"timeline":{"events":[`, room)
		for event := range 20 {
			if event > 0 {
				middle.WriteByte(',')
			}
			fmt.Fprintf(&middle, `{"type":"m.room.encrypted","sender":"@user%d:remote.test","event_id":"$%d-%d","origin_server_ts":1760000000000,`+
				`"content":{"algorithm":"m.megolm.v1.aes-sha2","session_id":"c2Vzc2lvbg","ciphertext":"%s","note":"a \"quoted\" word\n"},"unsigned":{"age":%d}}`,
				event, room, event, strings.Repeat("QUJDREVGR0hJSktMTU5P", 40), event)
		}
		middle.WriteString(`],"limited":false,"prev_batch":"p"},"state":{"events":[]},"ephemeral":{"events":[]}},`)
	}
	u.middle = middle.Bytes()
	u.tail = []byte(`"!last:hs.test":{}}},"device_one_time_keys_count":{"signed_curve25519":50},"device_lists":{"changed":["@carol:remote.test"],"left":[]}}`)
	return u
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _ := strings.CutPrefix(r.URL.Path, "/_matrix/client/v3/")
	user, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer token-")
	switch {
	case path == "sync":
		u.sync(w, r)
	case strings.HasPrefix(path, "bench/"):
		n, _ := strconv.Atoi(strings.TrimPrefix(path, "bench/"))
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(n))
		_, _ = w.Write(u.small[:n])
	case path == "account/whoami":
		answer(w, map[string]any{"user_id": userID(user), "device_id": "DEVICE"})
	case path == "joined_rooms":
		rooms := []string{}
		if strings.HasPrefix(user, "near") {
			rooms = append(rooms, sharedRoom)
		}
		answer(w, map[string]any{"joined_rooms": rooms})
	case strings.HasSuffix(path, "/joined_members"):
		answer(w, map[string]any{"joined": map[id.UserID]any{target: map[string]any{}, userID(user): map[string]any{}}})
	case path == "keys/query":
		answer(w, map[string]any{"device_keys": map[string]any{}, "failures": map[string]any{}})
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}`)
	}
}

func (u *upstream) sync(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	if query.Get("timeout") > "0" {
		<-r.Context().Done()
		return
	}
	megabytes, _ := strconv.Atoi(query.Get("mb"))
	_, _ = w.Write(u.head)
	for range megabytes {
		if _, err := w.Write(u.middle); err != nil {
			return
		}
	}
	_, _ = w.Write(u.tail)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// serveUpstream serves until stop ends.
func serveUpstream(ctx context.Context, stop io.Reader, out io.Writer) error {
	return serveUntil(ctx, stop, out, nil, func(string) http.Handler { return newUpstream() })
}

// serveUntil listens on a port that the system chooses, prints the address, and serves what handler returns for it until
// stop ends, over TLS if secure is not nil.
func serveUntil(ctx context.Context, stop io.Reader, out io.Writer, secure *tls.Config, handler func(addr string) http.Handler) error {
	ctx, cancel := untilEOF(ctx, stop)
	defer cancel()
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: handler(listener.Addr().String()), TLSConfig: secure, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
	}
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	serve := server.Serve
	if secure != nil {
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// untilEOF ends the context when what started this process closes its input, or dies.
func untilEOF(ctx context.Context, input io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, input)
		cancel()
	}()
	return ctx, cancel
}
