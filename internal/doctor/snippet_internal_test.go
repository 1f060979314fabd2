package doctor

import "testing"

// The lines that the doctor prints lead to freshen wherever it listens.
func TestWhereTheReverseProxyIsToSend(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]upstream{
		"127.0.0.1:8009":             {"127.0.0.1:8009", "http://127.0.0.1:8009", "127.0.0.1:8009"},
		":8009":                      {":8009", "http://127.0.0.1:8009", "127.0.0.1:8009"},
		"unix:/run/f.sock?mode=0666": {"unix:/run/f.sock?mode=0666", "http://unix:/run/f.sock", "unix//run/f.sock"},
		"systemd":                    {"unix:/run/freshen/freshen.sock", "http://unix:/run/freshen/freshen.sock", "unix//run/freshen/freshen.sock"},
		"fd:public":                  {"unix:/run/freshen/freshen.sock", "http://unix:/run/freshen/freshen.sock", "unix//run/freshen/freshen.sock"},
	} {
		if got := proxied(listen); got != want {
			t.Errorf("listen: %s: %+v, want %+v", listen, got, want)
		}
	}
}
