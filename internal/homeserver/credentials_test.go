package homeserver_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"
)

// A token in a log is an account given away.
func TestCredentialsNeverShowTheToken(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/?access_token=s3cret&user_id=@s3cret:x", nil)
	r.Header.Set("Authorization", "Bearer s3cret")
	cred := homeserver.CredentialsOf(r)
	nested := struct{ hidden homeserver.Credentials }{cred}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", cred, &cred, nested)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "cred", cred, "nested", nested)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "cred", cred, "nested", nested)
	if err := json.NewEncoder(&out).Encode([]any{cred, nested}); err != nil {
		t.Fatal(err)
	}
	// As text, as hexadecimal, and as a slice of bytes.
	for _, secret := range []string{"s3cret", fmt.Sprintf("%x", "s3cret"), "115 51 99 114 101 116"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("shows %q:\n%s", secret, out.String())
		}
	}
}

func TestCredentialsIsZero(t *testing.T) {
	if !(homeserver.Credentials{}).IsZero() {
		t.Error("the zero value is not zero")
	}
	for q, want := range map[string]bool{
		"": true, "user_id=@a:b": true, "access_token=": true, "access_token=x": false, "access_token=&access_token=x": false,
	} {
		if got := query(q).IsZero(); got != want {
			t.Errorf("IsZero with ?%s is %v", q, got)
		}
	}
	if bearer("x").IsZero() {
		t.Error("a bearer token counts as none")
	}
}

// One user's identity must never be served from another's entry, whatever moves between the parts of a request.
func TestCredentialsAreKeptApart(t *testing.T) {
	server, client := setup(t)
	server.AddAppservice("as", "@bot:a.example", "@x:a.example", "@y:a.example")
	for _, q := range []string{"user_id=@x:a.example", "user_id=@y:a.example", "", "device_id=@x:a.example"} {
		cred := query("access_token=as&" + q)
		if _, ok := client.Known(cred); ok {
			t.Errorf("?%s is taken for another", q)
		}
		if _, err := client.WhoAmI(t.Context(), cred); err != nil {
			t.Errorf("?%s: %v", q, err)
		}
	}
	if n := server.Calls(hstest.PathWhoAmI); n != 4 {
		t.Errorf("%d questions for four identities", n)
	}
}

// What the client sent twice, or in both places, is the homeserver's to judge: it must see it all.
func TestCredentialsAreForwardedWhole(t *testing.T) {
	server, client := setup(t)
	r := httptest.NewRequest(http.MethodGet, "/?access_token=a&access_token=b&timeout=5", nil)
	r.Header.Add("Authorization", "Bearer c")
	r.Header.Add("Authorization", "Basic d")
	if _, err := client.WhoAmI(t.Context(), homeserver.CredentialsOf(r)); err == nil {
		t.Error("unknown tokens were taken")
	}
	got := server.Recorded(hstest.PathWhoAmI)[0]
	if got.RawQuery != "access_token=a&access_token=b" || fmt.Sprint(got.Header["Authorization"]) != "[Bearer c Basic d]" {
		t.Errorf("forwarded ?%s and %v", got.RawQuery, got.Header["Authorization"])
	}
}

// Known is on the path of every /sync.
func BenchmarkKnown(b *testing.B) {
	server := hstest.New(b)
	server.AddUser("syt_YWxpY2U_abcdefghijklmnopqrst_0abcde", "@alice:a.example", "PHONE")
	client := homeserver.New(server.URL(), nil)
	defer client.CloseIdleConnections()
	r := httptest.NewRequest(http.MethodGet, "/_matrix/client/v3/sync?since=s1_2_3_4&timeout=30000&filter=1", nil)
	r.Header.Set("Authorization", "Bearer syt_YWxpY2U_abcdefghijklmnopqrst_0abcde")
	r.Header.Set("X-Forwarded-For", "192.0.2.1")
	if _, err := client.WhoAmI(b.Context(), homeserver.CredentialsOf(r)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := client.Known(homeserver.CredentialsOf(r)); !ok {
			b.Fatal("not known")
		}
	}
}
