package owed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"freshen/internal/listen"
)

const (
	// maxRequest and maxAnswer bound what is read: a request, and an answer with the most debts, each with the longest
	// sentences.
	maxRequest = 4 << 10
	maxAnswer  = 64 << 20
	// askTimeout bounds one question to the admin listener.
	askTimeout = 30 * time.Second
)

type countBody struct {
	Debts int64 `json:"debts"`
}

type errorBody struct {
	Error string `json:"error"`
}

// Handler serves GET /owed, POST /owed/drop and POST /owed/retry, whose body is a [Whose]. ledger is nil while the
// database is away. What a browser sends for a page of somebody else's is refused.
func Handler(ledger func() *Ledger, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	serve := func(pattern string, answer func(context.Context, *Ledger, *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			l := ledger()
			if l == nil {
				write(w, http.StatusServiceUnavailable, errorBody{"freshen's database is away, and what is owed stands there."})
				return
			}
			switch body, err := answer(r.Context(), l, r); {
			case err == nil:
				write(w, http.StatusOK, body)
			case errors.Is(err, errBadRequest):
				write(w, http.StatusBadRequest, errorBody{err.Error()})
			default:
				log.Error("what is owed cannot be shown or changed", "path", r.URL.Path, "err", err)
				write(w, http.StatusServiceUnavailable, errorBody{"freshen's database does not answer: its log says why."})
			}
		})
	}
	serve("GET /owed", func(ctx context.Context, l *Ledger, _ *http.Request) (any, error) { return l.List(ctx) })
	serve("POST /owed/drop", func(ctx context.Context, l *Ledger, r *http.Request) (any, error) {
		whose, err := read(r)
		if err != nil {
			return nil, err
		}
		n, err := l.Drop(ctx, whose)
		if err == nil {
			log.Info("dropped what is owed, as the administrator wished", "whose", whose.String(), "debts", n)
		}
		return countBody{n}, err
	})
	serve("POST /owed/retry", func(ctx context.Context, l *Ledger, r *http.Request) (any, error) {
		whose, err := read(r)
		if err != nil {
			return nil, err
		}
		n, err := l.Retry(ctx, whose)
		return countBody{n}, err
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

var errBadRequest = errors.New(`the body must be JSON (Content-Type: application/json), {"target": "@user:server"} or {"server": "server"}`)

func read(r *http.Request) (w Whose, err error) {
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(kind) != "application/json" {
		return w, errBadRequest
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err != nil || json.Unmarshal(body, &w) != nil || (w.Target == "") == (w.Server == "") {
		return Whose{}, errBadRequest
	}
	if parsed, err := ParseWhose(w.String()); err != nil || parsed != w {
		return Whose{}, errBadRequest
	}
	return w, nil
}

func write(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error means that the client has gone
}

// ErrNotRunning says that nothing listens at the admin address.
var ErrNotRunning = errors.New("freshen does not run")

// Client asks the admin listener of a running freshen.
type Client struct {
	// Address is admin.listen; Base is how it is reached, and HTTP connects there.
	Address, Base string
	HTTP          *http.Client
}

// List asks what is owed. The error is [ErrNotRunning] where nobody listens.
func (c *Client) List(ctx context.Context) (*List, error) {
	list := new(List)
	return list, c.ask(ctx, http.MethodGet, "/owed", nil, list)
}

// Drop is [Ledger.Drop].
func (c *Client) Drop(ctx context.Context, whose Whose) (n int64, err error) {
	return c.change(ctx, "/owed/drop", whose)
}

// Retry is [Ledger.Retry].
func (c *Client) Retry(ctx context.Context, whose Whose) (n int64, err error) {
	return c.change(ctx, "/owed/retry", whose)
}

func (c *Client) change(ctx context.Context, path string, whose Whose) (int64, error) {
	body, err := json.Marshal(whose)
	if err != nil {
		return 0, err
	}
	var count countBody
	err = c.ask(ctx, http.MethodPost, path, body, &count)
	return count.Debts, err
}

func (c *Client) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, c.Base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.HTTP.Do(request)
	if listen.Nobody(err) {
		return ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("the freshen at admin.listen (%s) cannot be asked: %w", c.Address, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("the answer of the freshen at admin.listen (%s) broke off: %w", c.Address, err)
	}
	if response.StatusCode != http.StatusOK {
		var told errorBody
		if json.Unmarshal(data, &told) != nil || told.Error == "" {
			told.Error = "is it a freshen, and as new as this one?"
		}
		return fmt.Errorf("what listens at admin.listen (%s) answered %d: %s", c.Address, response.StatusCode, told.Error)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("what listens at admin.listen (%s) did not answer as freshen does: %w", c.Address, err)
	}
	return nil
}
