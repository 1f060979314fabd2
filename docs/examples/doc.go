// Package examples has what docs/client-guide.md shows to the authors of clients. The end-to-end tests run it, in Go and
// in JavaScript, and hold the guide to its text.
package examples

import _ "embed" // for RefreshJS

// RefreshJS is refresh.mjs, for clients on matrix-js-sdk.
//
//go:embed refresh.mjs
var RefreshJS string
