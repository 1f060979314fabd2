package testbed

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
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

// maxTransactionBytes bounds what the link reads of one federation transaction: 50 PDUs and 100 EDUs of 64 KiB are less.
const maxTransactionBytes = 16 << 20

// LostEDU is one device-list update that the link has swallowed.
type LostEDU struct {
	// Type is m.device_list_update or m.signing_key_update.
	Type string
	// UserID is whose list changed; DeviceID which device, empty for cross-signing keys.
	UserID, DeviceID string
	// Deleted says that the device is gone; HasKeys that the update brought device keys.
	Deleted, HasKeys bool
	// PDUs is how many room events were lost with it, since a transaction is lost as a whole.
	PDUs int
}

// Link stands on a homeserver's federation address and passes everything on to where that homeserver really listens.
// Told to lose device lists, it answers a transaction that holds a device-list or signing-key update as a homeserver
// would that took it, and drops it: the sender believes it delivered and never sends it again. That is how lists go
// stale in the real federation, and nothing about either homeserver is faked for it.
type Link struct {
	server  *http.Server
	backend *http.Transport
	stopped chan struct{}

	mu     sync.Mutex
	losing bool
	lost   []LostEDU
	more   chan struct{} // closed and replaced when lost grows
}

// newLink serves on listener with the certificate in the files and forwards to target.
func newLink(listener net.Listener, certFile, keyFile, target string, ca *CA) (*Link, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the link: %w", err)
	}
	l := &Link{
		backend: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: ca.Pool, MinVersion: tls.VersionTLS12},
			MaxIdleConnsPerHost: 16,
			DisableCompression:  true,
		},
		stopped: make(chan struct{}),
		more:    make(chan struct{}),
	}
	to := &url.URL{Scheme: "https", Host: target}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery
		},
		Transport: l.backend,
		ErrorLog:  log.New(io.Discard, "", 0), // a homeserver that is down is part of the story
	}
	l.server = &http.Server{
		Handler:           l.handler(proxy),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	go func() {
		defer close(l.stopped)
		_ = l.server.ServeTLS(listener, "", "")
	}()
	return l, nil
}

func (l *Link) handler(forward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut || !strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/send/") {
			forward.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTransactionBytes))
		if err != nil {
			http.Error(w, "the transaction cannot be read", http.StatusBadRequest)
			return
		}
		if l.swallow(body) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"pdus":{}}`)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		forward.ServeHTTP(w, r)
	})
}

// swallow records the updates in a transaction and says whether it is to be lost.
func (l *Link) swallow(body []byte) bool {
	lost := updatesIn(body)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.losing || len(lost) == 0 {
		return false
	}
	l.lost = append(l.lost, lost...)
	close(l.more)
	l.more = make(chan struct{})
	return true
}

// updatesIn returns the device-list and signing-key updates of a transaction; nil for anything unreadable.
func updatesIn(body []byte) []LostEDU {
	var txn struct {
		PDUs []json.RawMessage `json:"pdus"`
		EDUs []struct {
			Type    string          `json:"edu_type"`
			Content json.RawMessage `json:"content"`
		} `json:"edus"`
	}
	if json.Unmarshal(body, &txn) != nil {
		return nil
	}
	var updates []LostEDU
	for _, edu := range txn.EDUs {
		if edu.Type != "m.device_list_update" && edu.Type != "m.signing_key_update" {
			continue
		}
		var content struct {
			UserID   string          `json:"user_id"`
			DeviceID string          `json:"device_id"`
			Deleted  bool            `json:"deleted"`
			Keys     json.RawMessage `json:"keys"`
		}
		_ = json.Unmarshal(edu.Content, &content) // lost all the same; a waiter will not find it
		updates = append(updates, LostEDU{
			Type: edu.Type, UserID: content.UserID, DeviceID: content.DeviceID, Deleted: content.Deleted,
			HasKeys: len(content.Keys) > 0 && string(content.Keys) != "null", PDUs: len(txn.PDUs),
		})
	}
	return updates
}

// LoseDeviceLists tells the link to swallow device-list and signing-key updates from now on, or to pass them again.
func (l *Link) LoseDeviceLists(lose bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losing = lose
}

// Lost returns what has been lost so far, oldest first.
func (l *Link) Lost() []LostEDU {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]LostEDU(nil), l.lost...)
}

// AwaitLost returns as soon as at least n of the lost updates match, counted from the link's beginning.
func (l *Link) AwaitLost(ctx context.Context, n int, match func(LostEDU) bool) error {
	for {
		l.mu.Lock()
		found := 0
		for _, edu := range l.lost {
			if match(edu) {
				found++
			}
		}
		total, more := len(l.lost), l.more
		l.mu.Unlock()
		if found >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the link has lost %d updates, %d of the %d that were waited for: %w", total, found, n, ctx.Err())
		case <-more:
		}
	}
}

// Close ends the link for good, as a firewall would that closes the port, and returns when nothing listens on it.
func (l *Link) Close() error {
	err := l.server.Close()
	<-l.stopped
	l.backend.CloseIdleConnections()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
