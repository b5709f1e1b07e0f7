package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

const (
	// IngressClass is the name of the class that is always ours, IngressController the controller of others that
	// are.
	IngressClass      = "tapestry"
	IngressController = "tapestry.dev/ingress"

	// classAnnotation is how the class was named before spec.ingressClassName; it is still in use.
	classAnnotation = "kubernetes.io/ingress.class"
)

// ingressStage turns the Ingresses that are ours into routes and certificates.
type ingressStage struct {
	ours   memo[ingressKey, []*networkingv1.Ingress]
	parsed memo[*networkingv1.Ingress, *rules]
	certs  certificateStage
}

type ingressKey struct {
	ingresses list[*networkingv1.Ingress]
	classes   list[*networkingv1.IngressClass]
}

// rules is what an Ingress says by itself.
type rules struct {
	ref      kube.Ref
	fallback *backendRef // its default backend
	paths    []path
	tls      []tlsEntry
}

// path is one host and path, with what serves it.
type path struct {
	route   ingress.Route // without its Backend
	backend backendRef
}

// backendRef names a Service port.
type backendRef struct {
	field   string
	service objectName // "" for none
	name    string     // of the port, or
	number  int32
}

func (b *backendRef) port() string { return cmp.Or(b.name, strconv.Itoa(int(b.number))) }

func (b *backendRef) String() string {
	if b.service.name == "" {
		return ""
	}
	return b.service.String() + ":" + b.port()
}

func (s *ingressStage) of(objs *kube.Objects, served []*services.Service, say *kube.Report) ingress.Config {
	ours := s.ours.once(ingressKey{identity(objs.Ingresses), identity(objs.IngressClasses)}, say, func(*kube.Report) []*networkingv1.Ingress {
		return Ingresses(objs)
	})
	parsed := s.parsed.each(ours, compareNames, nil, say, parseIngress)
	c := ingress.Config{Certificates: s.certs.of(parsed, objs.Secrets, objs.Withheld, say)}
	c.Routes, c.Default = routes(parsed, served, say)
	return c
}

// Ingresses gives those that are ours to serve: those of the class "tapestry", of a class whose controller is
// Tapestry's, and those without a class, unless the default class of the cluster is somebody else's.
func Ingresses(objs *kube.Objects) []*networkingv1.Ingress {
	ours := map[string]bool{IngressClass: true, "": true}
	for _, c := range objs.IngressClasses {
		mine := c.Spec.Controller == IngressController || c.Name == IngressClass
		ours[c.Name] = mine
		if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			ours[""] = mine
		}
	}
	var list []*networkingv1.Ingress
	for _, obj := range objs.Ingresses {
		if ours[deref(obj.Spec.IngressClassName, obj.Annotations[classAnnotation])] {
			list = append(list, obj)
		}
	}
	return list
}

// parseIngress reads an Ingress by itself.
func parseIngress(obj *networkingv1.Ingress, say *kube.Report) *rules {
	r := &rules{ref: kube.RefOf(obj)}
	if b := obj.Spec.DefaultBackend; b != nil {
		fallback := parseBackend(obj, "spec.defaultBackend", b, say)
		r.fallback = &fallback
	}
	for i := range obj.Spec.Rules {
		r.parseRule(obj, i, say)
	}
	for i := range obj.Spec.TLS {
		r.parseTLS(obj, i, say)
	}
	return r
}

func (r *rules) parseRule(obj *networkingv1.Ingress, i int, say *kube.Report) {
	rule, field := &obj.Spec.Rules[i], index("spec.rules", i)
	host := strings.ToLower(rule.Host)
	if !validHost(host) {
		say.Errorf(r.ref, field+".host", "%q is not a host name: expected one like www.example.com or *.example.com", rule.Host)
		return
	}
	source := nameOf(obj).String()
	if rule.HTTP == nil {
		// Everything of that host goes to the default backend (networking/v1 IngressRule).
		if r.fallback != nil {
			r.paths = append(r.paths, path{ingress.Route{Source: source, Host: host, Path: "/"}, *r.fallback})
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
			say.Errorf(r.ref, field+".pathType", "%q is not a path type: expected Exact, Prefix or ImplementationSpecific", *p.PathType)
			continue
		}
		if !strings.HasPrefix(route.Path, "/") {
			say.Errorf(r.ref, field+".path", "%q does not begin with a slash: write %q", p.Path, "/"+p.Path)
			continue
		}
		r.paths = append(r.paths, path{route, parseBackend(obj, field+".backend", &p.Backend, say)})
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

func parseBackend(obj *networkingv1.Ingress, field string, b *networkingv1.IngressBackend, say *kube.Report) backendRef {
	if b.Service == nil {
		say.Errorf(kube.RefOf(obj), field, "names no Service: resource backends are not served, write service.name and service.port")
		return backendRef{field: field}
	}
	return backendRef{field, objectName{obj.Namespace, b.Service.Name}, b.Service.Port.Name, b.Service.Port.Number}
}

// routes gives the routes of all Ingresses, and the default backend of the first that has one.
func routes(parsed []*rules, served []*services.Service, say *kube.Report) (list []ingress.Route, fallback *ingress.Backend) {
	var owner kube.Ref
	for _, r := range parsed {
		switch {
		case r.fallback == nil:
		case fallback != nil:
			say.Warnf(r.ref, r.fallback.field, "%s has a default backend already, which serves for the whole cluster: remove one of the two", owner)
		default:
			b := resolve(r.ref, r.fallback, served, say)
			fallback, owner = &b, r.ref
		}
		for i := range r.paths {
			route := r.paths[i].route
			route.Backend = resolve(r.ref, &r.paths[i].backend, served, say)
			list = append(list, route)
		}
	}
	return list, fallback
}

// resolve finds a Service port. A backend that cannot be found has no endpoints, and its route answers 503.
func resolve(ref kube.Ref, b *backendRef, served []*services.Service, say *kube.Report) ingress.Backend {
	resolved := ingress.Backend{Service: b.String()}
	if b.service.name == "" {
		return resolved
	}
	at, found := slices.BinarySearchFunc(served, b.service, compareServiceName)
	if !found {
		say.Warnf(ref, b.field+".service.name", "there is no Service %s: requests are answered 503 until there is", b.service)
		return resolved
	}
	s := served[at]
	if s.ExternalName != "" {
		say.Errorf(ref, b.field+".service.name", "Service %s is of type ExternalName, which has no endpoints: name one that has", b.service)
		return resolved
	}
	i := slices.IndexFunc(s.Ports, func(p services.Port) bool {
		if b.name != "" {
			return p.Name == b.name
		}
		return int32(p.Port) == b.number
	})
	if i < 0 {
		say.Warnf(ref, b.field+".service.port", "Service %s has no port %s: requests are answered 503 until it has", b.service, b.port())
		return resolved
	}
	resolved.Endpoints = readyEndpoints(s, &s.Ports[i])
	return resolved
}

// readyEndpoints are the addresses that serve a port: those that are ready, else those that are on their way out but
// still serve (KEP-1669), as on L4.
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
