package kube

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sort"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/roll"
)

// The annotations and labels to which Tapestry gives a meaning.
const (
	// PublicKeyAnnotation of a Node holds its WireGuard public key in base64.
	PublicKeyAnnotation = "tapestry.dev/wireguard-public-key"
	// EndpointAnnotation of a Node holds the address where its WireGuard listens, "address:port".
	EndpointAnnotation = "tapestry.dev/wireguard-endpoint"
	// FeaturesAnnotation of a Node lists, separated by commas, the features of its agent that other agents must know
	// of before they rely on them. Readers ignore unknown names, which a newer agent may have written.
	FeaturesAnnotation = "tapestry.dev/features"
	// ProblemsAnnotation of a Node holds the problems that its agent sees, as a JSON list of Problem.
	ProblemsAnnotation = "tapestry.dev/problems"
	// StockAnnotation of a Node is "true" when it runs stock WireGuard and no agent.
	StockAnnotation = "tapestry.dev/stock"
	// ExternalLabel of a Node is "true" when whoever wrote the Node also runs it, so a lab starts no agent for it.
	// Its peers treat it as stock WireGuard.
	ExternalLabel = "tapestry.dev/external"
	// PodIPsAnnotation of a Pod asks for fixed addresses, at most one per family: "10.244.1.5,fd00:10:244:1::5".
	PodIPsAnnotation = "tapestry.dev/pod-ips"
	// EgressPacketsAnnotation and EgressConnectionsAnnotation of a Pod say how many packets the pod may send in a
	// second, and how many connections it may begin; see translate.Result.Quotas.
	EgressPacketsAnnotation     = "tapestry.dev/egress-packets-per-second"
	EgressConnectionsAnnotation = "tapestry.dev/egress-connections-per-second"
	// AddressPoolAnnotation of a Service of type LoadBalancer names the AddressPool of which it asks for addresses.
	AddressPoolAnnotation = "tapestry.dev/address-pool"
	// AddressesAnnotation of a Service of type LoadBalancer asks for addresses, at most one of a family, with a comma
	// between two.
	AddressesAnnotation = "tapestry.dev/load-balancer-ips"
	// SharedAddressAnnotation of Services of type LoadBalancer in one namespace has one value when they may share an
	// address on different ports.
	SharedAddressAnnotation = "tapestry.dev/allow-shared-ip"
	// ProxyProtocolAnnotation of a Service of type LoadBalancer asks for a header of the PROXY protocol before each
	// connection at an address of a node: "v1" or "v2".
	ProxyProtocolAnnotation = "tapestry.dev/proxy-protocol"
	// UpgradesAnnotation on an Ingress lists the protocols, separated by commas, that its clients may change to with
	// Upgrade, besides websocket.
	UpgradesAnnotation = "tapestry.dev/upgrades"
	// PolicyModeAnnotation of a NetworkPolicy or ClusterNetworkPolicy is "audit" when the policy is only watched: it is
	// judged, counted and told, and not enforced. With "enforce", or without the annotation, it is enforced.
	PolicyModeAnnotation = "tapestry.dev/policy-mode"
)

// Staged reports whether a policy is only watched, by PolicyModeAnnotation. ok is false when the annotation cannot be
// understood: then the policy is enforced.
func Staged(policy metav1.Object) (staged, ok bool) {
	switch mode, there := policy.GetAnnotations()[PolicyModeAnnotation]; {
	case !there, mode == "enforce":
		return false, true
	case mode == "audit":
		return true, true
	}
	return false, false
}

// ProxyProtocol returns the version of the PROXY protocol that a Service asks for by ProxyProtocolAnnotation, 0 for
// none. It returns false when the annotation cannot be understood.
func ProxyProtocol(svc *corev1.Service) (version uint8, ok bool) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return 0, true
	}
	switch svc.Annotations[ProxyProtocolAnnotation] {
	case "":
		return 0, true
	case "v1":
		return 1, true
	case "v2":
		return 2, true
	}
	return 0, false
}

// LocalBalancer reports whether a Service is a load balancer that only nodes with endpoints of it serve.
func LocalBalancer(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// ToBeDeletedTaint is the taint of a Node that the cluster autoscaler is about to remove. kube-proxy looks at the
// same taint (KEP-3836).
const ToBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// MaxPodLabels is how many labels a pod can be selected by. Whoever makes a pod chooses how many it has, and agents
// keep them in memory.
const MaxPodLabels = 64

// Leaving reports whether a Node is cordoned or about to be removed.
func Leaving(n *corev1.Node) bool {
	return n.DeletionTimestamp != nil || n.Spec.Unschedulable ||
		slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == ToBeDeletedTaint })
}

// PartialChecksums is the feature of a node that accepts packets with partial checksums from the tunnel.
const PartialChecksums = "partial-checksums"

// PodCIDRs returns the pod ranges that a Node names, of which spec.podCIDR is the first and may be the only one set.
// The list is the Node's and must not be changed.
func PodCIDRs(n *corev1.Node) []string {
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		return []string{n.Spec.PodCIDR}
	}
	return n.Spec.PodCIDRs
}

