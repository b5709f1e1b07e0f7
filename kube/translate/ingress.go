package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// IngressClass is the name of the class that Tapestry always serves. IngressController is the controller of the
	// other classes that it serves.
	IngressClass      = "tapestry"
	IngressController = "tapestry.dev/ingress"

	// classAnnotation names the class in older Ingresses, without spec.ingressClassName; it is still in use.
	classAnnotation = "kubernetes.io/ingress.class"
)

// ingressStage turns the Ingresses that Tapestry serves into routes and certificates.
type ingressStage struct {
	ours   memo[ingressKey, []*networkingv1.Ingress]
	parsed memo[*networkingv1.Ingress, *rules]
	joined memo[list[*rules], *routes]
	found  memo[backendKey, bool]
	certs  certificateStage
}

// routes is the result of all Ingresses together, without certificates.
type routes struct {
	list     []ingress.Route
	fallback *ingress.ServicePort
}

type backendKey struct {
	rules    list[*rules]
	services list[*corev1.Service]
}

type ingressKey struct {
	ingresses list[*networkingv1.Ingress]
	classes   list[*networkingv1.IngressClass]
}

// rules is what an Ingress says by itself.
type rules struct {
	ref      kube.Ref
	created  time.Time
	fallback *backend // its default backend
	paths    []path
	tls      []tlsEntry
	secrets  []string // the Secrets that it may use, by the limit for a single Ingress: see secretsOf
}

// path is one host and path, with the backend that serves it.
type path struct {
	field string
	route ingress.Route
	backend
}

// backend is a Service port, and the field that names it.
type backend struct {
	field string
	port  ingress.ServicePort // the zero value for none
}

func (s *ingressStage) of(objs *kube.Objects, say *kube.Report) ingress.Config {
	ours := s.ours.once(ingressKey{identity(objs.Ingresses), identity(objs.IngressClasses)}, say, func(*kube.Report) []*networkingv1.Ingress {
		return Ingresses(objs)
	})
	parsed := s.parsed.each(ours, compareNames, nil, say, parseIngress)
	joined := s.joined.once(identity(parsed), say, func(say *kube.Report) *routes { return joinRoutes(parsed, say) })
	s.found.once(backendKey{identity(parsed), identity(objs.Services)}, say, func(say *kube.Report) bool {
		checkBackends(parsed, objs.Services, say)
		return true
	})
	return ingress.Config{Routes: joined.list, Default: joined.fallback, Certificates: s.certs.of(parsed, objs, say)}
}

// Ingresses returns the Ingresses that Tapestry serves: those of the class "tapestry", those of a class with
// Tapestry's controller, and those without a class unless the cluster's default class belongs to another controller.
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
	r := &rules{ref: kube.RefOf(obj), created: obj.CreationTimestamp.Time}
	if b := obj.Spec.DefaultBackend; b != nil {
		fallback := parseBackend(obj, "spec.defaultBackend", b, say)
		r.fallback = &fallback
	}
	upgrades := parseUpgrades(obj, say)
	for i := range obj.Spec.Rules {
		r.parseRule(obj, i, say)
	}
	for i := range r.paths {
		r.paths[i].route.Upgrades = upgrades
	}
	r.parseSecrets(obj, say)
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
		// The whole host goes to the default backend (networking/v1 IngressRule).
		if r.fallback != nil {
			r.paths = append(r.paths, path{field, ingress.Route{Source: source, Host: host, Path: "/", Backend: r.fallback.port}, *r.fallback})
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
		b := parseBackend(obj, field+".backend", &p.Backend, say)
		route.Backend = b.port
		r.paths = append(r.paths, path{field + ".path", route, b})
	}
}

// mostUpgrades is how many protocols an Ingress may name. Nobody has a use for as many.
const mostUpgrades = 16

// parseUpgrades returns the protocols that clients may change to. Protocols inside of which requests would bypass the
// routes are told and left out.
func parseUpgrades(obj *networkingv1.Ingress, say *kube.Report) (list []string) {
	field := "metadata.annotations[" + kube.UpgradesAnnotation + "]"
	seen := 0
	for name := range strings.SplitSeq(obj.Annotations[kube.UpgradesAnnotation], ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		seen++
		kind, _, _ := strings.Cut(strings.ToLower(name), "/")
		switch {
		case seen > mostUpgrades:
			say.Errorf(kube.RefOf(obj), field, "names more than %d protocols: the rest is left out; name those alone that clients use", mostUpgrades)
			return list
		case len(name) > 64 || strings.Trim(name, "!#$%&'*+-.^_`|~/0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") != "":
			say.Errorf(kube.RefOf(obj), field, "%.80q is not a protocol: expected a name like tcp or SPDY/3.1", name)
		case kind == "http", kind == "tls", strings.HasPrefix(kind, "h2"), strings.HasPrefix(kind, "h3"):
			say.Errorf(kube.RefOf(obj), field, "%q carries requests past the routes and is left out: remove it", name)
		default:
			list = append(list, name)
		}
	}
	return list
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

func parseBackend(obj *networkingv1.Ingress, field string, b *networkingv1.IngressBackend, say *kube.Report) backend {
	if b.Service == nil {
		say.Errorf(kube.RefOf(obj), field, "names no Service: resource backends are not served, write service.name and service.port")
		return backend{field: field}
	}
	port := cmp.Or(b.Service.Port.Name, strconv.Itoa(int(b.Service.Port.Number)))
	return backend{field, ingress.ServicePort{Namespace: obj.Namespace, Name: b.Service.Name, Port: port}}
}

// byAge returns all rules, the older ones first, and those of the same age by name.
func byAge(all []*rules) []*rules {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *rules) int { return cmp.Or(a.created.Compare(b.created), a.ref.Compare(b.ref)) })
	return all
}

