// Command freshen-demo shows freshen's main job between two real homeservers on this machine. It exits with 0 if every
// step was as it should be, with 1 if one was not, with 2 if it was called wrongly. It must be built with -tags goolm, for
// the encrypting clients; make demo does that.
package main
