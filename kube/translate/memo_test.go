package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"reflect"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
)

// churn is a cluster in which objects come, go, change and contradict one another.
type churn struct {
	random *mathrand.Rand
	objs   kube.Objects
	pairs  []map[string][]byte // data of TLS Secrets
}

func (c *churn) pick(n int) int { return c.random.IntN(n) }

func (c *churn) service() *corev1.Service {
	s := &corev1.Service{}
	s.Namespace, s.Name = "default", fmt.Sprintf("s%02d", c.pick(12))
	s.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 1+c.pick(40)) // sometimes another Service's
	s.Spec.Ports = []corev1.ServicePort{{Name: "p", Port: 80}}
	s.CreationTimestamp = metav1.Unix(int64(c.pick(3)), 0)
	switch c.pick(12) {
	case 0:
		s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, int32(30000+c.pick(10))
	case 1:
		s.Spec.ClusterIP = "nonsense"
	case 2:
		s.Labels = map[string]string{proxyNameLabel: "other"}
	case 3:
		s.Spec.ClusterIP = corev1.ClusterIPNone
	case 4:
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, []string{"", "a.example"}[c.pick(2)]
	case 5:
		s.Namespace, s.Name = "kube-system", "kube-dns"
	case 6, 7, 8:
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, int32(30000+c.pick(20))
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: c.anyAddr()}, {IP: c.anyAddr()}}
	}
	s.Spec.PublishNotReadyAddresses = c.pick(6) == 0
	return s
}

// anyAddr returns an address that may belong to anything.
func (c *churn) anyAddr() string {
	return []string{
		fmt.Sprintf("10.96.0.%d", 1+c.pick(40)), fmt.Sprintf("10.98.0.%d", 1+c.pick(40)), fmt.Sprintf("192.0.2.%d", c.pick(3)),
		fmt.Sprintf("10.244.%d.%d", c.pick(4), 1+c.pick(9)), fmt.Sprintf("203.0.113.%d", c.pick(4)),
	}[c.pick(5)]
}

func (c *churn) slice() *discoveryv1.EndpointSlice {
	port, name := int32(8000+c.pick(3)), "p"
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Namespace, s.Name = "default", fmt.Sprintf("e%02d", c.pick(20))
	s.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s%02d", c.pick(12))}
	if c.pick(20) == 0 {
		s.Labels[discoveryv1.LabelServiceName] = "kubernetes"
	}
	if c.pick(10) == 0 {
		port = 70000
	}
	s.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
	for range c.pick(4) {
		node := fmt.Sprintf("n%d", c.pick(3))
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.0.%d", 1+c.pick(9))}, NodeName: &node}
		if c.pick(3) == 0 {
			e.Addresses[0] = c.anyAddr()
			port = int32(30000 + c.pick(20))
		}
		if c.pick(5) == 0 {
			e.Hostname = new(fmt.Sprint("h", c.pick(3)))
		}
		if c.pick(3) == 0 {
			e.Conditions.Ready = new(c.pick(2) == 0)
		}
		if c.pick(2) == 0 {
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", UID: c.uid()}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// uid returns the UID of some pod.
func (c *churn) uid() types.UID { return types.UID(fmt.Sprint("u", c.pick(6))) }

func (c *churn) node() *corev1.Node {
	n := &corev1.Node{}
	n.Name = fmt.Sprintf("n%d", c.pick(3))
	n.Labels = map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("z%d", c.pick(2))}
	n.CreationTimestamp = metav1.Unix(int64(c.pick(3)), 0)
	n.Spec.PodCIDRs = []string{fmt.Sprintf("10.244.%d.0/24", c.pick(4))}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.2.%d", c.pick(3))}}
	return n
}

func (c *churn) pod() *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name = "default", fmt.Sprintf("p%d", c.pick(5))
	p.UID, p.Spec.NodeName = c.uid(), fmt.Sprintf("n%d", c.pick(2))
	if c.pick(3) == 0 {
		p.DeletionTimestamp = &metav1.Time{}
	}
	p.Status.PodIP = fmt.Sprintf("10.244.0.%d", 1+c.pick(300)) // numbers above 255 make no address
	if c.pick(2) == 0 {
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: int32(8080 + c.pick(2))}}}}
	}
	return p
}

