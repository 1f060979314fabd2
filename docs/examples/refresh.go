package examples

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Refresh asks user's own server for their devices, once, and returns the sentence to show. The news itself comes through /sync.
func Refresh(ctx context.Context, client *mautrix.Client, user id.UserID) string {
	_, err := client.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodPost, URL: client.BuildClientURL("v3", "user", user, "devices", "refresh"),
		RequestJSON: struct{}{}, MaxAttempts: 1, // a 502 is the answer here; freshen tries again by itself
	})
	var answer mautrix.HTTPError
	switch {
	case err == nil:
		return "The devices were asked for; what is new comes with the next sync."
	case !errors.As(err, &answer) || answer.RespError == nil:
		return "Your homeserver cannot be reached."
	}
	failure, _ := answer.RespError.ExtraData["org.matrix.msc2638.failure"].(map[string]any)
	sentences := map[any]string{
		"dns": "The address of %s cannot be found.", "connect": "%s cannot be reached.",
		"tls": "No secure connection to %s is possible.", "timeout": "%s takes too long to answer.",
		"http": "%s answered with an error.", "bad_response": "%s sent something that is no device list.",
		"denied": "Your homeserver does not talk to %s.",
	}
	sentence := answer.RespError.Err // plain English, and all there is for 400, 403, 404, 429 and 503 without a failure
	if known := sentences[failure["reason"]]; known != "" {
		sentence = fmt.Sprintf(known, failure["destination"])
	}
	if failure["retry_after_ms"] != nil {
		sentence += " Your homeserver goes on trying by itself."
	}
	return sentence
}
