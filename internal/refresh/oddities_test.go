package refresh_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation/fedtest"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/store"
)

// always answers with one list.
type always []byte

func (a always) FetchDeviceList(_ context.Context, target id.UserID) (*freshen.DeviceList, error) {
	return freshen.ParseDeviceList(a, target)
}

// An administrator reads once, and not at every refresh, why clients ignore a device; the device stays in the list, as it
// does in the homeserver's.
func TestOdditiesAreToldOnce(t *testing.T) {
	p := fedtest.NewPerson(bob)
	keys := p.DeviceKeys("A", 1)
	keys["algorithms"] = []string{"changed.after.signing"}
	body, err := json.Marshal(fedtest.Object{"user_id": bob, "stream_id": 1, "devices": []fedtest.Object{{"device_id": "A", "keys": keys}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "freshen.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		var logged bytes.Buffer
		log := slog.New(slog.NewTextHandler(&logged, nil))
		e := refresh.New(refresh.Config{
			ServerName: "a.example", Timeout: 10 * time.Second, ServerAllowed: func(string) bool { return true },
			PerUser: limit.Rate{Every: time.Second, Burst: 10},
			Retry:   retry.Policy{First: time.Second, Most: time.Hour, GiveUpAfter: time.Hour},
		}, s, always(body), &script{}, log)
		for range 3 {
			if err := e.Refresh(t.Context(), freshen.Requester{UserID: "@a:a.example"}, bob, homeserver.Credentials{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		e.Close()
		if got := bytes.Count(logged.Bytes(), []byte("odd=map[bad_signature:1]")); got != 1 {
			t.Errorf("the log tells it %d times, and should once:\n%s", got, &logged)
		}
		list, err := s.KeptList(t.Context(), bob)
		if err != nil || len(list.Devices) != 1 {
			t.Errorf("%v is kept, and %v", list, err)
		}
	})
}
