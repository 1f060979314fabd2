package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// shownDevice is a device as a person compares it with what stands on its screen.
type shownDevice struct {
	ID   id.DeviceID `json:"device_id"`
	Name string      `json:"display_name,omitempty"`
	// Fingerprint is its ed25519 key in unpadded base64; empty where it has none that can be used.
	Fingerprint string `json:"fingerprint,omitempty"`
	// SignedByOwner: by the user's self-signing key, which their master key has signed.
	SignedByOwner bool `json:"signed_by_owner"`
	// SignedByItself: its own signature holds. Clients ignore a device of which that is not so.
	SignedByItself bool `json:"signed_by_itself"`
}

func (d shownDevice) standing() string {
	switch {
	case !d.SignedByItself:
		return "unusable: its own signature does not hold"
	case d.SignedByOwner:
		return "signed by its owner"
	}
	return "not signed by its owner"
}

// read takes the target's devices out of an answer of /keys/query, and checks who signed them.
func (r *refreshed) read(answer []byte) error {
	var said struct {
		DeviceKeys map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
		Masters    map[id.UserID]json.RawMessage                 `json:"master_keys"`
		Signers    map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
		Failures   map[string]json.RawMessage                    `json:"failures"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return fmt.Errorf("the devices are not known: the answer of /keys/query is not what it should be: %w", err)
	}
	devices, known := said.DeviceKeys[r.Target]
	if _, failed := said.Failures[freshen.Destination(r.Target)]; failed && !known {
		return fmt.Errorf("the devices are not known: the homeserver could not ask %s for them", freshen.Destination(r.Target))
	}
	owner := freshen.DeviceList{UserID: r.Target, MasterKey: said.Masters[r.Target], SelfSigningKey: said.Signers[r.Target]}
	r.CrossSigning = owner.SelfSigningKey != nil && len(owner.Oddities()) == 0
	for device, keys := range devices {
		alone := owner
		alone.Devices = []freshen.Device{{ID: device, Keys: keys}}
		odd := alone.Oddities()
		shown := shownDevice{
			ID:             device,
			SignedByItself: odd[freshen.OddNoSigningKey]+odd[freshen.OddUnsigned]+odd[freshen.OddBadSignature]+odd[freshen.OddUnchecked] == 0,
		}
		shown.SignedByOwner = shown.SignedByItself && r.CrossSigning && odd[freshen.OddNotCrossSigned] == 0
		var wire struct {
			Keys     map[string]string `json:"keys"`
			Unsigned struct {
				Name string `json:"device_display_name"`
			} `json:"unsigned"`
		}
		if json.Unmarshal(keys, &wire) == nil {
			shown.Fingerprint, shown.Name = wire.Keys["ed25519:"+string(device)], wire.Unsigned.Name
		}
		r.Devices = append(r.Devices, shown)
	}
	slices.SortFunc(r.Devices, func(a, b shownDevice) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return nil
}

// inFours writes a fingerprint as clients show it.
func inFours(fingerprint string) string {
	var b strings.Builder
	for i, r := range printable(fingerprint) {
		if i > 0 && i%4 == 0 {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// printable takes out what a stranger could steer a terminal with, and shortens what is longer than any name needs.
func printable(text string) string {
	const most = 100
	text = sentence(text)
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// sentence is printable for what may be long.
func sentence(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}
