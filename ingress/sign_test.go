package ingress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/test/await"
)

// slowKey signs when the test lets it.
type slowKey struct {
	crypto.Signer
	now, most atomic.Int32
	leave     chan struct{}
}

func (k *slowKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if n := k.now.Add(1); n > k.most.Load() {
		k.most.Store(n)
	}
	defer k.now.Add(-1)
	<-k.leave
	return k.Signer.Sign(random, digest, opts)
}

// A client that only shakes hands delays another client's handshake by the signatures under way and one more.
func TestHandshakesInTurn(t *testing.T) {
	const greedy = 16
	cert, _ := certificate(t, "any.test")
	slow := &slowKey{Signer: cert.Cert.PrivateKey.(crypto.Signer), leave: make(chan struct{})}
	cert.Cert.PrivateKey = slow
	r := newRig(t, Options{}, Config{Certificates: []Certificate{cert}})
	r.signing.free = 1
	done := make(chan string, greedy+1)
	shake := func(from string) {
		c, err := r.at(r.https, from)
		if err != nil {
			t.Error(err)
			done <- ""
			return
		}
		defer c.Close()
		if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "any.test"}).Handshake(); err != nil {
			t.Error(err)
		}
		done <- from
	}
	waiting := func(n int) {
		await.Until(t, fmt.Sprint(n, " handshakes wait"), func() bool { r.signing.mu.Lock(); defer r.signing.mu.Unlock(); return r.signing.line.Len() == n })
	}
	for range greedy {
		go shake("127.0.0.2")
	}
	waiting(greedy - 1)
	go shake("127.0.0.3")
	waiting(greedy)
	for i := range 3 {
		slow.leave <- struct{}{}
		if <-done == "127.0.0.3" {
			break
		}
		if i == 2 {
			t.Error("three handshakes of one client were finished before the other's")
		}
	}
	close(slow.leave)
	for range greedy - 2 {
		<-done
	}
	await.Until(t, "the turn is free", func() bool { r.signing.mu.Lock(); defer r.signing.mu.Unlock(); return r.signing.free == 1 })
	if n := slow.most.Load(); n != 1 {
		t.Errorf("%d signatures at once, want 1", n)
	}
}

// Who has a certificate with a quick key does not wait behind signatures with another one.
func TestQuickKeysDoNotWait(t *testing.T) {
	ecdsaKey := func(curve elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := newSigning()
	s.free = 0 // others sign
	for name, tt := range map[string]struct {
		key   crypto.Signer
		waits bool
	}{
		"P-256": {ecdsaKey(elliptic.P256()), false}, "Ed25519": {edKey, false},
		"P-384": {ecdsaKey(elliptic.P384()), true}, "RSA": {rsaKey, true},
	} {
		_, waits := s.inTurn(&tls.Certificate{PrivateKey: tt.key}, netip.MustParsePrefix("192.0.2.1/32")).PrivateKey.(turnKey)
		if waits != tt.waits {
			t.Errorf("%s waits for its turn: %v", name, waits)
		}
	}
}

func TestCheckKeyAndChain(t *testing.T) {
	rsaKey := func(bits uint) *rsa.PrivateKey {
		return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1)}}
	}
	for _, tt := range []struct {
		name       string
		cert       tls.Certificate
		key, chain string // what is said of each
	}{
		{"2048 bits", tls.Certificate{PrivateKey: rsaKey(2048)}, "", ""},
		{"4096 bits", tls.Certificate{PrivateKey: rsaKey(4096)}, "", ""},
		{"4097 bits", tls.Certificate{PrivateKey: rsaKey(4097)}, "RSA key of 4097 bits", ""},
		{"8192 bits", tls.Certificate{PrivateKey: rsaKey(8192)}, "RSA key of 8192 bits", ""},
		{"a chain", tls.Certificate{Certificate: [][]byte{make([]byte, 32<<10), make([]byte, 32<<10)}}, "", ""},
		{"a long chain", tls.Certificate{Certificate: [][]byte{make([]byte, 64<<10), {1}}}, "", "chain of 65537 bytes"},
	} {
		for _, said := range []struct {
			err  error
			want string
		}{{CheckKey(&tt.cert), tt.key}, {CheckChain(&tt.cert), tt.chain}} {
			if said.want == "" && said.err != nil || said.want != "" && (said.err == nil || !strings.Contains(said.err.Error(), said.want)) {
				t.Errorf("%s: %v, want %q", tt.name, said.err, said.want)
			}
		}
	}
}
