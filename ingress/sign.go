package ingress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"tapestry.dev/tapestry/share"
)

// Bounds of certificates, for the sake of other clients: a handshake signs with the private key, and sends the chain
// before anything is known of the client.
const (
	maxKeyBits    = 4096     // of RSA: with a key of 8192 bits a handshake took 88 ms
	maxChainBytes = 64 << 10 // twenty certificates with keys of 4096 bits
)

// CheckKey returns why a certificate is not served with its private key, in words that follow "the key pair".
func CheckKey(c *tls.Certificate) error {
	if key, ok := c.PrivateKey.(*rsa.PrivateKey); ok && key.N.BitLen() > maxKeyBits {
		return fmt.Errorf("has an RSA key of %d bits, with which handshakes take long: expected %d at most, or a key for ECDSA", key.N.BitLen(), maxKeyBits)
	}
	return nil
}

// CheckChain returns why a certificate is not served with its chain, in words that follow "the key pair".
func CheckChain(c *tls.Certificate) error {
	size := 0
	for _, der := range c.Certificate {
		size += len(der)
	}
	if size > maxChainBytes {
		return fmt.Errorf("has a chain of %d bytes, which every client would be sent: expected %d at most: leave out certificates that clients have, such as the root", size, maxChainBytes)
	}
	return nil
}

// errSigning is the error of a handshake whose time was over before it was its client's turn.
var errSigning = errors.New("the client's turn to sign came too late")

// signing lets private keys that take long be used by one client after another, so that clients which only shake hands
// take processor time from others' handshakes one signature at a time, and half of the processors at most.
type signing struct {
	mu   sync.Mutex // guards below
	free int
	line share.Line[netip.Prefix, chan struct{}]
}

func newSigning() *signing { return &signing{free: max(1, runtime.GOMAXPROCS(0)/2)} }

// enter waits for the owner's turn. The caller calls leave afterwards.
func (s *signing) enter(owner netip.Prefix) {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	s.line.Add(&share.Place[netip.Prefix, chan struct{}]{Value: turn}, owner)
	s.mu.Unlock()
	<-turn
}

func (s *signing) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := s.line.Next(); next != nil {
		close(next.Value)
		return
	}
	s.free++
}

// inTurn returns c with a private key that waits for owner's turn, unless the key is a quick one.
func (s *signing) inTurn(c *tls.Certificate, owner netip.Prefix) *tls.Certificate {
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok || quick(key) {
		return c
	}
	mine := *c
	mine.PrivateKey = turnKey{key, s, owner}
	return &mine
}

// quick reports whether a key signs in a few tens of microseconds, less than what else a handshake costs. RSA takes
// fifty times as long and more, and a client of one certificate must not wait behind signatures of another.
func quick(key crypto.Signer) bool {
	switch key := key.(type) {
	case ed25519.PrivateKey:
		return true
	case *ecdsa.PrivateKey:
		return key.Curve == elliptic.P256()
	}
	return false
}

// turnKey is a private key, used in turn.
type turnKey struct {
	crypto.Signer
	signing *signing
	owner   netip.Prefix
}

// Sign implements crypto.Signer.
func (k turnKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	began := time.Now()
	k.signing.enter(k.owner)
	defer k.signing.leave()
	if time.Since(began) > headerTimeout {
		return nil, errSigning
	}
	return k.Signer.Sign(rand, digest, opts)
}