func (c *churn) ingress() *networkingv1.Ingress {
	i := &networkingv1.Ingress{}
	i.Namespace, i.Name = "default", fmt.Sprintf("i%d", c.pick(4))
	i.CreationTimestamp = metav1.Unix(int64(c.pick(3)), 0)
	i.Spec.IngressClassName = []*string{nil, new("tapestry"), new("c0"), new("c1")}[c.pick(4)]
	backend := func() networkingv1.IngressBackend {
		return networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{
			Name: fmt.Sprintf("s%02d", c.pick(12)), Port: networkingv1.ServiceBackendPort{Number: int32(80 + c.pick(2))},
		}}
	}
	if c.pick(2) == 0 {
		b := backend()
		i.Spec.DefaultBackend = &b
	}
	for range c.pick(3) {
		rule := networkingv1.IngressRule{Host: []string{"", "a.example", "*.example", "not a host"}[c.pick(4)]}
		if c.pick(3) > 0 {
			rule.HTTP = &networkingv1.HTTPIngressRuleValue{}
			for range c.pick(3) {
				kind := []networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypePrefix}[c.pick(2)]
				rule.HTTP.Paths = append(rule.HTTP.Paths, networkingv1.HTTPIngressPath{
					Path: []string{"/", "/a", "/a/", "a"}[c.pick(4)], PathType: &kind, Backend: backend(),
				})
			}
		}
		i.Spec.Rules = append(i.Spec.Rules, rule)
	}
	for range c.pick(2) {
		i.Spec.TLS = append(i.Spec.TLS, networkingv1.IngressTLS{SecretName: fmt.Sprintf("t%d", c.pick(3)), Hosts: []string{"a.example", "b.example"}[:c.pick(3)]})
	}
	return i
}

func (c *churn) class() *networkingv1.IngressClass {
	k := &networkingv1.IngressClass{}
	k.Name = fmt.Sprintf("c%d", c.pick(2))
	k.Spec.Controller = []string{IngressController, "example.com/other"}[c.pick(2)]
	if c.pick(3) == 0 {
		k.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
	}
	return k
}

func (c *churn) secret() *corev1.Secret {
	s := &corev1.Secret{Type: corev1.SecretTypeTLS}
	s.Namespace, s.Name = "default", fmt.Sprintf("t%d", c.pick(3))
	if c.pick(4) > 0 {
		s.Data = c.pairs[c.pick(len(c.pairs))]
	}
	return s
}

func (c *churn) serviceCIDR() *networkingv1.ServiceCIDR {
	s := &networkingv1.ServiceCIDR{}
	s.Name = "kubernetes"
	s.Spec.CIDRs = []string{fmt.Sprintf("10.%d.0.0/16", 96+c.pick(3))}
	return s
}

// step changes, adds or removes one object, in a new snapshot.
func (c *churn) step() {
	switch c.pick(18) {
	case 0:
		c.objs.Nodes = exchange(c, c.objs.Nodes, c.node())
	case 1, 2:
		c.objs.Pods = exchange(c, c.objs.Pods, c.pod())
	case 3, 4:
		c.objs.Ingresses = exchange(c, c.objs.Ingresses, c.ingress())
	case 5:
		c.objs.IngressClasses = exchange(c, c.objs.IngressClasses, c.class())
	case 6:
		c.objs.Secrets = exchange(c, c.objs.Secrets, c.secret())
	case 7:
		c.objs.ServiceCIDRs = exchange(c, c.objs.ServiceCIDRs, c.serviceCIDR())
	case 8:
		c.objs.Withheld = []kube.Ref{{Kind: "Secret", Namespace: "default", Name: fmt.Sprintf("t%d", c.pick(3))}}[:c.pick(2)]
		c.objs.Awaited = []kube.Ref{{Kind: "Secret", Namespace: "default", Name: fmt.Sprintf("t%d", c.pick(3))}}[:c.pick(2)]
	case 9, 10, 11:
		c.objs.Services = exchange(c, c.objs.Services, c.service())
	default:
		list, obj := c.objs.EndpointSlices, c.slice()
		i, found := list.Search(func(s *discoveryv1.EndpointSlice) int { return compareNames(s, obj) })
		if found && c.pick(2) == 0 {
			c.objs.EndpointSlices = list.With(roll.Edit[*discoveryv1.EndpointSlice]{At: i, To: obj})
		} else {
			c.objs.EndpointSlices = roll.From(exchange(c, list.Slice(), obj))
		}
	}
}

// keyPairs returns the data of n TLS Secrets.
func keyPairs(t testing.TB, n int) (list []map[string][]byte) {
	for i := range n {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), DNSNames: []string{"a.example", "c.example"}[i%2:]}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		})
	}
	return list
}

