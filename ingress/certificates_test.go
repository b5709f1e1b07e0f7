package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"
)

// dated makes a certificate for hosts that is valid between two times, both relative to now. cn is its common name.
func dated(t *testing.T, cn string, from, to time.Duration, hosts ...string) Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: append(hosts[:len(hosts):len(hosts)], cn), NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Certificate{Name: "default/" + cn, Hosts: hosts, Cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

// Of several certificates for a host the first of the Config is served, whatever its name, unless it has expired or is
// for other hosts.
func TestCertificateOfSeveral(t *testing.T) {
	const day = 24 * time.Hour
	const host = "shop.example"
	first, second := dated(t, "z-first", -day, day, host), dated(t, "a-second", -day, day, host)
	expired, early := dated(t, "expired", -2*day, -day, host), dated(t, "early", day, 2*day, host)
	wild, expiredWild := dated(t, "wild", -day, day, "*.example"), dated(t, "expired-wild", -2*day, -day, "*.example")
	others := dated(t, "others", -day, day, "others.example")
	others.Hosts = []string{host}
	for _, tt := range []struct {
		name string
		list []Certificate
		want string
	}{
		{"the first", []Certificate{first, second}, "z-first"},
		{"the other way round", []Certificate{second, first}, "a-second"},
		{"expired", []Certificate{expired, second}, "a-second"},
		{"not yet valid", []Certificate{early, second}, "a-second"},
		{"for others", []Certificate{others, second}, "a-second"},
		{"the wildcard is valid", []Certificate{expired, wild}, "wild"},
		{"both are valid", []Certificate{wild, second}, "a-second"},
		{"none is valid", []Certificate{expired, early, expiredWild}, "expired"},
		{"for others or expired", []Certificate{others, expired}, "expired"},
		{"for others alone", []Certificate{others}, "others"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Options{}, Config{Certificates: tt.list})
			conn, err := tls.Dial("tcp", r.https, &tls.Config{ServerName: host, InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			names := conn.ConnectionState().PeerCertificates[0].DNSNames
			if got := names[len(names)-1]; got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// A client may use one connection for all hosts of the connection's certificate (RFC 9113 section 9.1.1). Each request
// goes to its own host's backend, whatever the SNI name of the connection. None is answered 421, which is for hosts
// that the Server does not serve.
func TestOneConnectionForManyHosts(t *testing.T) {
	cert, _ := certificate(t, "*.shop.example")
	r := newRig(t, Options{}, Config{Certificates: []Certificate{cert}, Routes: []Route{
		{Host: "a.shop.example", Backend: named(t, "a")}, {Host: "b.shop.example", Backend: named(t, "b")}, {Host: "*.shop.example", Backend: named(t, "any")},
	}})
	h := r.dialH2(&tls.Config{ServerName: "a.shop.example", InsecureSkipVerify: true})
	for _, tt := range []struct{ host, status, body string }{
		{"a.shop.example", "200", "a"},
		{"b.shop.example", "200", "b"},
		{"B.Shop.Example:443", "200", "b"},
		{"b.shop.example.", "200", "b"},
		{"B.SHOP.EXAMPLE.:8443", "200", "b"},
		{"c.shop.example", "200", "any"},
		// A wildcard is one label (networking.k8s.io/v1 IngressRule).
		{"d.c.shop.example", "404", "no route for this host and path\n"},
		{"shop.example", "404", "no route for this host and path\n"},
		{"[::1]:443", "404", "no route for this host and path\n"},
	} {
		a := h.read(h.headers(true, ":method", "GET", ":scheme", "https", ":authority", tt.host, ":path", "/"))
		if a.status != tt.status || a.body != tt.body {
			t.Errorf("%s: got %s %q, want %s %q", tt.host, a.status, a.body, tt.status, tt.body)
		}
	}
}

// When certificates change, open connections go on, and the next connection gets the new certificate.
func TestCertificatesChange(t *testing.T) {
	const day = 24 * time.Hour
	before, after := dated(t, "before", -day, day, "shop.example"), dated(t, "after", -day, day, "shop.example")
	config := anyRoute(endpointsIn(named(t, "ok"))...)
	config.Certificates = []Certificate{before}
	r := newRig(t, Options{}, config)
	open := r.dialH2(&tls.Config{ServerName: "shop.example", InsecureSkipVerify: true})
	if a := open.get("/"); a.body != "ok" {
		t.Fatalf("got %+v", a)
	}
	config.Certificates = []Certificate{after}
	r.set(config)
	if a := open.get("/"); a.body != "ok" {
		t.Errorf("the open connection: got %+v", a)
	}
	conn, err := tls.Dial("tcp", r.https, &tls.Config{ServerName: "shop.example", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if names := conn.ConnectionState().PeerCertificates[0].DNSNames; names[len(names)-1] != "after" {
		t.Errorf("the next connection got %v", names)
	}
}
