package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/config"
	"freshen/internal/federation"
	"freshen/internal/homeserver"
	"freshen/internal/listen"
)

// envToken is the variable that refresh takes the access token from. There is no flag for it: every user of the machine
// can read the arguments of a command.
const envToken = "FRESHEN_TOKEN"

const (
	// refreshWithin bounds a question, which may take as long as federation.timeout allows.
	refreshWithin = 6 * time.Minute
	// maxKeys bounds the answer of /keys/query.
	maxKeys = 64 << 20
)

type refreshCmd struct {
	Target    string `arg:"" name:"user" help:"Whose device list to refresh: @user:server."`
	URL       string `name:"url" placeholder:"URL" help:"Where to ask: the site's public base URL. Without it: the freshen of the configuration."`
	TokenFile string `placeholder:"FILE" help:"A file that holds the access token of a local user. Without it: FRESHEN_TOKEN, or else a prompt."`
	JSON      bool   `name:"json" help:"For programs."`
}

// refreshed is what a refresh brought, as --json tells it.
type refreshed struct {
	Target id.UserID `json:"target"`
	// Status is the HTTP status: 202 where the list is fresh.
	Status  int    `json:"status"`
	ErrCode string `json:"errcode,omitempty"`
	// Error is a sentence.
	Error string `json:"error,omitempty"`
	// Failure is org.matrix.msc2638.failure as it came.
	Failure json.RawMessage `json:"failure,omitempty"`
	// CrossSigning says whether the user has cross-signing keys of which one signs the other.
	CrossSigning bool          `json:"cross_signing"`
	Devices      []shownDevice `json:"devices"`
}

// Run asks as a client would. It fails where the refresh did, after showing the devices that are known all the same.
func (c *refreshCmd) Run(line *cli, to console) error {
	target, _, err := freshen.ParseUserID(c.Target)
	if err != nil {
		return fmt.Errorf("%q is no user ID such as @bob:example.org", c.Target)
	}
	asker, err := c.asker(line)
	if err != nil {
		return err
	}
	defer asker.http.CloseIdleConnections()
	if asker.token, err = c.token(to); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), refreshWithin)
	defer cancel()
	result, err := asker.refresh(ctx, target)
	if err != nil {
		return err
	}
	if result.Status == http.StatusUnauthorized {
		return fmt.Errorf("the homeserver does not accept the access token (%s): %s", printable(result.ErrCode), sentence(result.Error))
	}
	keysErr := asker.devices(ctx, result)
	if c.JSON {
		if err := writeJSON(to.out, result); err != nil {
			return err
		}
	} else {
		show(to.out, result, keysErr == nil)
	}
	if keysErr != nil {
		return keysErr
	}
	if result.Status != http.StatusAccepted {
		return errors.New("the device list was not refreshed")
	}
	return nil
}

// token takes the access token from the file, the environment or a prompt that does not show it.
func (c *refreshCmd) token(to console) (string, error) {
	var text string
	switch fd := int(os.Stdin.Fd()); {
	case c.TokenFile != "":
		token, err := homeserver.ReadToken(c.TokenFile)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		return token, nil
	case os.Getenv(envToken) != "":
		text = os.Getenv(envToken)
	case term.IsTerminal(fd):
		fmt.Fprint(to.err, "Access token of a local user (not shown): ")
		read, err := term.ReadPassword(fd)
		fmt.Fprintln(to.err)
		if err != nil {
			return "", fmt.Errorf("the access token cannot be read: %w", err)
		}
		text = string(read)
	default:
		return "", errors.New("there is no access token: name a file with --token-file, or set " + envToken)
	}
	token, ok := homeserver.Token(text)
	if !ok {
		return "", errors.New("the access token is empty, or no single word")
	}
	return token, nil
}

// asker is a client of the site.
type asker struct {
	base, token string
	http        *http.Client
}

func (c *refreshCmd) asker(line *cli) (*asker, error) {
	cfg, _, err := line.load()
	if err != nil && c.URL == "" {
		return nil, err
	}
	security := &tls.Config{MinVersion: tls.VersionTLS12}
	base, dial := c.URL, (&net.Dialer{}).DialContext
	if err == nil {
		if security.RootCAs, err = federation.LoadRoots(cfg.Federation.CAFile); err != nil {
			return nil, err
		}
		if base == "" {
			if base, dial, err = listen.Reach(cfg.Listen, dial); err != nil {
				return nil, fmt.Errorf("listen is %s, and %w: say where to ask with --url, or set %s", cfg.Listen, err, config.EnvListen)
			}
		}
	}
	if u, err := url.Parse(base); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("--url must be a URL such as https://matrix.example.org")
	}
	return &asker{base: strings.TrimRight(base, "/"), http: &http.Client{
		Transport:     &http.Transport{DialContext: dial, TLSClientConfig: security, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is not for others
	}}, nil
}

func (a *asker) post(ctx context.Context, path, body string) (status int, answer []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+a.token)
	request.Header.Set("Content-Type", "application/json")
	response, err := a.http.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("%s cannot be asked: %w", a.base, homeserver.WithoutURL(err))
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(response.Body, maxKeys))
	if err != nil {
		return 0, nil, fmt.Errorf("the answer of %s broke off: %w", a.base, err)
	}
	return response.StatusCode, answer, nil
}

func (a *asker) refresh(ctx context.Context, target id.UserID) (*refreshed, error) {
	status, answer, err := a.post(ctx, "/_matrix/client/v3/user/"+url.PathEscape(string(target))+"/devices/refresh", "{}")
	if err != nil {
		return nil, err
	}
	var told struct {
		ErrCode string          `json:"errcode"`
		Error   string          `json:"error"`
		Failure json.RawMessage `json:"org.matrix.msc2638.failure"`
	}
	err = json.Unmarshal(answer, &told)
	if err != nil || (status != http.StatusAccepted && told.ErrCode == "") || told.ErrCode == "M_UNRECOGNIZED" && told.Failure == nil {
		return nil, fmt.Errorf("%s knows no such route (it answered %d): is freshen there, and does the reverse proxy send it /_matrix/?", a.base, status)
	}
	return &refreshed{Target: target, Status: status, ErrCode: told.ErrCode, Error: told.Error, Failure: told.Failure, Devices: []shownDevice{}}, nil
}

// devices asks for the target's keys as clients do, and so gets what they get.
func (a *asker) devices(ctx context.Context, into *refreshed) error {
	question, err := json.Marshal(map[string]any{"device_keys": map[id.UserID][]string{into.Target: {}}})
	if err != nil {
		return err
	}
	status, answer, err := a.post(ctx, "/_matrix/client/v3/keys/query", string(question))
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("the devices are not known: /keys/query answered %d", status)
	}
	return into.read(answer)
}

func show(w io.Writer, r *refreshed, keys bool) {
	if r.Status == http.StatusAccepted {
		fmt.Fprintf(w, "The device list of %s is fresh.\n", r.Target)
	} else {
		fmt.Fprintln(w, sentence(r.Error))
	}
	if !keys {
		return
	}
	if len(r.Devices) == 0 {
		fmt.Fprintln(w, "\nThey have no devices with encryption keys.")
		return
	}
	if !r.CrossSigning {
		fmt.Fprintln(w, "\nThey have no cross-signing keys, so no device can be signed by its owner.")
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tFINGERPRINT\t\tNAME")
	for _, d := range r.Devices {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", printable(string(d.ID)), inFours(d.Fingerprint), d.standing(), printable(d.Name))
	}
	_ = table.Flush() // what cannot be written cannot be told of
}
