package translate

import (
	"cmp"
	"crypto/tls"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

const (
	// IngressClass is the name of the class that is always ours, IngressController the controller of others that are.
	IngressClass      = "tapestry"
	IngressController = "tapestry.dev/ingress"

	// classAnnotation is how the class was named before spec.ingressClassName; it is still in use.
	classAnnotation = "kubernetes.io/ingress.class"
)

// ingresses compiles the Ingresses that are ours. The Services are those of services.Config, so that L7 and L4 agree on what
// an endpoint is.
func (t *translator) ingresses(nodes []node, list []*services.Service) (ingress.Config, []IngressStatus) {
	in := ingressTranslator{
		translator: t,
		services:   list,
		secrets:    map[objectName]*corev1.Secret{},
		certs:      map[objectName]int{},
	}
	for _, s := range t.objs.Secrets {
		in.secrets[nameOf(s)] = s
	}
	status := networkingv1.IngressLoadBalancerStatus{}
	for i := range nodes {
		for _, a := range nodes[i].addrs {
			if !nodes[i].stock {
				status.Ingress = append(status.Ingress, networkingv1.IngressLoadBalancerIngress{IP: a.String()})
			}
		}
	}
	var statuses []IngressStatus
	ours := t.classes()
	for _, obj := range t.objs.Ingresses {
		if ours(obj) {
			in.ingress(obj)
			statuses = append(statuses, IngressStatus{Namespace: obj.Namespace, Name: obj.Name, LoadBalancer: status})
		}
	}
	return in.config, statuses
}

// classes tells which Ingresses are ours: those of the class "tapestry", of a class whose controller is Tapestry's, and those
// without a class, unless the default class of the cluster is somebody else's.
func (t *translator) classes() func(*networkingv1.Ingress) bool {
	ours := map[string]bool{IngressClass: true, "": true}
	for _, c := range t.objs.IngressClasses {
		mine := c.Spec.Controller == IngressController || c.Name == IngressClass
		ours[c.Name] = mine
		if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			ours[""] = mine
		}
	}
	return func(obj *networkingv1.Ingress) bool {
		return ours[deref(obj.Spec.IngressClassName, obj.Annotations[classAnnotation])]
	}
}

// IngressSecrets names the Secrets that the Ingresses we serve get their certificates from.
func IngressSecrets(objs *kube.Objects) []kube.Ref {
	var list []kube.Ref
	ours := (&translator{objs: objs}).classes()
	for _, obj := range objs.Ingresses {
		if !ours(obj) {
			continue
		}
		for i := range obj.Spec.TLS {
			if name := obj.Spec.TLS[i].SecretName; name != "" {
				list = append(list, kube.Ref{Kind: "Secret", Namespace: obj.Namespace, Name: name})
			}
		}
	}
	return list
}

type ingressTranslator struct {
	*translator
	services []*services.Service // sorted by name
	secrets  map[objectName]*corev1.Secret
	certs    map[objectName]int // index in config.Certificates, -1: unusable
	config   ingress.Config
	fallback kube.Ref // the Ingress of config.Default
}

func (t *ingressTranslator) ingress(obj *networkingv1.Ingress) {
	ref := kube.RefOf(obj)
	var def *ingress.Backend
	if obj.Spec.DefaultBackend != nil {
		b := t.backend(obj.Namespace, ref, "spec.defaultBackend", obj.Spec.DefaultBackend)
		def = &b
		if t.config.Default == nil {
			t.config.Default, t.fallback = def, ref
		} else {
			t.warnf(ref, "spec.defaultBackend", "%s has a default backend already, which serves for the whole cluster: remove one of the two", t.fallback)
		}
	}
	for i := range obj.Spec.Rules {
		t.rule(obj, ref, i, def)
	}
	for i := range obj.Spec.TLS {
		t.tls(obj, ref, i)
	}
}

