package federation

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
)

// FuzzRemoteText: no text of a stranger gets longer than its bound or keeps a control character.
func FuzzRemoteText(f *testing.F) {
	f.Add("M_FORBIDDEN", 10)
	f.Add("\x1b[31m\u202e\xff", 3)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = min(max(limit, 0), 1000)
		if got := clean(text, limit); len(got) > limit || strings.ContainsAny(got, "\x00\x1b\r\n\u202e") {
			t.Fatalf("clean(%q, %d) is %q", text, limit, got)
		}
		if got := errCode(text); len(got) > maxErrCode || strings.ContainsAny(got, " \r\n\"\x1b") {
			t.Fatalf("errCode(%q) is %q", text, got)
		}
		header := http.Header{"Retry-After": {text}, "Cache-Control": {text}, "Age": {text}, "Expires": {text}}
		if got := retryAfter(header, nil, time.Unix(0, 0)); got < 0 || got > maxRetryAfter {
			t.Fatalf("Retry-After %q is %s", text, got)
		}
		if got := wellKnownLifetime(header, time.Unix(0, 0)); got < wellKnownShortest || got > wellKnownLongest {
			t.Fatalf("Cache-Control %q is %s", text, got)
		}
	})
}

// TestCacheIsBounded: a user who asks for thousands of made-up servers, or a server that answers with long names, cannot
// fill the memory.
func TestCacheIsBounded(t *testing.T) {
	c := newCache[int](100, 1<<20)
	now := time.Unix(0, 0)
	for i := range 10_000 {
		c.put(strconv.Itoa(i), i, 0, now.Add(time.Minute))
		if got, ok := c.get(strconv.Itoa(i), now); !ok || got != i {
			t.Fatalf("entry %d is not there right after it was put", i)
		}
	}
	if len(c.entries) != 100 {
		t.Errorf("%d entries are kept, want 100", len(c.entries))
	}
	for i := range 100 {
		c.put(strconv.Itoa(i), i, 100<<10, now.Add(time.Minute))
		if _, ok := c.get(strconv.Itoa(i), now); !ok || c.bytes > 1<<20 {
			t.Fatalf("%d bytes are kept after entry %d", c.bytes, i)
		}
	}
	c.put("huge", 0, 2<<20, now.Add(time.Minute))
	if _, ok := c.get("huge", now); ok {
		t.Error("an entry larger than the cache was kept")
	}
	if _, ok := c.get("99", now.Add(time.Minute)); ok {
		t.Error("an entry is used past its end")
	}
	for i := range 10_000 { // which of the first ones were evicted is chance
		c.get(strconv.Itoa(i), now.Add(time.Hour))
	}
	if c.bytes != 0 || len(c.entries) != 0 {
		t.Errorf("%d bytes in %d entries are counted after all have gone", c.bytes, len(c.entries))
	}
}

// TestShare: one silent step leaves time for the next.
func TestShare(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
	defer cancel()
	if got := share(ctx, 3, time.Minute); got > 3*time.Second || got < 2*time.Second {
		t.Errorf("a third of 9 s is %s", got)
	}
	if got := share(ctx, 3, time.Second); got != time.Second {
		t.Errorf("bounded by a second it is %s", got)
	}
	if got := share(t.Context(), 3, time.Second); got != time.Second {
		t.Errorf("without a deadline it is %s", got)
	}
}

// TestUserAgentIsAHeader: neither the version nor our server's name can add a header to our requests.
func TestUserAgentIsAHeader(t *testing.T) {
	key := NewSigningKey(mxfed.GenerateSigningKey())
	for _, agent := range []string{"freshen/1\r\nX: y", "freshen/1\n", "freshen\x00", "freshen/1 (é)", "freshen\x7f"} {
		if client, err := New(Config{ServerName: "us.test", Key: key, UserAgent: agent}); err == nil {
			client.Close()
			t.Errorf("%q was taken for a User-Agent", agent)
		}
	}
}

func TestHumanDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		10*time.Second + 3*time.Millisecond: "10 s", 200 * time.Millisecond: "0.2 s", 90 * time.Second: "90 s", 24 * time.Hour: "24 h", 5 * time.Minute: "5 min",
	} {
		if got := humanDuration(d); got != want {
			t.Errorf("%s reads %q, want %q", d, got, want)
		}
	}
}
