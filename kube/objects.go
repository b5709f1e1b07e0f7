package kube

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations and labels that Tapestry gives a meaning.
const (
	// PublicKeyAnnotation of a Node is its WireGuard public key in base64.
	PublicKeyAnnotation = "tapestry.dev/wireguard-public-key"
	// EndpointAnnotation of a Node is where its WireGuard listens, "address:port".
	EndpointAnnotation = "tapestry.dev/wireguard-endpoint"
	// FeaturesAnnotation of a Node lists, separated by commas, what its agent can do that others must know of before they
	// count on it. Names that are not known are passed over: they are those of a newer agent.
	FeaturesAnnotation = "tapestry.dev/features"
	// ProblemsAnnotation of a Node holds the problems its agent sees, a JSON list of Problem.
	ProblemsAnnotation = "tapestry.dev/problems"
	// StockAnnotation of a Node is "true" when it runs stock WireGuard and no agent.
	StockAnnotation = "tapestry.dev/stock"
	// ExternalLabel of a Node is "true" when whoever wrote it runs it, so that a lab starts no agent there. Its peers
	// take it for stock WireGuard.
	ExternalLabel = "tapestry.dev/external"
	// PodIPsAnnotation of a Pod asks for fixed addresses, at most one per family: "10.244.1.5,fd00:10:244:1::5".
	PodIPsAnnotation = "tapestry.dev/pod-ips"
)

// PartialChecksums is the feature of a node that takes packets with partial checksums through the tunnel.
const PartialChecksums = "partial-checksums"

// Objects is a snapshot of a cluster: everything Tapestry wants to know of it. The zero value is an empty cluster.
// The objects are shared and must not be changed.
type Objects struct {
	Nodes          []*corev1.Node
	Namespaces     []*corev1.Namespace
	Pods           []*corev1.Pod
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	Ingresses      []*networkingv1.Ingress
	IngressClasses []*networkingv1.IngressClass
	ServiceCIDRs   []*networkingv1.ServiceCIDR
	Secrets        []*corev1.Secret
	ConfigMaps     []*corev1.ConfigMap

	// Origin says where objects were written, "file:line". An object of an API server has none.
	Origin map[Ref]string
}

// Ref names one object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String gives "Pod default/web" or "Node n1".
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Compare orders by kind, namespace and name.
func (r Ref) Compare(s Ref) int {
	return cmp.Or(cmp.Compare(r.Kind, s.Kind), cmp.Compare(r.Namespace, s.Namespace), cmp.Compare(r.Name, s.Name))
}

// RefOf names an object. Its kind is "" when Objects has no place for it.
func RefOf(obj metav1.Object) Ref {
	return Ref{Kind: kindOf(obj), Namespace: obj.GetNamespace(), Name: obj.GetName()}
}

func kindOf(obj metav1.Object) string {
	switch obj.(type) {
	case *corev1.Node:
		return "Node"
	case *corev1.Namespace:
		return "Namespace"
	case *corev1.Pod:
		return "Pod"
	case *corev1.Service:
		return "Service"
	case *discoveryv1.EndpointSlice:
		return "EndpointSlice"
	case *networkingv1.Ingress:
		return "Ingress"
	case *networkingv1.IngressClass:
		return "IngressClass"
	case *networkingv1.ServiceCIDR:
		return "ServiceCIDR"
	case *corev1.Secret:
		return "Secret"
	case *corev1.ConfigMap:
		return "ConfigMap"
	}
	return ""
}

// Add puts one object in; origin may be "". It reports false, and does nothing, when Objects has no place for its type.
func (o *Objects) Add(obj metav1.Object, origin string) bool {
	switch x := obj.(type) {
	case *corev1.Node:
		o.Nodes = append(o.Nodes, x)
	case *corev1.Namespace:
		o.Namespaces = append(o.Namespaces, x)
	case *corev1.Pod:
		o.Pods = append(o.Pods, x)
	case *corev1.Service:
		o.Services = append(o.Services, x)
	case *discoveryv1.EndpointSlice:
		o.EndpointSlices = append(o.EndpointSlices, x)
	case *networkingv1.Ingress:
		o.Ingresses = append(o.Ingresses, x)
	case *networkingv1.IngressClass:
		o.IngressClasses = append(o.IngressClasses, x)
	case *networkingv1.ServiceCIDR:
		o.ServiceCIDRs = append(o.ServiceCIDRs, x)
	case *corev1.Secret:
		o.Secrets = append(o.Secrets, x)
	case *corev1.ConfigMap:
		o.ConfigMaps = append(o.ConfigMaps, x)
	default:
		return false
	}
	if origin != "" {
		if o.Origin == nil {
			o.Origin = map[Ref]string{}
		}
		o.Origin[RefOf(obj)] = origin
	}
	return true
}

