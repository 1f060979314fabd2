package homeserver

import (
	"fmt"
	"os"
	"strings"
)

// maxTokenBytes bounds a file with an access token.
const maxTokenBytes = 4 << 10

// ReadToken reads a file that holds an access token and nothing else.
func ReadToken(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	defer func() { _ = file.Close() }()
	text, err := readAtMost(file, maxTokenBytes)
	if err != nil {
		return "", fmt.Errorf("%s is not the file of an access token: %w", path, err)
	}
	token, ok := Token(string(text))
	if !ok {
		return "", fmt.Errorf("%s must hold an access token and nothing else", path)
	}
	return token, nil
}

// Token takes an access token, which is one word of ASCII, out of the white space around it.
func Token(text string) (token string, ok bool) {
	token = strings.TrimSpace(text)
	return token, token != "" && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}
