package federation

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"freshen"
)

// TestDocumentedLimits: administrators judge by the numbers in the documentation whether a slow or large server can be
// asked at all.
func TestDocumentedLimits(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/federation.md")
	if err != nil {
		t.Fatal(err)
	}
	at := limitsOf(10 * time.Second)
	percent := func(part time.Duration) int { return int(part * 100 / (10 * time.Second)) }
	for _, want := range []string{
		fmt.Sprintf("| %d %%, between %s and %s | %s |", percent(at.discovery), humanDuration(discoveryLeastTime), humanDuration(discoveryMostTime), humanDuration(at.discovery)),
		fmt.Sprintf("several targets share it | %d %% | %s |", percent(at.connect), humanDuration(at.connect)),
		fmt.Sprintf("| the TLS handshake with one address | %d %% | %s |", percent(at.handshake), humanDuration(at.handshake)),
		fmt.Sprintf("before a new one is tried | %d %% | %s |", percent(at.kept), humanDuration(at.kept)),
		fmt.Sprintf("to the end of the answer's headers | %d %% | %s |", percent(at.answer), humanDuration(at.answer)),
		fmt.Sprintf("| the answer's body | %d %% | %s |", percent(at.body), humanDuration(at.body)),
		fmt.Sprintf("Each is at least %s.", humanDuration(stageLeastTime)),
		fmt.Sprintf("at most %s to be connected to; nothing takes longer than %s in all", humanDuration(dialMostTime), humanDuration(requestMostTime)),

		fmt.Sprintf("| the answer's headers | %d KiB |", maxHeaderBytes>>10),
		fmt.Sprintf("| the answer's body | %d MiB.", freshen.MaxDeviceListBytes>>20),
		fmt.Sprintf("| what comes in on the wire for one request | %d MiB |", maxAsked>>20),
		fmt.Sprintf("| what comes in on a kept connection that nobody uses | %d KiB |", maxUnasked>>10),
		fmt.Sprintf("| what comes in during one TLS handshake | %d MiB |", maxHandshake>>20),
		fmt.Sprintf("| a well-known | %d KiB, %d redirects |", wellKnownMaxBytes>>10, wellKnownRedirects),
		fmt.Sprintf("| %s servers and %d MiB each |", thousands(maxCached), maxCachedBytes>>20),
		fmt.Sprintf("| connections to one server | %d, of which %d are kept |", maxConnsPerRoute, maxKeptPerRoute),
		fmt.Sprintf("| connections made for one request | %d |", maxConnects),
		fmt.Sprintf("| connections and lookups in all | %d;", maxSockets),
		fmt.Sprintf("| servers to which connections are kept | %d, those that were used last; %d connections |", maxPools, maxKept),
		fmt.Sprintf("| %d bytes of printable characters; its error code %d |", maxRemoteError, maxErrCode),
		fmt.Sprintf("| a connection, for the next request | %d s |", idleTimeout/time.Second),
		fmt.Sprintf("| that nobody answered for the well-known | %s |", humanDuration(wellKnownErrSilent)),
		fmt.Sprintf("with nothing usable (a 404 above all) | %s |", humanDuration(wellKnownErrAnswered)),
		fmt.Sprintf("else %s; at least %s (also with `no-store`, `no-cache`, or expired), at most %s |",
			humanDuration(wellKnownDefault), humanDuration(wellKnownShortest), humanDuration(wellKnownLongest)),
		fmt.Sprintf("drawn by weight, up to %d of them.", maxTargets),
		"*example.org:8448 " + explainAlert(alertUnrecognizedName, "example.org") + ".*",
		"*example.org:8448 " + noVersion + ".*",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/federation.md should say: %s", want)
		}
	}
}

func thousands(n int) string { return fmt.Sprintf("%d,%03d", n/1000, n%1000) }
