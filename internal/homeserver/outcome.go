package homeserver

import (
	"maunium.net/go/mautrix/id"

	"freshen"
)

// Delivery is a list that the homeserver is to fetch, and to announce to its clients itself.
type Delivery struct {
	Target id.UserID
	// List is what freshen has fetched; nil where that is not at hand, and then nothing is compared with it.
	List *freshen.DeviceList
	// Loose: freshen left out a part of the list, which the homeserver may have taken.
	Loose bool
}

// Hole says why a homeserver's clients do not hear of a list from it.
type Hole string

const (
	// HoleNone is none: the homeserver has the list and has announced what it does announce.
	HoleNone Hole = ""
	// HoleAway: it does not answer, or refuses whatever freshen asks of it. That says nothing of the one list.
	HoleAway Hole = "homeserver_away"
	// HoleNotFetched: it did not fetch the list, mostly since it backs off from the other server.
	HoleNotFetched Hole = "not_fetched"
	// HoleOther: it got another list than freshen.
	HoleOther Hole = "other_list"
	// HoleTooMany: the list is too long for it.
	HoleTooMany Hole = "too_many_devices"
	// HoleNoDevices: it announces no list without devices.
	HoleNoDevices Hole = "no_devices"
	// HoleDevicesGone: it announces no devices that are gone.
	HoleDevicesGone Hole = "devices_gone"
	// HoleKeysGone: it goes on to serve cross-signing keys that are gone.
	HoleKeysGone Hole = "cross_signing_keys_gone"
)

// Passes says whether the same delivery may be made later.
func (h Hole) Passes() bool { return h == HoleAway || h == HoleNotFetched || h == HoleOther }

// Outcome is what came of a delivery. The zero value says that all is well. Sentence is for people, and Err for the log.
type Outcome struct {
	Hole     Hole
	Sentence string
	Err      error
}
