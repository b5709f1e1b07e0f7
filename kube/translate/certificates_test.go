package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// tlsSecret returns a Secret with a certificate for these hosts.
func tlsSecret(t *testing.T, namespace, name string, hosts ...string) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: hosts}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}}
	s.Namespace, s.Name = namespace, name
	return s
}

// tlsIngress returns an Ingress that was made at that time, with a certificate for hosts. A host "" leaves out hosts.
func tlsIngress(namespace, name string, made int64, secret string, hosts ...string) *networkingv1.Ingress {
	i := &networkingv1.Ingress{}
	i.Namespace, i.Name, i.CreationTimestamp = namespace, name, metav1.Unix(made, 0)
	i.Spec.TLS = []networkingv1.IngressTLS{{SecretName: secret, Hosts: hosts}}
	return i
}

// A host is served with its first certificate while that can be used. Certificates of the namespace "evil" come after
// those that "shop" had already, and are not served when they are for no host.
func TestCertificatesOfOthers(t *testing.T) {
	secrets := []*corev1.Secret{
		tlsSecret(t, "evil", "any"), // for no host at all
		tlsSecret(t, "evil", "stolen", "shop.example"),
		tlsSecret(t, "shop", "own", "shop.example", "*.shop.example"),
		tlsSecret(t, "shop", "second", "shop.example"),
	}
	for _, test := range []struct {
		name      string
		ingresses []*networkingv1.Ingress
		want      []string // Secret: hosts
		told      []string // parts of the problems, in their order
	}{
		{"one for no name, for no host", []*networkingv1.Ingress{tlsIngress("evil", "a", 1, "any")},
			nil, []string{"Ingress evil/a: spec.tls[0]: the certificate in Secret evil/any is for no host"}},
		{"beside others", []*networkingv1.Ingress{tlsIngress("evil", "a", 1, "any"), tlsIngress("shop", "b", 2, "own")},
			[]string{"shop/own: shop.example *.shop.example"}, []string{"evil/any is for no host"}},
		{"a host that another has", []*networkingv1.Ingress{tlsIngress("evil", "a", 2, "stolen", "shop.example"), tlsIngress("shop", "b", 1, "own", "shop.example")},
			[]string{"shop/own: shop.example", "evil/stolen: shop.example"}, []string{"Ingress evil/a: spec.tls[0].hosts[0]: shop.example has a certificate by Ingress shop/b"}},
		{"by the names of the certificate", []*networkingv1.Ingress{tlsIngress("evil", "a", 2, "stolen"), tlsIngress("shop", "b", 1, "own")},
			[]string{"shop/own: shop.example *.shop.example", "evil/stolen: shop.example"}, []string{"Ingress evil/a: spec.tls[0].hosts[0]: shop.example has a certificate by Ingress shop/b"}},
		{"an older one whose Secret is not there", []*networkingv1.Ingress{tlsIngress("evil", "a", 1, "none", "shop.example"), tlsIngress("shop", "b", 2, "own", "shop.example")},
			[]string{"shop/own: shop.example"}, []string{"there is no Secret evil/none"}},
		{"two of one namespace", []*networkingv1.Ingress{tlsIngress("shop", "a", 2, "second", "shop.example"), tlsIngress("shop", "b", 1, "own", "shop.example")},
			[]string{"shop/own: shop.example", "shop/second: shop.example"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Translate(kube.Objects{Ingresses: test.ingresses, Secrets: secrets}, Options{})
			var got []string
			for _, c := range r.Ingress.Certificates {
				got = append(got, fmt.Sprintf("%s: %s", c.Name, strings.Join(c.Hosts, " ")))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("served, -want +got:\n%s", diff)
			}
			if len(r.Problems) != len(test.told) || !slices.EqualFunc(r.Problems, test.told, func(p kube.Problem, want string) bool { return strings.Contains(p.String(), want) }) {
				t.Errorf("told is %v, want %q", r.Problems, test.told)
			}
		})
	}
}

// A chain that is too long is told of by the field that holds it.
func TestLongChain(t *testing.T) {
	secret := tlsSecret(t, "shop", "long", "shop.example")
	for one := secret.Data[corev1.TLSCertKey]; len(secret.Data[corev1.TLSCertKey]) < 100<<10; {
		secret.Data[corev1.TLSCertKey] = append(secret.Data[corev1.TLSCertKey], one...)
	}
	var say kube.Report
	if pair := keyPair(secret, &say); pair != nil {
		t.Error("it is served")
	}
	if len(say.Problems) != 1 || !strings.Contains(say.Problems[0].String(), "Secret shop/long: data[tls.crt]: the key pair has a chain of ") {
		t.Errorf("told is %v", say.Problems)
	}
}

// Names are looked up as clients do, by crypto/x509.
func TestNamesOfCertificate(t *testing.T) {
	sans := []string{"shop.example", "*.shop.example", "*.Deep.shop.example", "UPPER.example", "*"}
	for _, host := range []string{
		"shop.example", "a.shop.example", "*.shop.example", "a.b.shop.example", "a.deep.shop.example", "*.deep.shop.example", "deep.shop.example",
		"upper.example", "a.upper.example", "example", "other.example", "*.example", "xshop.example",
	} {
		for _, list := range [][]string{sans, sans[:1], sans[1:2], sans[2:3], sans[3:], nil} {
			cert := &tls.Certificate{Leaf: &x509.Certificate{DNSNames: list}}
			known := knownPairs{names: map[*tls.Certificate]certNames{}}
			want := cert.Leaf.VerifyHostname(strings.Replace(host, "*", "wildcard", 1)) == nil
			if got := known.namesOf(cert).has(host); got != want {
				t.Errorf("%s of %q: %v, want %v", host, list, got, want)
			}
		}
	}
}

// What is told of an entry does not grow with the hosts and names that its user writes.
func TestManyHostsOfOneCertificate(t *testing.T) {
	var names, hosts []string
	for i := range 2000 {
		names, hosts = append(names, fmt.Sprintf("name-%d.example", i)), append(hosts, fmt.Sprintf("host-%d.example", i))
	}
	objs := &kube.Objects{Ingresses: []*networkingv1.Ingress{tlsIngress("d", "many", 1, "large", hosts...)}, Secrets: []*corev1.Secret{tlsSecret(t, "d", "large", names...)}}
	result := Translate(*objs, Options{})
	said, count := 0, 0
	for _, p := range result.Problems {
		if strings.HasPrefix(p.Field, "spec.tls") {
			said, count = said+len(p.Message), count+1
		}
	}
	if count != mostTold+1 || said > 2000 {
		t.Errorf("%d problems of %d bytes, want %d of few", count, said, mostTold+1)
	}
}