func (t *ingressTranslator) rule(obj *networkingv1.Ingress, ref kube.Ref, i int, def *ingress.Backend) {
	rule, field := &obj.Spec.Rules[i], index("spec.rules", i)
	host := strings.ToLower(rule.Host)
	if !validHost(host) {
		t.errorf(ref, field+".host", "%q is not a host name: expected one like www.example.com or *.example.com", rule.Host)
		return
	}
	source := obj.Namespace + "/" + obj.Name
	if rule.HTTP == nil {
		// Everything of that host goes to the default backend (networking/v1 IngressRule).
		if def != nil {
			t.config.Routes = append(t.config.Routes, ingress.Route{Source: source, Host: host, Path: "/", Backend: *def})
		}
		return
	}
	for j := range rule.HTTP.Paths {
		p, field := &rule.HTTP.Paths[j], index(field+".http.paths", j)
		route := ingress.Route{Source: source, Host: host, Path: cmp.Or(p.Path, "/")}
		switch deref(p.PathType, networkingv1.PathTypeImplementationSpecific) {
		case networkingv1.PathTypeExact:
			route.Type = ingress.Exact
		case networkingv1.PathTypePrefix, networkingv1.PathTypeImplementationSpecific:
			route.Type = ingress.Prefix
		default:
			t.errorf(ref, field+".pathType", "%q is not a path type: expected Exact, Prefix or ImplementationSpecific", *p.PathType)
			continue
		}
		if !strings.HasPrefix(route.Path, "/") {
			t.errorf(ref, field+".path", "%q does not begin with a slash: write %q", p.Path, "/"+p.Path)
			continue
		}
		route.Backend = t.backend(obj.Namespace, ref, field+".backend", &p.Backend)
		t.config.Routes = append(t.config.Routes, route)
	}
}

func validHost(host string) bool {
	switch {
	case host == "":
		return true
	case strings.HasPrefix(host, "*."):
		return len(validation.IsWildcardDNS1123Subdomain(host)) == 0
	}
	return len(validation.IsDNS1123Subdomain(host)) == 0
}

// backend resolves a Service port. A backend that cannot be resolved has no endpoints, and its route answers 503.
func (t *ingressTranslator) backend(namespace string, ref kube.Ref, field string, b *networkingv1.IngressBackend) ingress.Backend {
	if b.Service == nil {
		t.errorf(ref, field, "names no Service: resource backends are not served, write service.name and service.port")
		return ingress.Backend{}
	}
	port := b.Service.Port.Name
	if port == "" {
		port = strconv.Itoa(int(b.Service.Port.Number))
	}
	resolved := ingress.Backend{Service: namespace + "/" + b.Service.Name + ":" + port}
	at, found := slices.BinarySearchFunc(t.services, objectName{namespace, b.Service.Name}, compareServiceName)
	if !found {
		t.warnf(ref, field+".service.name", "there is no Service %s/%s: requests are answered 503 until there is", namespace, b.Service.Name)
		return resolved
	}
	s := t.services[at]
	if s.ExternalName != "" {
		t.errorf(ref, field+".service.name", "Service %s/%s is of type ExternalName, which has no endpoints: name one that has", namespace, s.Name)
		return resolved
	}
	i := slices.IndexFunc(s.Ports, func(p services.Port) bool {
		if b.Service.Port.Name != "" {
			return p.Name == b.Service.Port.Name
		}
		return int32(p.Port) == b.Service.Port.Number
	})
	if i < 0 {
		t.warnf(ref, field+".service.port", "Service %s/%s has no port %s: requests are answered 503 until it has", namespace, s.Name, port)
		return resolved
	}
	resolved.Endpoints = readyEndpoints(s, &s.Ports[i])
	return resolved
}

