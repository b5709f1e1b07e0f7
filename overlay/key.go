package overlay

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// keyLen is the length in bytes of both kinds of Curve25519 key.
const keyLen = 32

// redacted is printed in place of a private key.
const redacted = "(private key)"

// PrivateKey is a Curve25519 private key. It prints as "(private key)", whatever the verb. The zero value is no key.
type PrivateKey struct {
	// reveal is a function because fmt can read a field of bytes in spite of the methods below: it calls no methods on
	// unexported fields of an enclosing struct, and follows pointers when the verb is a wrong one.
	reveal func() [keyLen]byte
}

var (
	_ fmt.Formatter  = PrivateKey{}
	_ slog.LogValuer = PrivateKey{}
)

// NewPrivateKey returns a new random key.
func NewPrivateKey() PrivateKey {
	var k [keyLen]byte
	rand.Read(k[:]) // never fails (crypto/rand)
	// The key is clamped (RFC 7748 section 5) already here, so that wg(8) accepts the stored form.
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return hide(k)
}

func hide(k [keyLen]byte) PrivateKey { return PrivateKey{func() [keyLen]byte { return k }} }

// IsZero reports whether k holds no key.
func (k PrivateKey) IsZero() bool { return k.reveal == nil }

// Public returns the public half; zero for the zero PrivateKey.
func (k PrivateKey) Public() PublicKey {
	if k.IsZero() {
		return PublicKey{}
	}
	raw := k.reveal()
	priv, err := ecdh.X25519().NewPrivateKey(raw[:])
	if err != nil { // any 32 bytes are a key
		return PublicKey{}
	}
	return PublicKey(priv.PublicKey().Bytes())
}

// Reveal returns the key's bytes, for callers that hand the key to a WireGuard device. The bytes must never be logged.
func (k PrivateKey) Reveal() [keyLen]byte {
	if k.IsZero() {
		return [keyLen]byte{}
	}
	return k.reveal()
}

// String never shows the key.
func (PrivateKey) String() string { return redacted }

// Format never shows the key, whatever the verb.
func (PrivateKey) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// LogValue never shows the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses, so that no encoder writes a key by accident.
func (PrivateKey) MarshalText() ([]byte, error) {
	return nil, errors.New("private keys are not encoded: use LoadOrCreateKey to store one")
}

// LoadOrCreateKey reads the private key (base64, as wg genkey writes it) from path. When there is no such file it
// makes a key and stores it durably, with mode 0600. Two agents that start at once use the same key. A file that others
// may read or write is refused.
func LoadOrCreateKey(path string) (PrivateKey, error) {
	k, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k = NewPrivateKey()
	err = storeKey(path, k)
	if errors.Is(err, fs.ErrExist) {
		return loadKey(path)
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("store WireGuard key %s: %w", path, err)
	}
	return k, nil
}

func loadKey(path string) (PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read WireGuard key: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read WireGuard key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return PrivateKey{}, fmt.Errorf("WireGuard key %s is not a regular file", path)
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return PrivateKey{}, fmt.Errorf("WireGuard key %s has mode %04o, others may read it: "+
			"run chmod 600 on it, or delete it to have a new key made", path, perm)
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read WireGuard key %s: %w", path, err)
	}
	raw, err := decodeKey(bytes.TrimSpace(text))
	if err != nil {
		// The message does not contain the text, which may be a key with a typing error.
		return PrivateKey{}, fmt.Errorf("WireGuard key %s: expected one line of 44 base64 characters, "+
			"as wg genkey prints it", path)
	}
	return hide(raw), nil
}

// storeKey creates path with the key in it, whole or not at all. It returns fs.ErrExist when path exists already.
func storeKey(path string, k PrivateKey) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".wgkey-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	raw := k.reveal()
	_, err = tmp.WriteString(base64.StdEncoding.EncodeToString(raw[:]) + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	// Link, unlike Rename, does not replace a key that another agent stored a moment ago.
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ParsePublicKey parses the text form of a public key.
func ParsePublicKey(s string) (PublicKey, error) {
	var k PublicKey
	return k, k.UnmarshalText([]byte(s))
}

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText returns the base64 form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText parses the base64 form.
func (k *PublicKey) UnmarshalText(text []byte) error {
	raw, err := decodeKey(text)
	if err != nil {
		return fmt.Errorf("public key %q: expected 44 base64 characters, as wg pubkey prints them", text)
	}
	*k = raw
	return nil
}

func decodeKey(text []byte) (k [keyLen]byte, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err == nil && len(raw) != keyLen {
		err = errors.New("wrong length")
	}
	copy(k[:], raw)
	return k, err
}
