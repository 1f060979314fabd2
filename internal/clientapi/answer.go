package clientapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"freshen"
	"freshen/internal/homeserver"
)

// The errcodes of the client-server API that freshen uses.
const (
	codeBadJSON      = "M_BAD_JSON"
	codeForbidden    = "M_FORBIDDEN"
	codeGuest        = "M_GUEST_ACCESS_FORBIDDEN"
	codeInvalidParam = "M_INVALID_PARAM"
	codeLimited      = "M_LIMIT_EXCEEDED"
	codeMissingToken = "M_MISSING_TOKEN"
	codeNotFound     = "M_NOT_FOUND"
	codeNotJSON      = "M_NOT_JSON"
	codeTooLarge     = "M_TOO_LARGE"
	codeUnknown      = "M_UNKNOWN"
	codeUnrecognized = "M_UNRECOGNIZED"
)

// fromDestination are the errcodes that another server may put at the top level of our answer. Any other could make a
// client act on its own account: M_UNKNOWN_TOKEN, for one, logs its user out.
var fromDestination = []string{codeNotFound, codeForbidden, codeUnrecognized, codeUnknown}

// answer is an error as it goes to the client.
type answer struct {
	status  int
	errcode string
	message string // a whole sentence
	// retryAfter is when the client may ask again; 0 if it is not told.
	retryAfter time.Duration
	failure    *failureBody
}

type errorBody struct {
	ErrCode      string       `json:"errcode"`
	Error        string       `json:"error"`
	RetryAfterMS int64        `json:"retry_after_ms,omitempty"`
	Failure      *failureBody `json:"org.matrix.msc2638.failure,omitempty"`
}

// failureBody tells a client's program what the destination did.
type failureBody struct {
	Destination string         `json:"destination"`
	Reason      freshen.Reason `json:"reason"`
	Status      int            `json:"status,omitempty"`
	ErrCode     string         `json:"errcode,omitempty"`
	Error       string         `json:"error,omitempty"`
	// RetryAfterMS is when freshen itself tries next.
	RetryAfterMS int64 `json:"retry_after_ms,omitempty"`
}

// answerTo is the row of the HTTP contract for an error; ok is false for a code that has none.
func answerTo(e *freshen.Error) (a answer, ok bool) {
	a = answer{message: e.Message, failure: failureOf(e)}
	switch e.Code {
	case freshen.CodeInvalidUserID:
		a.status, a.errcode = http.StatusBadRequest, codeInvalidParam
	case freshen.CodeBadBody:
		a.status, a.errcode = http.StatusBadRequest, codeNotJSON
	case freshen.CodeGuest:
		a.status, a.errcode = http.StatusForbidden, codeGuest
	case freshen.CodeForbidden:
		a.status, a.errcode = http.StatusForbidden, codeForbidden
	case freshen.CodeLimited:
		a.status, a.errcode, a.retryAfter = http.StatusTooManyRequests, codeLimited, e.RetryAfter
	case freshen.CodeRemote:
		a.status, a.errcode = ofDestination(e.Failure)
	case freshen.CodeHomeserverDown:
		a.status, a.errcode = http.StatusBadGateway, codeUnknown
	case freshen.CodeDatabaseAway:
		a.status, a.errcode = http.StatusServiceUnavailable, codeUnknown
	default:
		return answer{}, false
	}
	return a, true
}

func ofDestination(f *freshen.Failure) (status int, errcode string) {
	switch {
	case f == nil:
		return http.StatusBadGateway, codeUnknown
	case f.Reason == freshen.ReasonDenied:
		return http.StatusForbidden, codeForbidden
	case f.Reason == freshen.ReasonTimeout:
		return http.StatusGatewayTimeout, codeUnknown
	case f.Reason == freshen.ReasonHTTP && f.Status == http.StatusNotFound && f.ErrCode == codeNotFound:
		return http.StatusNotFound, codeNotFound
	case f.Reason == freshen.ReasonHTTP && slices.Contains(fromDestination, f.ErrCode):
		return http.StatusBadGateway, f.ErrCode
	}
	return http.StatusBadGateway, codeUnknown
}

func failureOf(e *freshen.Error) *failureBody {
	if e.Failure == nil {
		return nil
	}
	body := &failureBody{
		Destination: e.Failure.Destination,
		Reason:      e.Failure.Reason,
		Status:      e.Failure.Status,
		ErrCode:     e.Failure.ErrCode,
		Error:       e.Failure.RemoteError,
	}
	if e.Code == freshen.CodeRemote {
		body.RetryAfterMS = milliseconds(e.RetryAfter)
	}
	return body
}

// milliseconds and seconds round up: who comes back when told to must not be early.
func milliseconds(d time.Duration) int64 { return ceil(d, time.Millisecond) }
func seconds(d time.Duration) int64      { return ceil(d, time.Second) }

func ceil(d, unit time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/unit) + 1
}

// writeError is the one place that errors of our own are written.
func writeError(w http.ResponseWriter, a answer) {
	if a.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(seconds(a.retryAfter), 10))
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // for people; it is never shown as HTML
	// No error: the body holds strings and integers only.
	_ = encoder.Encode(errorBody{a.errcode, a.message, milliseconds(a.retryAfter), a.failure})
	write(w, a.status, bytes.TrimSuffix(body.Bytes(), []byte("\n")))
}

// relay passes the homeserver's refusal on, byte for byte. It is known to be JSON, whatever its Content-Type.
func relay(w http.ResponseWriter, refusal *homeserver.AnswerError) {
	if retryAfter := refusal.Header.Get("Retry-After"); retryAfter != "" {
		w.Header().Set("Retry-After", retryAfter)
	}
	write(w, refusal.Status, refusal.Body)
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// An error means that the client has gone, and nobody is left to be told.
	_, _ = w.Write(body) //nolint:gosec // G705: it goes out as JSON, and nosniff says so
}

// setCommonHeaders puts on every answer what the client-server API demands for browsers ("Web Browser Clients").
// Retry-After is exposed besides, since browsers hide it from the page otherwise.
func setCommonHeaders(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization")
	h.Set("Access-Control-Expose-Headers", "Retry-After")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}
