// Package jsclient drives clients on matrix-js-sdk, the library of Element Web, from Go: in Node.js, as a child process that
// reads commands from its stdin, and in a page of headless Chromium. Their end-to-end encryption is the Rust engine, compiled
// to WebAssembly, that Element X has too. Only tests use it.
package jsclient
