package freshen_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"freshen"
)

// TestParseUserID: a historical ID that is refused locks a user out; one that gets through and should not makes clients
// lose a whole sync.
func TestParseUserID(t *testing.T) {
	long := "@" + strings.Repeat("a", 255-len("@:b.org")) + ":b.org"
	for text, server := range map[string]string{
		"@bob:b.org": "b.org", "@foo/bar:b.org": "b.org", "@Bob:b.org": "b.org", "@a+b=c%d:b.org": "b.org", "@a:b.org:8448": "b.org:8448",
		"@a:[::1]:1": "[::1]:1", "@a:1.2.3.4": "1.2.3.4", "@!:b.org": "b.org", "@~:b.org": "b.org", "@@:b.org": "b.org", "@a:localhost": "localhost", long: "b.org",
	} {
		user, got, err := freshen.ParseUserID(text)
		if err != nil || got != server || string(user) != text {
			t.Errorf("%q: %q, %q, %v; want the server %q", text, user, got, err, server)
		}
		if destination := freshen.Destination(user); destination != server {
			t.Errorf("%q: the destination is %q, want %q", text, destination, server)
		}
	}
	for _, text := range []string{
		"", "bob", "bob:b.org", "@bob", "@:b.org", "@bob:", "@bob:b_org", "@bob:b.org:", "@bob:b.org:0", "@bob:b.org:65536", "@bob:b.org:1:2", "@bob:[::1", "@bob:[1.2.3.4]", "@bob:[...]", "@bob:[abcd]:1", "@bob:b.org/",
		"@b b:b.org", "@b\nb:b.org", "@b\x00b:b.org", "@b\x7fb:b.org", "@bé:b.org", "@bob:bé.org", "@b\xff:b.org", "#bob:b.org", long + "x", "@bob:http://b.org", "@bob:b.org?x", "@bob: b.org",
	} {
		user, server, err := freshen.ParseUserID(text)
		if user != "" || server != "" {
			t.Errorf("%q was read as %q of %q", text, user, server)
		}
		e, ok := errors.AsType[*freshen.Error](err)
		if !ok || e.Code != freshen.CodeInvalidUserID || (len(text) > 3 && strings.Contains(e.Message, text)) {
			t.Errorf("%q: the error is %v", text, err)
		}
	}
}

// FuzzParseUserID: nothing that could hurt a client in device_lists.changed is ever accepted.
func FuzzParseUserID(f *testing.F) {
	for _, s := range []string{"@bob:b.org", "@a:[::1]:1", "@a:1.2.3.4:5", "@:b", "@a:b:99999", "@é:b", "@a\x00:b", "@a/b%2F:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		user, server, err := freshen.ParseUserID(text)
		if err != nil {
			return
		}
		if string(user) != text || len(text) > freshen.MaxUserIDLength || !freshen.ValidServerName(server) || freshen.Destination(user) != server {
			t.Fatalf("%q: %q of %q", text, user, server)
		}
		for i := range len(text) {
			if text[i] < 0x21 || text[i] > 0x7e {
				t.Fatalf("%q was accepted", text)
			}
		}
	})
}

// TestBlames: the wrong blame either hammers a server that is down, or holds back all users of one that is up.
func TestBlames(t *testing.T) {
	for _, row := range []struct {
		failure freshen.Failure
		want    freshen.Blame
	}{
		{freshen.Failure{Reason: freshen.ReasonDNS}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonConnect}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonTLS}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonTimeout}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonDenied}, freshen.BlameNobody},
		{freshen.Failure{Reason: freshen.ReasonBadResponse, Status: 200}, freshen.BlameUser},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: 302}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusUnauthorized, ErrCode: "M_UNAUTHORIZED"}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusTooManyRequests, ErrCode: "M_LIMIT_EXCEEDED"}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusForbidden, ErrCode: "M_FORBIDDEN"}, freshen.BlameUser},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusForbidden}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusNotFound, ErrCode: "M_NOT_FOUND"}, freshen.BlameUser},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusNotFound}, freshen.BlameDestination},
		{freshen.Failure{Reason: freshen.ReasonHTTP, Status: http.StatusBadGateway, ErrCode: "M_UNKNOWN"}, freshen.BlameDestination},
	} {
		if got := row.failure.Blames(); got != row.want {
			t.Errorf("%s %d %s blames %d, want %d", row.failure.Reason, row.failure.Status, row.failure.ErrCode, got, row.want)
		}
	}
}

// TestErrorsKeepTheirCause: the log must show why, and callers must be able to ask.
func TestErrorsKeepTheirCause(t *testing.T) {
	cause := errors.New("the cause")
	for _, err := range []error{
		&freshen.Error{Code: freshen.CodeRemote, Message: "It failed.", Err: cause},
		&freshen.Failure{Reason: freshen.ReasonDNS, Sentence: "It failed.", Err: cause},
	} {
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), "the cause") || !strings.Contains(err.Error(), "It failed.") {
			t.Errorf("%v does not hold its sentence and its cause", err)
		}
	}
}