// joinRoutes returns the routes of all Ingresses, and the default backend of one of them. When two Ingresses want the
// same host and path, or both want to be the default, the older one wins, so that nobody takes what others have
// already. Of two of the same age the lesser name wins.
func joinRoutes(parsed []*rules, say *kube.Report) *routes {
	var fallback *rules
	owners := map[place]*rules{}
	lost := map[*path]bool{}
	for _, r := range byAge(parsed) {
		switch {
		case r.fallback == nil:
		case fallback != nil:
			say.Warnf(r.ref, r.fallback.field, "%s, which is older or of the lesser name, has a default backend already, which serves for the whole cluster: remove one of the two", fallback.ref)
		default:
			fallback = r
		}
		for i := range r.paths {
			p := &r.paths[i]
			at := placeOf(&p.route)
			switch owner := owners[at]; owner {
			case nil:
				owners[at] = r
				continue
			case r:
				say.Warnf(r.ref, p.field, "%s is in this Ingress already, and requests go where it says first: remove one of the two", at)
			default:
				say.Warnf(r.ref, p.field, "%s belongs to %s, which is older or of the lesser name, and requests go where that says: choose another path or host", at, owner.ref)
			}
			lost[p] = true
		}
	}
	out := new(routes)
	if fallback != nil {
		out.fallback = &fallback.fallback.port
	}
	for _, r := range parsed {
		for i := range r.paths {
			if p := &r.paths[i]; !lost[p] {
				out.list = append(out.list, p.route)
			}
		}
	}
	return out
}

// place is something that only one route may have.
type place struct {
	host, path string
	kind       ingress.PathType
}

// placeOf returns the place of a route. A slash at the end of a prefix makes no difference.
func placeOf(r *ingress.Route) place {
	p := place{r.Host, r.Path, r.Type}
	if r.Type == ingress.Prefix {
		p.path = cmp.Or(strings.TrimSuffix(r.Path, "/"), "/")
	}
	return p
}

func (p place) String() string {
	kind := "Prefix"
	if p.kind == ingress.Exact {
		kind = "Exact"
	}
	return kind + " " + cmp.Or(p.host, "*") + p.path
}

// checkBackends reports the backends that do not exist. Their routes exist all the same, and work as soon as the
// Service port does. services must be sorted.
func checkBackends(parsed []*rules, services []*corev1.Service, say *kube.Report) {
	missing := map[ingress.ServicePort]*kube.Problem{} // nil when the port exists
	check := func(r *rules, b *backend) {
		if b.port == (ingress.ServicePort{}) {
			return // reported where it was parsed
		}
		p, known := missing[b.port]
		if !known {
			p = missingPort(services, b.port)
			missing[b.port] = p
		}
		if p != nil {
			here := *p
			here.Object, here.Field = r.ref, b.field+p.Field
			say.Problems = append(say.Problems, here)
		}
	}
	for _, r := range parsed {
		if r.fallback != nil {
			check(r, r.fallback)
		}
		for i := range r.paths {
			check(r, &r.paths[i].backend)
		}
	}
}

// missingPort returns what is wrong with a Service port, with the field relative to the backend's. It returns nil
// when the port exists.
func missingPort(services []*corev1.Service, p ingress.ServicePort) *kube.Problem {
	name := objectName{p.Namespace, p.Name}
	s := find(services, name)
	if s == nil {
		return &kube.Problem{Severity: kube.Warning, Field: ".service.name",
			Message: fmt.Sprintf("there is no Service %s: requests are answered 503 until there is", name)}
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return &kube.Problem{Severity: kube.Error, Field: ".service.name",
			Message: fmt.Sprintf("Service %s is of type ExternalName, which has no endpoints: name one that has", name)}
	}
	if !slices.ContainsFunc(s.Spec.Ports, func(sp corev1.ServicePort) bool {
		proto, ok := protoOf(sp.Protocol)
		return ok && proto == packet.TCP && (sp.Name == p.Port || strconv.Itoa(int(sp.Port)) == p.Port)
	}) {
		return &kube.Problem{Severity: kube.Warning, Field: ".service.port",
			Message: fmt.Sprintf("Service %s has no TCP port %s: requests are answered 503 until it has", name, p.Port)}
	}
	return nil
}
