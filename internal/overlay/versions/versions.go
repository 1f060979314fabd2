// Package versions tells clients that MSC2638 is there, in the homeserver's own answer to GET /_matrix/client/versions.
package versions

import "freshen/internal/overlay/rawjson"

// Feature is the unstable feature flag of MSC2638.
const Feature = "org.matrix.msc2638"

// Advertise sets the flag in unstable_features of answer, which it makes if it is absent or null. Everything else stays
// byte for byte. An answer that is no JSON object, or whose unstable_features is none, comes back as it is.
func Advertise(answer []byte) []byte {
	edited, err := rawjson.Rewrite(answer, []rawjson.Edit{{
		Name:  "unstable_features",
		Apply: rawjson.RewriteMember([]rawjson.Edit{{Name: Feature, Apply: rawjson.Set([]byte("true"))}}),
	}})
	if err != nil {
		return answer
	}
	return edited
}
