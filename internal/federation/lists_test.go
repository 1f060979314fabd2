package federation_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// TestOneKeyUnderTwoDevices: a list in which two devices share their identity key, and are signed all the same, arrives
// byte for byte as the server wrote it, or the signatures would be void, and the oddity is counted.
func TestOneKeyUnderTwoDevices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := fedtest.NewPerson("@bob:127.1.0.1:1")
	var written [2]string
	for i := range written {
		keys := p.DeviceKeys("TWIN", i)
		if i == 1 {
			device := fedtest.NewSigner("OTHER", 1)
			keys = fedtest.Object{
				"user_id": p.UserID, "device_id": "OTHER", "algorithms": []string{},
				"keys": fedtest.Object{"ed25519:OTHER": device.Public(), "curve25519:OTHER": identityKey(p.DeviceKeys("TWIN", 0), "TWIN")},
			}
			device.Sign(keys, p.UserID)
		}
		raw, err := json.MarshalIndent(keys, "\t", "  ") // not the form that is signed
		if err != nil {
			t.Fatal(err)
		}
		written[i] = string(raw)
	}
	server := w.homeserver("127.1.0.1:1", "127.1.0.1:1", "127.1.0.1")
	server.SetList(p.UserID, fmt.Appendf(nil, `{"user_id": %q, "stream_id": 5, "devices": [
		{"device_id": "TWIN", "keys": %s}, {"device_id": "OTHER", "keys": %s}]}`, p.UserID, written[0], written[1]))

	list := w.good(p.UserID)
	if len(list.Devices) != 2 || len(list.Dropped) != 0 {
		t.Fatalf("the list has %d devices without %v, want both", len(list.Devices), list.Dropped)
	}
	for i, device := range list.Devices {
		if diff := cmp.Diff(written[i], string(device.Keys)); diff != "" {
			t.Errorf("the keys of %s are not as they were sent (-want +got):\n%s", device.ID, diff)
		}
	}
	if diff := cmp.Diff(map[freshen.Oddity]int{freshen.OddSharedIdentity: 2}, list.Oddities()); diff != "" {
		t.Errorf("odd (-want +got):\n%s", diff)
	}
}

func identityKey(keys fedtest.Object, device string) any {
	all, _ := keys["keys"].(fedtest.Object)
	return all["curve25519:"+device]
}