// Objects is a snapshot of a cluster: every object Tapestry reads. The zero value is an empty cluster. The objects
// are shared and must not be changed. Each list belongs to one of Kinds.
type Objects struct {
	Nodes          []*corev1.Node
	Namespaces     []*corev1.Namespace
	Pods           []*corev1.Pod
	Services       []*corev1.Service
	EndpointSlices roll.List[*discoveryv1.EndpointSlice]
	Ingresses      []*networkingv1.Ingress
	IngressClasses []*networkingv1.IngressClass
	ServiceCIDRs   []*networkingv1.ServiceCIDR
	Secrets        []*corev1.Secret
	ConfigMaps     []*corev1.ConfigMap
	AddressPools   []*v1alpha1.AddressPool
	// L2Advertisements, BGPPeers and BGPAdvertisements say what is announced to the network outside.
	L2Advertisements  []*v1alpha1.L2Advertisement
	BGPPeers          []*v1alpha1.BGPPeer
	BGPAdvertisements []*v1alpha1.BGPAdvertisement
	EgressAddresses   []*v1alpha1.EgressAddress
	NetworkPolicies   []*networkingv1.NetworkPolicy
	// ClusterNetworkPolicies are for pods of all namespaces.
	ClusterNetworkPolicies []*policyapi.ClusterNetworkPolicy
	// OtherPods are pods of other nodes, as policies see them. A source that has all pods has them in Pods.
	OtherPods roll.List[*OtherPod]
	// PolicyBindings are the bindings of the ValidatingAdmissionPolicies that Tapestry relies on.
	PolicyBindings []*PolicyBinding

	// Withheld lists, sorted, the objects that others refer to and that the API server does not let the agent read.
	Withheld []Ref
	// Awaited lists, sorted, the objects that others refer to and of which the API server has not told yet whether they
	// exist.
	Awaited []Ref

	// Origin maps objects to where they were written, "file:line". Objects of an API server have no entry.
	Origin map[Ref]string
}

// Ref names one object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String returns "Pod default/web" or "Node n1".
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

// RefOf returns the Ref of an object. Its Kind is "" when Objects has no list for the object.
func RefOf(obj metav1.Object) Ref {
	ref := Ref{Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if k := KindOf(obj); k != nil {
		ref.Kind = k.Name
	}
	return ref
}

// All yields every object, kind by kind.
func (o *Objects) All() iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for _, k := range kinds {
			if !k.Held() {
				continue
			}
			n, at := k.lists.objects(o)
			for i := range n {
				if !yield(at(i)) {
					return
				}
			}
		}
	}
}

// Find returns the object of that name, or nil when there is none. o must be sorted.
func (o *Objects) Find(ref Ref) Object {
	k := KindNamed(ref.Kind)
	if k == nil || !k.Held() {
		return nil
	}
	n, at := k.lists.objects(o)
	i, found := sort.Find(n, func(i int) int {
		obj := at(i)
		return cmp.Or(cmp.Compare(ref.Namespace, obj.GetNamespace()), cmp.Compare(ref.Name, obj.GetName()))
	})
	if !found {
		return nil
	}
	return at(i)
}

// Len returns the number of objects.
func (o *Objects) Len() int {
	n := 0
	for range o.All() {
		n++
	}
	return n
}

// Sort orders every list by namespace and name. Lists that o shares with other snapshots stay as they are: o gets
// sorted copies.
func (o *Objects) Sort() { *o = o.Sorted(&nothing) }

var nothing Objects // never written to

// Clone returns a copy with lists of its own and the same objects.
func (o *Objects) Clone() Objects {
	out := o.Map(nil)
	out.Origin = maps.Clone(o.Origin)
	return out
}

// Map returns a snapshot whose lists hold f of every object. f must return an object of the same type and name; a nil
// f keeps the objects. Origin is shared.
func (o *Objects) Map(f func(Object) Object) Objects {
	out := o.bare()
	for _, k := range kinds {
		if k.Held() {
			k.lists.mapped(&out, o, f)
		}
	}
	return out
}

// bare returns o without its objects.
func (o *Objects) bare() Objects {
	return Objects{Withheld: o.Withheld, Awaited: o.Awaited, Origin: o.Origin}
}

// Sorted returns o with every list sorted by namespace and name. o stays as it is, and lists that are sorted already
// are shared. known is an earlier snapshot, which must be sorted: what o has in common with it is not compared again.
func (o *Objects) Sorted(known *Objects) Objects {
	out := o.bare()
	for _, k := range kinds {
		if k.Held() {
			k.lists.sorted(&out, o, known)
		}
	}
	return out
}

// Replace returns a copy of o, which must be sorted, with the objects of now in place of those of old. Lists and
// objects that stay the same are shared. It reports false when that is impossible: an object of old is not in o (the
// same pointer, not only the same name), or a name of now is taken.
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

// Merge joins snapshots into a new, sorted one. An object that occurs twice is an error, which names both places; the
// first of the two is kept.
func Merge(parts ...Objects) (Objects, error) {
	var all Builder
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
	out := all.Objects()
	out.Sort()
	return out, errors.Join(errs...)
}

func duplicate(ref Ref, first, second string) error {
	if first == "" || second == "" {
		return fmt.Errorf("%s: defined twice: keep one of the two", ref)
	}
	return fmt.Errorf("%s: %s: already defined at %s: keep one of the two", second, ref, first)
}

// PodIPs returns the addresses that a pod has been given, as they are written in its status.
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
