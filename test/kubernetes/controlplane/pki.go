package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const lifetime = 5 * 365 * 24 * time.Hour

// A pki makes the certificates and kubeconfigs of a cluster, in dir and dir/pki. It keeps the first error. After an
// error all further calls do nothing.
type pki struct {
	dir string
	err error
}

// makePKI does nothing if there is a complete pki already.
func makePKI(o options, local, remote string) error {
	p := &pki{dir: o.dir}
	done := p.path("complete")
	if _, err := os.Stat(done); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(done), 0o700); err != nil {
		return err
	}
	ca, front := p.authority("ca"), p.authority("front-ca")
	p.serviceAccountKey()

	service := o.serviceCIDRs[0].Addr().Next().String() // of the Service kubernetes
	sans := append([]string{
		"127.0.0.1", "::1", "localhost", o.bind, o.advertise, service,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, o.sans...)
	p.issue(ca, "apiserver", pkix.Name{CommonName: "kube-apiserver"}, sans)
	p.issue(ca, "apiserver-kubelet", pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, nil)
	p.issue(front, "front-client", pkix.Name{CommonName: frontProxy}, nil)

	p.client(ca, "admin", pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, local)
	p.client(ca, "scheduler", pkix.Name{CommonName: "system:kube-scheduler"}, local)
	p.client(ca, "kube-proxy", pkix.Name{CommonName: "system:kube-proxy"}, remote)
	for _, n := range o.nodes {
		name := pkix.Name{CommonName: "system:node:" + n.name, Organization: []string{"system:nodes"}}
		p.client(ca, "kubelet-"+n.name, name, remote)
		p.issue(ca, "kubelet-"+n.name+"-serving", name, append([]string{n.name, "127.0.0.1"}, n.addrs...))
	}
	p.write(done, nil, 0o600)
	return p.err
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, "pki", name) }

func (p *pki) write(path string, content []byte, mode os.FileMode) {
	if p.err == nil {
		p.err = os.WriteFile(path, content, mode)
	}
}

func (p *pki) writeKey(name string, key any) []byte {
	if p.err != nil {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.err = err
		return nil
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	p.write(p.path(name+".key"), text, 0o600)
	return text
}

// certify signs template and writes the certificate to name.crt.
func (p *pki) certify(name string, template, parent *x509.Certificate, public, signer any) []byte {
	if p.err != nil {
		return nil
	}
	var serial *big.Int
	if serial, p.err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)); p.err != nil {
		return nil
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(lifetime)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		p.err = fmt.Errorf("certificate %s: %w", name, err)
		return nil
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	p.write(p.path(name+".crt"), text, 0o644)
	return text
}

func (p *pki) newKey() *ecdsa.PrivateKey {
	if p.err != nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.err = err
	return key
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func (p *pki) authority(name string) *authority {
	a := &authority{key: p.newKey()}
	if p.err != nil {
		return a
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	p.writeKey(name, a.key)
	a.pem = p.certify(name, template, template, &a.key.PublicKey, a.key)
	if p.err != nil {
		return a
	}
	block, _ := pem.Decode(a.pem)
	a.cert, p.err = x509.ParseCertificate(block.Bytes)
	return a
}

// issue writes a certificate for clients and servers, and its key. sans are addresses and names.
func (p *pki) issue(a *authority, name string, subject pkix.Name, sans []string) (cert, key []byte) {
	k := p.newKey()
	if p.err != nil {
		return nil, nil
	}
	template := &x509.Certificate{
		Subject:     subject,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, s := range sans {
		if ip := net.ParseIP(s); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, s)
		}
	}
	return p.certify(name, template, a.cert, &k.PublicKey, a.key), p.writeKey(name, k)
}

// serviceAccountKey makes an RSA key, as in every other cluster, since not every program that verifies tokens accepts
// others.
func (p *pki) serviceAccountKey() {
	if p.err != nil {
		return
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		p.err = err
		return
	}
	p.writeKey("service-account", key)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		p.err = err
		return
	}
	p.write(p.path("service-account.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

// client writes name.kubeconfig.
func (p *pki) client(a *authority, name string, subject pkix.Name, server string) {
	cert, key := p.issue(a, name, subject, nil)
	text := base64.StdEncoding.EncodeToString
	p.write(filepath.Join(p.dir, name+".kubeconfig"), fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: default
clusters:
- name: default
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: default
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: default
  context: {cluster: default, user: default}
`, server, text(a.pem), text(cert), text(key)), 0o600)
}