// All yields every object, kind by kind.
func (o *Objects) All() iter.Seq[metav1.Object] {
	return func(yield func(metav1.Object) bool) {
		_ = each(o.Nodes, yield) && each(o.Namespaces, yield) && each(o.ServiceCIDRs, yield) &&
			each(o.Pods, yield) && each(o.Services, yield) && each(o.EndpointSlices, yield) &&
			each(o.IngressClasses, yield) && each(o.Ingresses, yield) && each(o.Secrets, yield) && each(o.ConfigMaps, yield)
	}
}

func each[T metav1.Object](list []T, yield func(metav1.Object) bool) bool {
	for _, obj := range list {
		if !yield(obj) {
			return false
		}
	}
	return true
}

// Len counts the objects.
func (o *Objects) Len() int {
	n := 0
	for range o.All() {
		n++
	}
	return n
}

// Sort orders every kind by namespace and name. It changes the lists of o, so o must not have been given away.
func (o *Objects) Sort() {
	sortByName(o.Nodes)
	sortByName(o.Namespaces)
	sortByName(o.Pods)
	sortByName(o.Services)
	sortByName(o.EndpointSlices)
	sortByName(o.Ingresses)
	sortByName(o.IngressClasses)
	sortByName(o.ServiceCIDRs)
	sortByName(o.Secrets)
	sortByName(o.ConfigMaps)
}

func sortByName[T metav1.Object](list []T) {
	if !slices.IsSortedFunc(list, compareNames[T]) {
		slices.SortStableFunc(list, compareNames[T])
	}
}

func compareNames[T metav1.Object](a, b T) int {
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// Clone copies the lists, not the objects, so that the copy can be added to and sorted.
func (o *Objects) Clone() Objects {
	return Objects{
		Nodes:          slices.Clone(o.Nodes),
		Namespaces:     slices.Clone(o.Namespaces),
		Pods:           slices.Clone(o.Pods),
		Services:       slices.Clone(o.Services),
		EndpointSlices: slices.Clone(o.EndpointSlices),
		Ingresses:      slices.Clone(o.Ingresses),
		IngressClasses: slices.Clone(o.IngressClasses),
		ServiceCIDRs:   slices.Clone(o.ServiceCIDRs),
		Secrets:        slices.Clone(o.Secrets),
		ConfigMaps:     slices.Clone(o.ConfigMaps),
		Origin:         maps.Clone(o.Origin),
	}
}

// Merge joins snapshots into a new, sorted one. An object that is in there twice is an error, which names both places;
// of the two the first is kept.
func Merge(parts ...Objects) (Objects, error) {
	var all Objects
	var errs []error
	seen := map[Ref]string{}
	for i := range parts {
		for obj := range parts[i].All() {
			ref := RefOf(obj)
			origin := parts[i].Origin[ref]
			if first, ok := seen[ref]; ok {
				errs = append(errs, duplicate(ref, first, origin))
				continue
			}
			seen[ref] = origin
			all.Add(obj, origin)
		}
	}
	all.Sort()
	return all, errors.Join(errs...)
}

func duplicate(ref Ref, first, second string) error {
	if first == "" || second == "" {
		return fmt.Errorf("%s: defined twice: keep one of the two", ref)
	}
	return fmt.Errorf("%s: %s: already defined at %s: keep one of the two", second, ref, first)
}

// PodIPs are the addresses that a pod has been given, as they are written.
func PodIPs(obj *corev1.Pod) []string {
	var list []string
	for _, ip := range obj.Status.PodIPs {
		if ip.IP != "" {
			list = append(list, ip.IP)
		}
	}
	if len(list) == 0 && obj.Status.PodIP != "" {
		list = append(list, obj.Status.PodIP)
	}
	return list
}