func exchange[T interface {
	comparable
	GetName() string
}](c *churn, list []T, obj T) []T {
	var out []T
	for _, x := range list {
		if x.GetName() != obj.GetName() {
			out = append(out, x)
		}
	}
	if c.pick(5) > 0 {
		out = append(out, obj) // at its sorted place or not: Translate sorts
	}
	return out
}

// Whatever it has translated before, a Translator returns the same as one that knows nothing but which pods of the node
// have terminated.
func TestTranslatorForgetsNothingAndKeepsNothing(t *testing.T) {
	c := &churn{random: mathrand.New(mathrand.NewPCG(3, 4)), pairs: keyPairs(t, 2)}
	var m Translator
	for step := range 4000 {
		c.step()
		switch step % 1000 {
		case 100:
			// The Services stay, and get endpoints again later.
			c.objs.EndpointSlices = roll.List[*discoveryv1.EndpointSlice]{}
		case 200:
			c.objs = kube.Objects{}
		}
		o := Options{Node: "n0", UnderlayMTU: 1500 + step/500}
		got, fresh := m.Translate(c.objs, o), Translator{}
		fresh.services.leaving.ids = maps.Clone(m.services.leaving.ids)
		want := fresh.Translate(c.objs, o)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("step %d: (-want +got)\n%s", step, cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true })))
		}
	}
}

func BenchmarkTranslate(b *testing.B) {
	var objs kube.Objects
	c := &churn{random: mathrand.New(mathrand.NewPCG(5, 6))}
	for i := range 10_000 {
		s := c.service()
		// Address .10 is for DNS.
		s.Namespace, s.Name, s.Spec.ClusterIP, s.Spec.Type, s.Labels = "default", fmt.Sprintf("s%05d", i), fmt.Sprintf("10.96.%d.%d", i/200, 11+i%200), "", nil
		objs.Services = append(objs.Services, s)
		e := c.slice()
		port := int32(9000)
		e.Name, e.Labels[discoveryv1.LabelServiceName], e.Ports[0].Port, e.Endpoints = s.Name, s.Name, &port, nil
		for j := range 10 {
			e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+j, i/250, 1+i%250)}})
		}
		objs.EndpointSlices = objs.EndpointSlices.Append(e)
	}
	var m Translator
	m.Translate(objs, Options{Node: "n0"})
	b.Run("anew", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Translate(objs, Options{Node: "n0"})
		}
	})
	change := func(b *testing.B, edit func(o *kube.Objects)) {
		b.ReportAllocs()
		for b.Loop() {
			next := objs.Clone()
			edit(&next)
			m.Translate(next, Options{Node: "n0"})
		}
	}
	b.Run("one EndpointSlice", func(b *testing.B) {
		change(b, func(o *kube.Objects) {
			o.Services = objs.Services
			o.EndpointSlices = copied(objs.EndpointSlices, 5000)
		})
	})
	b.Run("one Service", func(b *testing.B) {
		change(b, func(o *kube.Objects) { o.Services[5000] = o.Services[5000].DeepCopy() })
	})
	at := int32(0)
	b.Run("one Service's affinity", func(b *testing.B) { // on which its name does not depend
		change(b, func(o *kube.Objects) {
			at++
			s := o.Services[5000].DeepCopy()
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(1 + at%2)}}
			o.Services[5000] = s
		})
	})
	b.Run("one Service's port", func(b *testing.B) {
		change(b, func(o *kube.Objects) {
			at++
			s := o.Services[5000].DeepCopy()
			s.Spec.Ports[0].Port = 100 + at%2
			o.Services[5000] = s
		})
	})
}

