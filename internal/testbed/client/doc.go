// Package client is a Matrix client for tests that really encrypts: mautrix-go's crypto with the pure Go driver. It must
// be built with -tags goolm (without the tag mautrix-go wants the C library libolm), and is empty otherwise.
package client
