package homeserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// ErrUnrecognized says that the homeserver does not have the route at all (M_UNRECOGNIZED): ask in another way.
var ErrUnrecognized = errors.New("the homeserver does not have that route")

// AnswerError is the homeserver's refusal: a 4xx with a Matrix error. It keeps the answer, so that it can be passed on
// to the client whose credentials were used, as it came.
type AnswerError struct {
	// Asked is what was asked for, in the words of the specification: "whoami".
	Asked  string
	Status int
	// Header holds Content-Type and Retry-After, as far as the homeserver sent them.
	Header http.Header
	Body   []byte
	// ErrCode is the errcode in Body; never empty.
	ErrCode string
}

// Error leaves the body's own text out, which is for the client.
func (e *AnswerError) Error() string {
	return fmt.Sprintf("The homeserver refused %s with %d %s.", e.Asked, e.Status, e.ErrCode)
}

// DownError says that the homeserver gave no usable answer: it could not be reached, did not answer in time, answered
// with 5xx, or with something that is no answer to the question.
type DownError struct {
	// Asked is what was asked for, in the words of the specification: "whoami".
	Asked string
	// Status is that of the unusable answer; 0 if there was none.
	Status int
	// Err is the cause. It never holds the URL that was asked, whose query may hold a token.
	Err error
}

func (e *DownError) Error() string {
	return fmt.Sprintf("The homeserver gave no usable answer to %s: %v.", e.Asked, e.Err)
}

func (e *DownError) Unwrap() error { return e.Err }

// errcodeOf is the errcode of a Matrix error; "" if body is none.
func errcodeOf(body []byte) string {
	var wire struct {
		ErrCode string `json:"errcode"`
	}
	if json.Unmarshal(body, &wire) != nil {
		return ""
	}
	return wire.ErrCode
}
