package freshen

import (
	"fmt"
	"net/http"
	"time"
)

// Code says to programs what kind of error this is; each has one row in the HTTP contract (docs/architecture.md).
type Code string

const (
	// CodeInvalidUserID: the target is no user ID. 400, M_INVALID_PARAM.
	CodeInvalidUserID Code = "invalid_user_id"
	// CodeBadBody: the request's body is no JSON object. 400, M_NOT_JSON or M_BAD_JSON.
	CodeBadBody Code = "bad_body"
	// CodeGuest: guests may not refresh. 403, M_GUEST_ACCESS_FORBIDDEN.
	CodeGuest Code = "guest"
	// CodeForbidden: the configuration forbids this destination or target. 403, M_FORBIDDEN.
	CodeForbidden Code = "forbidden"
	// CodeLimited: too many requests; RetryAfter says when to come back. 429, M_LIMIT_EXCEEDED.
	CodeLimited Code = "limited"
	// CodeRemote: the destination failed; Failure says how. 502, 504, 403 or 404, see [Failure].
	CodeRemote Code = "remote"
	// CodeHomeserverDown: the homeserver behind freshen gave no usable answer. 502, M_UNKNOWN.
	CodeHomeserverDown Code = "homeserver_down"
	// CodeDatabaseAway: freshen's own database is away, so nothing can be promised. 503, M_UNKNOWN.
	CodeDatabaseAway Code = "database_away"
)

// Error is the one error type that reaches a person: a code for programs, a sentence for people. What only the log may
// see is in Err.
type Error struct {
	Code Code
	// Message is a whole English sentence: what failed, where, and what to do or when freshen tries next. It never
	// holds a token or a key, and remote text only bounded, stripped and marked as the remote's.
	Message string
	// Failure is set for CodeRemote and, where a destination's addresses may not be dialled, for CodeForbidden.
	Failure *Failure
	// RetryAfter is when the caller may ask again (CodeLimited), or when freshen itself tries next (CodeRemote); 0 if
	// neither is known.
	RetryAfter time.Duration
	// Err is the cause, for the log.
	Err error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s (%s): %v", e.Message, e.Code, e.Err)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Code)
}

func (e *Error) Unwrap() error { return e.Err }

// Reason says how a destination failed. The values are the "reason" of org.matrix.msc2638.failure.
type Reason string

const (
	ReasonDNS         Reason = "dns"          // name lookup
	ReasonConnect     Reason = "connect"      // no connection, or it broke before an answer
	ReasonTLS         Reason = "tls"          // handshake or certificate
	ReasonTimeout     Reason = "timeout"      // no whole answer in time
	ReasonHTTP        Reason = "http"         // an answer other than 200
	ReasonBadResponse Reason = "bad_response" // 200, but no device list of that user
	ReasonDenied      Reason = "denied"       // all its addresses lie in networks that may not be dialled
)

// Blame says whom a failure counts against, and so what backs off.
type Blame int

const (
	// BlameDestination backs off the whole server: it is down, overloaded or misconfigured.
	BlameDestination Blame = iota
	// BlameUser backs off this one target: the server is fine and answered about them.
	BlameUser
	// BlameNobody owes nothing: the failure is our own administrator's wish.
	BlameNobody
)

// Failure is what a destination did instead of answering with a device list. All text in it is safe to show: bounded,
// without control characters.
type Failure struct {
	Destination string
	Reason      Reason
	// Sentence says in plain English what failed, where, and what led there, without the next try: "The well-known of
	// example.org names matrix.example.org:8448, which refused the connection."
	Sentence string
	// Status is the HTTP status for ReasonHTTP and, where there was one, for ReasonBadResponse; else 0.
	Status int
	// ErrCode and RemoteError are the destination's own Matrix error, if its body held one. ErrCode is at most 64 bytes
	// of [A-Za-z0-9_.], RemoteError at most 256 bytes of printable text.
	ErrCode, RemoteError string
	// RetryAfter is what the destination asked for in Retry-After or retry_after_ms, at most a day; 0 if it did not.
	RetryAfter time.Duration
	// Err is the cause, for the log.
	Err error
}

func (f *Failure) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s (%s): %v", f.Sentence, f.Reason, f.Err)
	}
	return fmt.Sprintf("%s (%s)", f.Sentence, f.Reason)
}

func (f *Failure) Unwrap() error { return f.Err }

// Blames sorts the failure into the classes of the retry state machine. The destination is to blame for DNS, connect,
// TLS and timeout, for 3xx, 401, 429 and 5xx, and for any other status whose body is no Matrix error (deprovisioned
// hosts answer 403 and 404 in HTML). The user is to blame for 4xx with a Matrix error and for a malformed list.
func (f *Failure) Blames() Blame {
	switch f.Reason {
	case ReasonDenied:
		return BlameNobody
	case ReasonBadResponse:
		return BlameUser
	case ReasonHTTP:
		switch {
		case f.Status == http.StatusUnauthorized, f.Status == http.StatusTooManyRequests:
			return BlameDestination
		case f.Status >= 400 && f.Status < 500 && f.ErrCode != "":
			return BlameUser
		}
	}
	return BlameDestination
}
