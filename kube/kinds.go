package kube

import (
	"cmp"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/roll"
)

// Kind is a kind of Kubernetes object that Tapestry knows by name.
type Kind struct {
	// Name is the kind's name, like "EndpointSlice". It is unique among all kinds, of whatever group, because a Ref
	// holds nothing else.
	Name string
	// Plural is the name in messages for several objects, like "EndpointSlices".
	Plural string
	Group  Group
	// ClusterScoped is set when the objects belong to no namespace.
	ClusterScoped bool
	Use           Use

	resource string // of another kind, of whose objects these are a part; "" for the Plural in lower case
	new      func() Object
	lists    lists // where Objects keeps them; nil for a kind that Objects does not hold
}

// Use says what Tapestry does with the objects of a kind.
type Use uint8

const (
	// InFiles: files and directories of manifests may hold them.
	InFiles Use = 1 << iota
	// InCluster: they are read from an API server.
	InCluster
	// InController: 'tapestry controller' reads them from an API server, be it that agents do or not.
	InController
	// NotServed: Tapestry does not implement the kind yet, and tells whoever writes such an object.
	NotServed
)

// Group is an API group in one version.
type Group struct {
	// Version is the apiVersion of its objects: "v1" or "networking.k8s.io/v1".
	Version string
	// Older is another apiVersion whose objects say the same, which is read where there is no Version; "" for none.
	Older       string
	addToScheme func(*runtime.Scheme) error // nil when Tapestry holds none of its Go types
}

// Name returns the group's name: "networking.k8s.io", or "" for the core group.
func (g Group) Name() string {
	if name, _, named := strings.Cut(g.Version, "/"); named {
		return name
	}
	return ""
}

// Path returns the group's path on an API server: "/api/v1" or "/apis/networking.k8s.io/v1".
func (g Group) Path() string {
	if g.Name() == "" {
		return "/api/" + g.Version
	}
	return "/apis/" + g.Version
}

// Paths returns the paths of the versions that are read, the better one first.
func (g Group) Paths() []string {
	if g.Older == "" {
		return []string{g.Path()}
	}
	return []string{g.Path(), "/apis/" + g.Older}
}

// Has reports whether objects with that apiVersion are read as those of the group.
func (g Group) Has(version string) bool {
	return version == g.Version || version == g.Older && version != ""
}

var (
	core       = Group{Version: "v1", addToScheme: corev1.AddToScheme}
	discovery  = Group{Version: "discovery.k8s.io/v1", addToScheme: discoveryv1.AddToScheme}
	networking = Group{Version: "networking.k8s.io/v1", addToScheme: networkingv1.AddToScheme}
	admission  = Group{Version: "admissionregistration.k8s.io/v1"}
	gatewayAPI = Group{Version: "gateway.networking.k8s.io/v1"}
	policyAPI  = Group{
		Version: policyapi.Group + "/" + policyapi.Version, Older: policyapi.Group + "/" + policyapi.Older, addToScheme: policyapi.AddToScheme,
	}
	oldPolicyAPI = Group{Version: "policy.networking.k8s.io/v1alpha1"}
	ownGroup     = Group{Version: "tapestry.dev/v1alpha1", addToScheme: v1alpha1.AddToScheme}
	clusterSet   = Group{Version: "multicluster.x-k8s.io/v1alpha1"}
)