// readyEndpoints are the addresses that serve a port: those that are ready, else those that are on their way out but still
// serve (KEP-1669), as on L4.
func readyEndpoints(s *services.Service, port *services.Port) []netip.AddrPort {
	var ready, leaving []netip.AddrPort
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		j := slices.IndexFunc(e.Ports, func(p services.EndpointPort) bool { return p.Name == port.Name && p.Protocol == port.Protocol })
		switch {
		case j < 0:
		case e.Ready || s.PublishNotReady:
			ready = append(ready, netip.AddrPortFrom(e.Addr, e.Ports[j].Port))
		case e.Serving && e.Terminating:
			leaving = append(leaving, netip.AddrPortFrom(e.Addr, e.Ports[j].Port))
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return leaving
}

// tls adds the certificate of one entry of spec.tls. A Secret that several entries name becomes one certificate with the hosts
// of all.
func (t *ingressTranslator) tls(obj *networkingv1.Ingress, ref kube.Ref, i int) {
	entry, field := &obj.Spec.TLS[i], index("spec.tls", i)
	if entry.SecretName == "" {
		t.warnf(ref, field+".secretName", "is missing, so that these hosts have no certificate: name a Secret of type kubernetes.io/tls")
		return
	}
	key := objectName{obj.Namespace, entry.SecretName}
	at, known := t.certs[key]
	if !known {
		at = t.certificate(key, ref, field)
		t.certs[key] = at
	}
	if at < 0 {
		return
	}
	cert := &t.config.Certificates[at]
	hosts := entry.Hosts
	if len(hosts) == 0 {
		hosts = cert.Cert.Leaf.DNSNames
	}
	for j, host := range hosts {
		host = strings.ToLower(host)
		if !validHost(host) || host == "" {
			t.errorf(ref, index(field+".hosts", j), "%q is not a host name: expected one like www.example.com or *.example.com", host)
			continue
		}
		if cert.Cert.Leaf.VerifyHostname(strings.Replace(host, "*", "wildcard", 1)) != nil {
			t.warnf(ref, index(field+".hosts", j), "the certificate in Secret %s/%s is not for %s, so that clients will refuse it: it is for %s",
				key.namespace, key.name, host, cmp.Or(strings.Join(cert.Cert.Leaf.DNSNames, ", "), "no host"))
		}
		if !slices.Contains(cert.Hosts, host) {
			cert.Hosts = append(cert.Hosts, host)
		}
	}
}

// certificate parses a TLS Secret into config.Certificates and gives its index, -1 when it is unusable.
func (t *ingressTranslator) certificate(key objectName, user kube.Ref, field string) int {
	secret := t.secrets[key]
	if secret == nil {
		t.errorf(user, field+".secretName", "there is no Secret %s/%s: create it, with tls.crt and tls.key", key.namespace, key.name)
		return -1
	}
	pair, ok := t.keyPair(secret)
	if !ok {
		return -1
	}
	t.config.Certificates = append(t.config.Certificates, ingress.Certificate{Name: key.namespace + "/" + key.name, Cert: pair})
	return len(t.config.Certificates) - 1
}

func (t *translator) keyPair(secret *corev1.Secret) (tls.Certificate, bool) {
	ref := kube.RefOf(secret)
	for _, field := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if len(secret.Data[field]) == 0 {
			t.errorf(ref, "data["+field+"]", "is missing: a TLS Secret has tls.crt and tls.key, both in PEM")
			return tls.Certificate{}, false
		}
	}
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err == nil {
		return pair, true
	}
	// Which of the two is bad: the error of crypto/tls says "certificate input" for one, "key" or a mismatch for the other.
	field := corev1.TLSPrivateKeyKey
	if strings.Contains(err.Error(), "certificate input") || strings.Contains(err.Error(), "x509") {
		field = corev1.TLSCertKey
	}
	t.errorf(ref, "data["+field+"]", "the key pair cannot be used: %s: write a certificate and the private key that belongs to it, both in PEM",
		strings.TrimPrefix(err.Error(), "tls: "))
	return tls.Certificate{}, false
}
