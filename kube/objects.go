package kube

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"

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
	// FeaturesAnnotation of a Node lists, separated by commas, what its agent can do that others must know of
	// before they count on it. Names that are not known are passed over: they are those of a newer agent.
	FeaturesAnnotation = "tapestry.dev/features"
	// ProblemsAnnotation of a Node holds the problems its agent sees, a JSON list of Problem.
	ProblemsAnnotation = "tapestry.dev/problems"
	// StockAnnotation of a Node is "true" when it runs stock WireGuard and no agent.
	StockAnnotation = "tapestry.dev/stock"
	// ExternalLabel of a Node is "true" when whoever wrote it runs it, so that a lab starts no agent there. Its
	// peers take it for stock WireGuard.
	ExternalLabel = "tapestry.dev/external"
	// PodIPsAnnotation of a Pod asks for fixed addresses, at most one per family: "10.244.1.5,fd00:10:244:1::5".
	PodIPsAnnotation = "tapestry.dev/pod-ips"
)

// ToBeDeletedTaint is put on a Node that the cluster autoscaler is about to take away; kube-proxy looks at the same
// (KEP-3836).
const ToBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// PartialChecksums is the feature of a node that takes packets with partial checksums through the tunnel.
const PartialChecksums = "partial-checksums"

// Objects is a snapshot of a cluster: everything Tapestry wants to know of it. The zero value is an empty cluster.
// The objects are shared and must not be changed. Each list is the place of one of Kinds.
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
	// NetworkPolicies have metadata alone: they are not served yet.
	NetworkPolicies []*networkingv1.NetworkPolicy
	// PolicyBindings are those of the ValidatingAdmissionPolicies that concern us.
	PolicyBindings []*PolicyBinding

	// Withheld are objects that somebody refers to and the API server does not show us, sorted.
	Withheld []Ref

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
	ref := Ref{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if k := KindOf(obj); k != nil {
		ref.Kind = k.Name
	}
	return ref
}

// Add puts one object in; origin may be "". It reports false, and does nothing, when Objects has no place for its
// type.
func (o *Objects) Add(obj metav1.Object, origin string) bool {
	k := KindOf(obj)
	if k == nil {
		return false
	}
	k.lists.add(o, obj)
	if origin != "" {
		if o.Origin == nil {
			o.Origin = map[Ref]string{}
		}
		o.Origin[RefOf(obj)] = origin
	}
	return true
}

// All yields every object, kind by kind.
func (o *Objects) All() iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for _, k := range kinds {
			if k.Held() && !k.lists.each(o, yield) {
				return
			}
		}
	}
}

// Len counts the objects.
func (o *Objects) Len() int {
	n := 0
	for range o.All() {
		n++
	}
	return n
}

// Sort orders every kind by namespace and name. It changes the lists of o, but not what they share with others.
func (o *Objects) Sort() { *o = o.Sorted(&nothing) }

var nothing Objects // is never written to

// Clone copies the lists, not the objects, so that the copy can be added to.
func (o *Objects) Clone() Objects {
	out := o.Map(nil)
	out.Origin = maps.Clone(o.Origin)
	return out
}

// Map gives what f makes of every object, which must be of the same type and name, in lists of its own; no f: the
// objects themselves. Origin is shared.
func (o *Objects) Map(f func(Object) Object) Objects {
	out := o.bare()
	for _, k := range kinds {
		if k.Held() {
			k.lists.mapped(&out, o, f)
		}
	}
	return out
}

// bare gives o without its objects.
func (o *Objects) bare() Objects { return Objects{Withheld: o.Withheld, Origin: o.Origin} }

// Sorted gives o with every list sorted by namespace and name; o stays as it is, and lists that are sorted are
// shared. Those that known has, too, need no look: known is sorted.
func (o *Objects) Sorted(known *Objects) Objects {
	out := o.bare()
	for _, k := range kinds {
		if k.Held() {
			k.lists.sorted(&out, o, known)
		}
	}
	return out
}

// Replace gives a copy of o, which is sorted, with now in place of old. Lists and objects that stay the same are
// shared. It reports false when that cannot be: an object of old is not in o (that very object, not one of its
// name), or a name of now is taken.
func (o *Objects) Replace(old, now *Objects) (Objects, bool) {
	out := o.bare()
	for _, k := range kinds {
		if k.Held() && !k.lists.replaced(&out, o, old, now) {
			return Objects{}, false
		}
	}
	if !maps.Equal(old.Origin, now.Origin) {
		out.Origin = maps.Clone(o.Origin)
		for ref := range old.Origin {
			delete(out.Origin, ref)
		}
		if out.Origin == nil {
			out.Origin = map[Ref]string{}
		}
		maps.Copy(out.Origin, now.Origin)
	}
	return out, true
}

// Merge joins snapshots into a new, sorted one. An object that is in there twice is an error, which names both
// places; of the two the first is kept.
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
