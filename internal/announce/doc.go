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
// since which the response was for, and that no answer can have ended in which lacked it: evidence.go), when the device has asked /keys/query about the target, or when it was carried
// three times under a token that stands still.
//
// Acknowledgements are written behind, every second: losing them repeats an entry, which costs a client one query, and
// misses none. What was carried is known in memory alone, for the same reason; instances that share a database ask each
// other (others.go).
//
// What holds, and is tested against a model:
//
//   - A relevant announcement is carried by every response to the device until it is acknowledged.
//   - It is not carried after an acknowledgement, as long as the process lives; an acknowledgement that was not saved
//     repeats it after a restart, and misses nothing.
//   - It is never carried to a user whom it does not concern. Whether it does is decided once for each announcement and
//     device; a "no" counts only if it was asked for after the announcement.
//   - At most one response is hurried for an announcement and a device, unless that one failed to go out.
//   - What is above the floor of a device and not known to be irrelevant keeps the floor down.
//
// Downsides: under a token that stands still, three responses that all get lost count as heard. Where the homeserver has
// no mutual_rooms, who joins a room within minutes after its members were asked for may not count as a member of it. A
// device whose positions were pruned hears of everything in the stream again.
//
// Lock order: Announcer.mu before device.mu; the locks of the stream and of unseen are leaves. None is held while asking the database or the
// homeserver, or while a poll is woken.
package announce
