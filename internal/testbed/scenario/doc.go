// Package scenario tells freshen's main job as one story between two real homeservers: a device list goes stale, a refresh
// mends it, and what could not be mended at once is mended later. The demo shows the story to a person; the end-to-end
// test requires it. Like its clients, it must be built with -tags goolm, and is empty otherwise.
package scenario