// manyPaths returns an Ingress of n paths to one Service of n endpoints, and a certificate.
func manyPaths(t testing.TB, n int) kube.Objects {
	s := &corev1.Service{}
	s.Namespace, s.Name, s.Spec.ClusterIP = "default", "web", "10.96.0.1"
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	other := s.DeepCopy()
	other.Name, other.Spec.ClusterIP = "other", "10.96.0.2"
	slice := func(name, service string, from, count int) *discoveryv1.EndpointSlice {
		port, portName := int32(8080), "http"
		es := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}}}
		es.Namespace, es.Name, es.Labels = "default", name, map[string]string{discoveryv1.LabelServiceName: service}
		for i := from; i < from+count; i++ {
			es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+i>>16, i>>8&255, i&255)}})
		}
		return es
	}
	objs := kube.Objects{Services: []*corev1.Service{other, s}, EndpointSlices: roll.Of(slice("other-0", "other", 1<<17, 10))}
	for i := 0; i < n; i += 100 {
		objs.EndpointSlices = objs.EndpointSlices.Append(slice(fmt.Sprintf("web-%03d", i/100), "web", i, 100))
	}
	ing := &networkingv1.Ingress{}
	ing.Namespace, ing.Name = "default", "web"
	ing.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "t", Hosts: []string{"a.example"}}}
	rule := networkingv1.IngressRule{Host: "a.example", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: new(networkingv1.HTTPIngressRuleValue)}}
	for i := range n {
		kind := networkingv1.PathTypePrefix
		rule.HTTP.Paths = append(rule.HTTP.Paths, networkingv1.HTTPIngressPath{Path: fmt.Sprint("/", i), PathType: &kind, Backend: networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}},
		}})
	}
	ing.Spec.Rules = []networkingv1.IngressRule{rule}
	objs.Ingresses = []*networkingv1.Ingress{ing}
	secret := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: keyPairs(t, 1)[0]}
	secret.Namespace, secret.Name = "default", "t"
	objs.Secrets = []*corev1.Secret{secret}
	return objs
}

// A change of an endpoint leaves everything that does not depend on endpoints: the lists of routes, certificates and
// names are identical.
func TestEndpointChangesNothingElse(t *testing.T) {
	objs := manyPaths(t, 100)
	var m Translator
	before := m.Translate(objs, Options{Node: "n0"})
	next := objs.Clone()
	next.EndpointSlices = copied(objs.EndpointSlices, 1)
	next.EndpointSlices.At(1).Endpoints = next.EndpointSlices.At(1).Endpoints[:50]
	next.Ingresses, next.Secrets, next.Services = objs.Ingresses, objs.Secrets, objs.Services
	after := m.Translate(next, Options{Node: "n0"})
	if len(before.Ingress.Routes) != 100 || identity(after.Ingress.Routes) != identity(before.Ingress.Routes) {
		t.Error("routes were compiled again")
	}
	if len(before.Ingress.Certificates) != 1 || identity(after.Ingress.Certificates) != identity(before.Ingress.Certificates) {
		t.Error("certificates were made again")
	}
	if len(before.DNS.Services) != 2 || identity(after.DNS.Services) != identity(before.DNS.Services) {
		t.Error("names were made again")
	}
	if len(after.Services.Services.At(1).Endpoints) != 50 || after.Services.Services.At(0) != before.Services.Services.At(0) {
		t.Error("the endpoints did not change, or those of another Service did")
	}
	// Now change a Secret that no Ingress names, and a Service that no route leads to.
	last := next.Clone()
	last.Secrets = append(last.Secrets, &corev1.Secret{Type: corev1.SecretTypeTLS})
	last.Services[0] = last.Services[0].DeepCopy()
	again := m.Translate(last, Options{Node: "n0"})
	if identity(again.Ingress.Routes) != identity(before.Ingress.Routes) {
		t.Error("routes were compiled again for a Service")
	}
	if before.Ingress.Certificates[0].Cert.Leaf != again.Ingress.Certificates[0].Cert.Leaf {
		t.Error("a certificate was parsed again")
	}
}

// copied returns a list with a copy of object number i in its place.
func copied(list roll.List[*discoveryv1.EndpointSlice], i int) roll.List[*discoveryv1.EndpointSlice] {
	return list.With(roll.Edit[*discoveryv1.EndpointSlice]{At: i, To: list.At(i).DeepCopy()})
}

// BenchmarkManyPaths translates 5,000 paths to one Service of 5,000 endpoints.
func BenchmarkManyPaths(b *testing.B) {
	objs := manyPaths(b, 5000)
	o := Options{Node: "n0"}
	b.Run("anew", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Translate(objs, o)
		}
	})
	var m Translator
	m.Translate(objs, o)
	change := func(b *testing.B, edit func(*kube.Objects)) {
		b.ReportAllocs()
		for b.Loop() {
			next := objs
			edit(&next)
			m.Translate(next, o)
		}
	}
	slice := func(i int) func(*kube.Objects) {
		return func(o *kube.Objects) {
			o.EndpointSlices = copied(o.EndpointSlices, i)
		}
	}
	b.Run("an endpoint", func(b *testing.B) { change(b, slice(1)) })
	b.Run("another Service's endpoint", func(b *testing.B) { change(b, slice(0)) })
	b.Run("another Service", func(b *testing.B) {
		change(b, func(o *kube.Objects) {
			o.Services = slices.Clone(o.Services)
			o.Services[0] = o.Services[0].DeepCopy()
		})
	})
}
