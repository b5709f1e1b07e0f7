package lab

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
)

func TestSelfSigned(t *testing.T) {
	certificate, key, err := SelfSigned("bench.example")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: "bench.example", Roots: roots}); err != nil {
		t.Error(err)
	}
}
