// Command document writes the table of keys into the reference of the configuration, docs/configuration.md, from what
// internal/config knows of them. make docs runs it.
package main

import (
	"fmt"
	"os"

	"freshen/internal/config"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: document docs/configuration.md")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func write(path string) error {
	before, err := os.ReadFile(path) //nolint:gosec // a developer names it
	if err != nil {
		return err
	}
	after, err := config.Document(string(before))
	if err != nil || after == string(before) {
		return err
	}
	return os.WriteFile(path, []byte(after), 0o644) //nolint:gosec // the same, and documentation is for everybody
}