// kinds is the one list of the kinds Tapestry knows, in the order in which All yields objects. Code that handles
// every kind loops over it. What cannot be generated from it is compared with it by tests: package cluster has a row
// for each kind InCluster, deploy/ a right, and package codec an example for each kind InFiles.
var kinds = []*Kind{
	kindOf(func(o *Objects) *[]*corev1.Node { return &o.Nodes },
		Kind{Name: "Node", Plural: "Nodes", Group: core, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*corev1.Namespace { return &o.Namespaces },
		Kind{Name: "Namespace", Plural: "Namespaces", Group: core, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*networkingv1.ServiceCIDR { return &o.ServiceCIDRs },
		Kind{Name: "ServiceCIDR", Plural: "ServiceCIDRs", Group: networking, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*corev1.Pod { return &o.Pods },
		Kind{Name: "Pod", Plural: "Pods", Group: core, Use: InFiles | InCluster}),
	kindOf(func(o *Objects) *[]*corev1.Service { return &o.Services },
		Kind{Name: "Service", Plural: "Services", Group: core, Use: InFiles | InCluster | InController}),
	rollOf(func(o *Objects) *roll.List[*discoveryv1.EndpointSlice] { return &o.EndpointSlices },
		Kind{Name: "EndpointSlice", Plural: "EndpointSlices", Group: discovery, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*networkingv1.IngressClass { return &o.IngressClasses },
		Kind{Name: "IngressClass", Plural: "IngressClasses", Group: networking, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*networkingv1.Ingress { return &o.Ingresses },
		Kind{Name: "Ingress", Plural: "Ingresses", Group: networking, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*corev1.Secret { return &o.Secrets },
		Kind{Name: "Secret", Plural: "Secrets", Group: core, Use: InFiles | InCluster}),
	kindOf(func(o *Objects) *[]*corev1.ConfigMap { return &o.ConfigMaps },
		Kind{Name: "ConfigMap", Plural: "ConfigMaps", Group: core, Use: InFiles}),
	kindOf(func(o *Objects) *[]*v1alpha1.AddressPool { return &o.AddressPools },
		Kind{Name: "AddressPool", Plural: "AddressPools", Group: ownGroup, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*v1alpha1.L2Advertisement { return &o.L2Advertisements },
		Kind{Name: "L2Advertisement", Plural: "L2Advertisements", Group: ownGroup, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*v1alpha1.BGPPeer { return &o.BGPPeers },
		Kind{Name: "BGPPeer", Plural: "BGPPeers", Group: ownGroup, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*v1alpha1.BGPAdvertisement { return &o.BGPAdvertisements },
		Kind{Name: "BGPAdvertisement", Plural: "BGPAdvertisements", Group: ownGroup, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*v1alpha1.EgressAddress { return &o.EgressAddresses },
		Kind{Name: "EgressAddress", Plural: "EgressAddresses", Group: ownGroup, ClusterScoped: true, Use: InFiles | InCluster | InController}),
	kindOf(func(o *Objects) *[]*networkingv1.NetworkPolicy { return &o.NetworkPolicies },
		Kind{Name: "NetworkPolicy", Plural: "NetworkPolicies", Group: networking, Use: InFiles | InCluster}),
	kindOf(func(o *Objects) *[]*policyapi.ClusterNetworkPolicy { return &o.ClusterNetworkPolicies },
		Kind{Name: "ClusterNetworkPolicy", Plural: "ClusterNetworkPolicies", Group: policyAPI, ClusterScoped: true, Use: InFiles | InCluster}),
	rollOf(func(o *Objects) *roll.List[*OtherPod] { return &o.OtherPods },
		Kind{Name: "OtherPod", Plural: "OtherPods", Group: core, Use: InCluster, resource: "pods"}),
	kindOf(func(o *Objects) *[]*PolicyBinding { return &o.PolicyBindings },
		Kind{Name: "ValidatingAdmissionPolicyBinding", Plural: "ValidatingAdmissionPolicyBindings", Group: admission, ClusterScoped: true, Use: InCluster}),

	{Name: "GatewayClass", Plural: "GatewayClasses", Group: gatewayAPI, ClusterScoped: true, Use: NotServed},
	{Name: "Gateway", Plural: "Gateways", Group: gatewayAPI, Use: NotServed},
	{Name: "ListenerSet", Plural: "ListenerSets", Group: gatewayAPI, Use: NotServed},
	{Name: "HTTPRoute", Plural: "HTTPRoutes", Group: gatewayAPI, Use: NotServed},
	{Name: "GRPCRoute", Plural: "GRPCRoutes", Group: gatewayAPI, Use: NotServed},
	{Name: "TLSRoute", Plural: "TLSRoutes", Group: gatewayAPI, Use: NotServed},
	{Name: "TCPRoute", Plural: "TCPRoutes", Group: gatewayAPI, Use: NotServed},
	{Name: "UDPRoute", Plural: "UDPRoutes", Group: gatewayAPI, Use: NotServed},
	{Name: "ReferenceGrant", Plural: "ReferenceGrants", Group: gatewayAPI, Use: NotServed},
	{Name: "BackendTLSPolicy", Plural: "BackendTLSPolicies", Group: gatewayAPI, Use: NotServed},
	{Name: "AdminNetworkPolicy", Plural: "AdminNetworkPolicies", Group: oldPolicyAPI, ClusterScoped: true, Use: NotServed},
	{Name: "BaselineAdminNetworkPolicy", Plural: "BaselineAdminNetworkPolicies", Group: oldPolicyAPI, ClusterScoped: true, Use: NotServed},
	{Name: "ServiceExport", Plural: "ServiceExports", Group: clusterSet, Use: NotServed},
	{Name: "ServiceImport", Plural: "ServiceImports", Group: clusterSet, Use: NotServed},
}

// kindOf returns k, completed with the functions that depend on the Go type of its objects.
func kindOf[P pointer[T], T any](at listAt[P], k Kind) *Kind {
	k.new = func() Object { return P(new(T)) }
	k.lists = at
	return &k
}

// rollOf is kindOf for a kind of which there are many, and whose objects change often.
func rollOf[P pointer[T], T any](at rollAt[P], k Kind) *Kind {
	k.new = func() Object { return P(new(T)) }
	k.lists = at
	return &k
}

// pointer is the constraint for *T where *T is an object.
type pointer[T any] interface {
	*T
	object
}

var byName, byType = index()

func index() (map[string]*Kind, map[reflect.Type]*Kind) {
	names, types := make(map[string]*Kind, len(kinds)), make(map[reflect.Type]*Kind, len(kinds))
	for _, k := range kinds {
		names[k.Name] = k
		if k.Held() {
			types[reflect.TypeOf(k.new())] = k
		}
	}
	return names, types
}

// Kinds returns all kinds, in the order in which All yields objects. The caller must not change the list.
func Kinds() []*Kind { return kinds }

// KindNamed returns the kind of that name, or nil when Tapestry does not know it.
func KindNamed(name string) *Kind { return byName[name] }

// KindOf returns the kind of an object, or nil when Objects has no list for it.
func KindOf(obj metav1.Object) *Kind { return byType[reflect.TypeOf(obj)] }

// KindFor returns the kind of objects of type T, or nil when Objects has no list for them.
func KindFor[T Object]() *Kind { return byType[reflect.TypeFor[T]()] }

// Resource returns the kind's name in API paths and in RBAC rules, like "endpointslices".
func (k *Kind) Resource() string { return cmp.Or(k.resource, strings.ToLower(k.Plural)) }

// Held reports whether Objects has a list for the objects.
func (k *Kind) Held() bool { return k.lists != nil }

// New returns an empty object. The kind must be held.
func (k *Kind) New() Object { return k.new() }

// AddToScheme registers the groups of all kinds that are held with s.
func AddToScheme(s *runtime.Scheme) error {
	done := map[string]bool{}
	for _, k := range kinds {
		if k.Held() && k.Group.addToScheme != nil && !done[k.Group.Version] {
			done[k.Group.Version] = true
			if err := k.Group.addToScheme(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// GroupVersionKind returns the kind in the form that apimachinery uses.
func (k *Kind) GroupVersionKind() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(k.Group.Version, k.Name)
}

// NewList returns an empty list for objects of kind k. It panics when s does not know the list's type.
func NewList(s *runtime.Scheme, k *Kind) runtime.Object {
	gvk := k.GroupVersionKind()
	gvk.Kind += "List"
	list, err := s.New(gvk)
	if err != nil {
		panic(err)
	}
	return list
}

// PolicyBinding is a ValidatingAdmissionPolicyBinding, of which only the name is read.
type PolicyBinding struct {
	metav1.TypeMeta
	metav1.ObjectMeta
}

// DeepCopyObject implements runtime.Object.
func (b *PolicyBinding) DeepCopyObject() runtime.Object {
	return &PolicyBinding{TypeMeta: b.TypeMeta, ObjectMeta: *b.ObjectMeta.DeepCopy()}
}
