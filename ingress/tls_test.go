package ingress

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

// certificate makes a self-signed certificate for hosts, named after the first, and a pool that trusts it.
func certificate(t *testing.T, hosts ...string) (Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := signed(t, key, hosts...)
	leaf, err := x509.ParseCertificate(c.Cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return c, pool
}

func signed(t *testing.T, key crypto.Signer, hosts ...string) Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Certificate{Name: "default/" + hosts[0], Hosts: hosts, Cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

// handshake returns the names in the certificate that the Server serves for sni, and the negotiated protocol.
func (r *rig) handshake(sni string, c *tls.Config) (names, alpn string, err error) {
	c.ServerName, c.InsecureSkipVerify = sni, true
	conn, err := tls.Dial("tcp", r.https, c)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	return strings.Join(state.PeerCertificates[0].DNSNames, " "), state.NegotiatedProtocol, nil
}

func TestSNI(t *testing.T) {
	shop, _ := certificate(t, "shop.example", "Www.Shop.example")
	wild, _ := certificate(t, "*.example")
	nobodys, _ := certificate(t, "nobody.test")
	nobodys.Hosts = nil

	var log lockedBuffer
	r := newRig(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, Config{Certificates: []Certificate{wild, shop}})
	for _, tt := range []struct{ sni, want string }{
		{"shop.example", "shop.example Www.Shop.example"},
		{"SHOP.Example", "shop.example Www.Shop.example"},
		{"www.shop.example", "shop.example Www.Shop.example"},
		{"a.example", "*.example"},
		{"a.b.example", "fallback.invalid"},
		{"example", "fallback.invalid"},
		{"", "fallback.invalid"},
	} {
		if got, _, err := r.handshake(tt.sni, &tls.Config{}); err != nil || got != tt.want {
			t.Errorf("SNI %q: got certificate of %q, %v; want %q", tt.sni, got, err, tt.want)
		}
	}
	if n := strings.Count(log.String(), "self-signed"); n != 1 {
		t.Errorf("the fallback was logged %d times, want once:\n%s", n, log.String())
	}
	if n := r.Stats().FallbackTLS; n != 3 {
		t.Errorf("FallbackTLS is %d, want 3", n)
	}

	// A certificate without hosts is not served to clients whose host has no certificate.
	r.set(Config{Certificates: []Certificate{shop, nobodys}})
	for sni, want := range map[string]string{
		"a.example": "fallback.invalid", "": "fallback.invalid", "nobody.test": "fallback.invalid", "shop.example": "shop.example Www.Shop.example",
	} {
		if got, _, err := r.handshake(sni, &tls.Config{}); err != nil || got != want {
			t.Errorf("with one for no host, SNI %q: got certificate of %q, %v; want %q", sni, got, err, want)
		}
	}
}

func TestTLSVersionsAndALPN(t *testing.T) {
	cert, _ := certificate(t, "shop.example")
	r := newRig(t, Options{}, Config{Certificates: []Certificate{cert}})
	if _, _, err := r.handshake("shop.example", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	for _, tt := range []struct {
		offer []string
		max   uint16
		want  string
	}{
		{[]string{"h2", "http/1.1"}, tls.VersionTLS13, "h2"},
		{[]string{"h2", "http/1.1"}, tls.VersionTLS12, "h2"},
		{[]string{"http/1.1"}, tls.VersionTLS13, "http/1.1"},
		{nil, tls.VersionTLS13, ""},
	} {
		_, got, err := r.handshake("shop.example", &tls.Config{NextProtos: tt.offer, MaxVersion: tt.max})
		if err != nil || got != tt.want {
			t.Errorf("offer %q: got %q, %v; want %q", tt.offer, got, err, tt.want)
		}
	}
}

// Of two certificates for one host, the first is served whose key the client can use.
func TestCertificateByKeyType(t *testing.T) {
	ec, _ := certificate(t, "shop.example")
	ec.Name = "default/a"
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	old := signed(t, key, "shop.example", "rsa.example")
	old.Name = "default/b"
	r := newRig(t, Options{}, Config{Certificates: []Certificate{ec, old}})
	for suite, want := range map[uint16]string{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: "shop.example",
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:   "shop.example rsa.example",
	} {
		got, _, err := r.handshake("shop.example", &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}})
		if err != nil || got != want {
			t.Errorf("%s: got certificate of %q, %v; want %q", tls.CipherSuiteName(suite), got, err, want)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
