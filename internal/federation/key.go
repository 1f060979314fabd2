package federation

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"
)

const (
	maxKeyFile = 64 << 10
	maxCAFile  = 4 << 20
)

// SigningKey is our homeserver's ed25519 key. It prints and logs as its key ID.
type SigningKey struct{ key *mxfed.SigningKey }

// NewSigningKey takes a key that is already in memory.
func NewSigningKey(key *mxfed.SigningKey) *SigningKey { return &SigningKey{key} }

// ID is the key's ID, "ed25519:" and a version.
func (k *SigningKey) ID() id.KeyID { return k.key.ID }

// Public is the public key in unpadded base64, as /_matrix/key/v2/server publishes it.
func (k *SigningKey) Public() id.SigningKey { return k.key.Pub }

// Derive makes a secret for one purpose, from which the key cannot be found out. Whoever has the key can make it.
func (k *SigningKey) Derive(purpose string) (secret [32]byte) {
	derived, err := hkdf.Key(sha256.New, k.key.Priv.Seed(), nil, purpose, len(secret))
	if err != nil {
		panic(err) // more bytes were asked for than there can be, which 32 are not
	}
	return [32]byte(derived)
}

func (k *SigningKey) String() string { return string(k.key.ID) }

// GoString keeps %#v from showing the key.
func (k *SigningKey) GoString() string { return "federation.SigningKey(" + k.String() + ")" }

// LogValue implements [slog.LogValuer].
func (k *SigningKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// ReadSigningKey reads a homeserver's signing key: Synapse's signing.key (the first key in it, which is the one that
// Synapse signs with) or Dendrite's matrix_key.pem. warning is a sentence if others than the file's owner may read or
// write it, else "". No error holds any part of the file.
func ReadSigningKey(path string) (key *SigningKey, warning string, err error) {
	data, mode, err := readRegular(path, maxKeyFile)
	if err != nil {
		return nil, "", fmt.Errorf("the signing key cannot be read: %w", err)
	}
	parsed, err := parseSigningKey(data)
	if err != nil {
		return nil, "", fmt.Errorf("%s is no signing key that freshen can use: %w; expected is Synapse's signing.key "+
			"(one line: ed25519, a version and a base64 seed) or Dendrite's matrix_key.pem (PEM, MATRIX PRIVATE KEY)", path, err)
	}
	if mode.Perm()&0o077 != 0 {
		warning = fmt.Sprintf("The signing key %s is open to others than its owner (mode %04o); "+
			"whoever reads it can act as your whole homeserver: chmod 600 it.", path, mode.Perm())
	}
	return &SigningKey{parsed}, warning, nil
}

// readRegular reads a file of at most limit bytes. Its errors name the file.
func readRegular(path string, limit int64) ([]byte, fs.FileMode, error) {
	// Before opening: a pipe would block.
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, 0, err
	case info.IsDir():
		return nil, 0, fmt.Errorf("%s is a directory, not a file", path)
	case !info.Mode().IsRegular():
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case err != nil:
		return nil, 0, err
	case int64(len(data)) > limit:
		return nil, 0, fmt.Errorf("%s is over %d bytes long, too long for what it should be", path, limit)
	}
	return data, info.Mode(), nil
}

func parseSigningKey(data []byte) (*mxfed.SigningKey, error) {
	trimmed := bytes.TrimSpace(data)
	switch {
	case len(trimmed) == 0:
		return nil, errors.New("it is empty")
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN")):
		return parsePEMKey(trimmed)
	}
	return parseSynapseKey(string(trimmed))
}

func parseSynapseKey(text string) (*mxfed.SigningKey, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	switch {
	case len(fields) != 3:
		return nil, fmt.Errorf("its first line has %d words, not 3", len(fields))
	case fields[0] != string(id.KeyAlgorithmEd25519):
		return nil, errors.New("its first word is not ed25519")
	}
	seed, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(fields[2], "="))
	if err != nil {
		return nil, errors.New("its third word is no base64")
	}
	return newKey(fields[1], seed)
}

func parsePEMKey(data []byte) (*mxfed.SigningKey, error) {
	block, _ := pem.Decode(data)
	switch {
	case block == nil:
		return nil, errors.New("it begins like PEM, but is not whole")
	case block.Type != "MATRIX PRIVATE KEY":
		return nil, errors.New("its PEM block is not a MATRIX PRIVATE KEY")
	}
	version, found := strings.CutPrefix(block.Headers["Key-ID"], "ed25519:")
	if !found {
		return nil, errors.New("its PEM block has no header Key-ID with an ed25519 key ID")
	}
	return newKey(version, block.Bytes)
}

// breaksKeyID says whether r may not stand in a key version. The specification has only letters, digits and "_"
// (server-server API, /_matrix/key/v2/server); Synapse generates "a_" and letters, and Dendrite today enforces it. But
// Synapse signs with whatever stands in its file, older Dendrites made versions of base64 ("i+b2"), mautrix makes them
// of base64url, and a homeserver must keep the key that it has published. So all that passes through the X-Matrix header
// is taken; refused is what would end a value there ("," and quotes), end the header, or end the key's algorithm (":").
func breaksKeyID(r rune) bool {
	plain := r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	return !plain && !strings.ContainsRune("_-.+/=~", r)
}

// newKey makes a key of a version, the part of the key ID after the colon, and a seed.
func newKey(version string, seed []byte) (*mxfed.SigningKey, error) {
	switch {
	case version == "" || len(version) > 255 || strings.ContainsFunc(version, breaksKeyID):
		return nil, errors.New("its key version is not made of letters, digits and the characters _ - . + / = ~")
	case len(seed) != ed25519.SeedSize:
		return nil, fmt.Errorf("its seed has %d bytes, not %d", len(seed), ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public, _ := private.Public().(ed25519.PublicKey)
	return &mxfed.SigningKey{
		ID:   id.NewKeyID(id.KeyAlgorithmEd25519, version),
		Pub:  id.SigningKey(base64.RawStdEncoding.EncodeToString(public)),
		Priv: private,
	}, nil
}

// LoadRoots returns the system's certificate authorities and, unless caFile is empty, those in that PEM file.
func LoadRoots(caFile string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's root certificates cannot be read: %w", err)
	}
	if caFile == "" {
		return pool, nil
	}
	data, _, err := readRegular(caFile, maxCAFile)
	if err != nil {
		return nil, fmt.Errorf("the further root certificates cannot be read: %w", err)
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate; expected is PEM, one CERTIFICATE block for each authority", caFile)
	}
	return pool, nil
}
