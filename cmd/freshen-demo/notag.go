//go:build !goolm

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "freshen-demo was built without its encrypting clients. Run make demo, or go run -tags goolm ./cmd/freshen-demo.")
	os.Exit(1)
}
