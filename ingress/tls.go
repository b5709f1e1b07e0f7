package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/ingress/match"
)

// certificates are the Config's, by lower-case host: "a.example", or ".example" for "*.example". Those of one host are
// in the order of the Config. Each has its Leaf. A certificate without hosts is left out.
type certificates map[string][]*tls.Certificate

func newCertificates(list []Certificate) (certificates, error) {
	list = slices.Clone(list)
	byHost := certificates{}
	for i := range list {
		c := &list[i]
		if len(c.Cert.Certificate) == 0 || c.Cert.PrivateKey == nil {
			return nil, fmt.Errorf("certificate %s: expected a certificate and its private key", c.Name)
		}
		if c.Cert.Leaf == nil {
			leaf, err := x509.ParseCertificate(c.Cert.Certificate[0])
			if err != nil {
				return nil, fmt.Errorf("certificate %s: %w", c.Name, err)
			}
			c.Cert.Leaf = leaf
		}
		for _, h := range c.Hosts {
			key := strings.TrimSuffix(strings.ToLower(h), ".")
			if rest, ok := strings.CutPrefix(key, "*"); ok {
				key = rest
			}
			byHost[key] = append(byHost[key], &c.Cert)
		}
	}
	return byHost, nil
}

// choose returns a certificate for the client's SNI, nil when there is none. It returns the first that is valid now and
// that the client can use, by its host and algorithms; those of the exact host come before those of a wildcard. When
// there is no such certificate it returns one that the client can use but is not valid, or else any.
func (cs certificates) choose(hello *tls.ClientHelloInfo, now time.Time) *tls.Certificate {
	name := strings.ToLower(match.Hostname(hello.ServerName))
	var exact, wildcard []*tls.Certificate
	if name != "" {
		exact = cs[name]
		if dot := strings.IndexByte(name, '.'); dot > 0 {
			wildcard = cs[name[dot:]]
		}
	}
	var best *tls.Certificate
	rank := 0
	for _, list := range [...][]*tls.Certificate{exact, wildcard} {
		for _, c := range list {
			n := 1
			if hello.SupportsCertificate(c) == nil {
				n = 2
				if !now.Before(c.Leaf.NotBefore) && !now.After(c.Leaf.NotAfter) {
					return c
				}
			}
			if n > rank {
				best, rank = c, n
			}
		}
	}
	return best
}

// certificate implements tls.Config.GetCertificate.
func (s *Server) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := s.state.Load().certs.choose(hello, time.Now())
	if c == nil {
		s.stats.fallbackTLS.Add(1)
		var err error
		if c, err = s.fallback(); err != nil {
			return nil, err
		}
	}
	return s.signing.inTurn(c, addressing.Client(remote(hello.Conn))), nil
}

// newFallback returns a func that makes the self-signed certificate at its first call, and logs that.
func newFallback(log *slog.Logger) func() (*tls.Certificate, error) {
	return sync.OnceValues(func() (*tls.Certificate, error) {
		log.Warn("a TLS client asked for a name without certificate and gets a self-signed one")
		return selfSigned()
	})
}

func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make self-signed certificate: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{Organization: []string{"Tapestry"}, CommonName: "Tapestry ingress fallback certificate"},
		DNSNames:     []string{"fallback.invalid"},
		NotBefore:    now.Add(-time.Hour), // the client's clock may be behind
		NotAfter:     now.AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make self-signed certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
