package dial_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"freshen/internal/federation/dial"
)

// The documentation must name each refused network, and no other: administrators open networks after it.
func TestDocumentedNetworks(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/federation.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("| network | what it is | set aside by |\n|---|---|---|\n")
	for _, network := range dial.RefusedNetworks() {
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", network.Prefix, network.What, network.Source)
	}
	want.WriteString("\n")
	if !strings.Contains(string(text), want.String()) {
		t.Errorf("docs/federation.md should hold this table:\n\n%s", &want)
	}
}
