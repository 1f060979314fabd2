package versions

import (
	"encoding/json"
	"testing"
)

// Clients look for the flag to show a refresh button, and for the rest to work at all.
func TestAdvertise(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"versions":["v1.11"],"unstable_features":{"org.matrix.msc2716":true}}`: `{"versions":["v1.11"],"unstable_features":{"org.matrix.msc2716":true,"org.matrix.msc2638":true}}`,
		`{"versions":["v1.11"]}`:                             `{"versions":["v1.11"],"unstable_features":{"org.matrix.msc2638":true}}`,
		`{"unstable_features": null , "versions":[]}`:        `{"unstable_features": {"org.matrix.msc2638":true} , "versions":[]}`,
		`{"unstable_features":{"org.matrix.msc2638":false}}`: `{"unstable_features":{"org.matrix.msc2638":true}}`,
		`{"unstable_features":[]}`:                           `{"unstable_features":[]}`,
		`{"versions":["v1.11"]`:                              `{"versions":["v1.11"]`,
		`[]`:                                                 `[]`,
		``:                                                   ``,
		`<html>`:                                             `<html>`,
	} {
		if got := string(Advertise([]byte(in))); got != want {
			t.Errorf("%s:\n got %s\nwant %s", in, got, want)
		}
	}
}

// The homeserver's answer is foreign: it must not crash us, nor come out broken.
func FuzzAdvertise(f *testing.F) {
	f.Add([]byte(`{"versions":["v1.11"],"unstable_features":{"a":true}}`))
	f.Add([]byte(`{"unstable_features":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := Advertise(in)
		if json.Valid(in) && !json.Valid(out) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}
