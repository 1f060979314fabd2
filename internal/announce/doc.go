// Package announce knows what each device is owed: which targets' device lists have changed, by the announcement
// stream, that the device has not surely heard of.
//
// A device is owed an announcement if its position is above what the device has acknowledged, and if it is for the
// device's user: by name, because they asked, or because they share a room with the target (package rooms). An answer
// of the homeserver that is still awaited delays nothing: the announcement goes out with a later response.
//
// One announcement on its way to one device:
//
//	announced ──▶ owed ──▶ carried in a response ──▶ acknowledged
//	                ▲            │  the same since comes again: the response was lost
//	                └────────────┘
//
// It is acknowledged when the device syncs with the next_batch of a response that carried it (and that is not the
// since which the response was for), when the device has asked /keys/query about the target, or when it was carried
// three times under a token that stands still.
//
// Acknowledgements are written behind, every second: losing them repeats an entry, which costs a client one query, and
// misses none. What was carried is known in memory alone, for the same reason.
//
// Lock order: Announcer.mu before device.mu. Neither is held while asking the database or the homeserver.
package announce
