package jsclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Host runs the code of JavaScript clients, any number of them. Close it.
type Host struct {
	engine engine
}

// engine is what carries a command to where the code runs, and its answer back.
type engine interface {
	// do returns the answer to a command, which is a JSON object.
	do(ctx context.Context, command map[string]any) ([]byte, error)
	close() error
}

// Close ends the program that the code runs in, and returns when it has ended. Devices stay signed in.
func (h *Host) Close() error { return h.engine.close() }

// call runs one command of the client and stores what it returns in result, unless that is nil. A command that waits for
// something gives up when ctx ends.
func (h *Host) call(ctx context.Context, client, command string, args map[string]any, result any) error {
	if deadline, ok := ctx.Deadline(); ok {
		args["timeoutMs"] = untilShortlyBefore(deadline).Milliseconds()
	}
	data, err := h.engine.do(ctx, map[string]any{"client": client, "command": command, "args": args})
	if err != nil {
		return fmt.Errorf("%s, asked to %s: %w", client, command, err)
	}
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  string          `json:"error"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("%s, asked to %s, answered no JSON: %w", client, command, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("%s, asked to %s: %w", client, command, errors.New(answer.Error))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Result, result); err != nil {
		return fmt.Errorf("%s, asked to %s, answered something else: %w", client, command, err)
	}
	return nil
}
