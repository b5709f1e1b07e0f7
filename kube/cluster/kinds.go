package cluster

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"tapestry.dev/tapestry/kube/cluster/pins"
)

const guardKind = "ValidatingAdmissionPolicyBindings"

const (
	core       = "/api/v1"
	discovery  = "/apis/discovery.k8s.io/v1"
	networking = "/apis/networking.k8s.io/v1"
	admission  = "/apis/admissionregistration.k8s.io/v1"
)

func partial() runtime.Object     { return &metav1.PartialObjectMetadata{} }
func partialList() runtime.Object { return &metav1.PartialObjectMetadataList{} }

// makeSources lists everything that is watched, the Secrets apart.
func (c *Cluster) makeSources() {
	addTo(c, &c.services, nil, kind{
		name: "Services", path: core, resource: "services", strip: stripService,
		one:  func() runtime.Object { return &corev1.Service{} },
		list: func() runtime.Object { return &corev1.ServiceList{} },
	})
	addTo(c, &c.slices, nil, kind{
		name: "EndpointSlices", path: discovery, resource: "endpointslices", strip: stripSlice,
		one:  func() runtime.Object { return &discoveryv1.EndpointSlice{} },
		list: func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
	})
	addTo(c, &c.nodes, nil, kind{
		name: "Nodes", path: core, resource: "nodes", strip: stripNode(c.Node),
		one:  func() runtime.Object { return &corev1.Node{} },
		list: func() runtime.Object { return &corev1.NodeList{} },
	})
	addTo(c, &c.pods, nil, kind{
		name: "Pods", path: core, resource: "pods", strip: stripPod,
		selector: fields.OneTermEqualSelector("spec.nodeName", c.Node).String(),
		one:      func() runtime.Object { return &corev1.Pod{} },
		list:     func() runtime.Object { return &corev1.PodList{} },
	})
	addTo(c, &c.namespaces, func(obj any) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: obj.(*metav1.PartialObjectMetadata).ObjectMeta}
	}, kind{
		name: "Namespaces", path: core, resource: "namespaces", strip: stripMetadata, metadata: true, optional: true, one: partial, list: partialList,
	})
	addTo(c, &c.ingresses, nil, kind{
		name: "Ingresses", path: networking, resource: "ingresses", strip: stripIngress, optional: true,
		one:  func() runtime.Object { return &networkingv1.Ingress{} },
		list: func() runtime.Object { return &networkingv1.IngressList{} },
	})
	addTo(c, &c.classes, nil, kind{
		name: "IngressClasses", path: networking, resource: "ingressclasses", strip: stripIngressClass, optional: true,
		one:  func() runtime.Object { return &networkingv1.IngressClass{} },
		list: func() runtime.Object { return &networkingv1.IngressClassList{} },
	})
	addTo(c, &c.ranges, nil, kind{
		name: "ServiceCIDRs", path: networking, resource: "servicecidrs", strip: stripServiceCIDR, optional: true,
		one:  func() runtime.Object { return &networkingv1.ServiceCIDR{} },
		list: func() runtime.Object { return &networkingv1.ServiceCIDRList{} },
	})
	addTo(c, &c.policies, nil, kind{
		name: "NetworkPolicies", path: networking, resource: "networkpolicies", strip: stripMetadata, metadata: true, optional: true, one: partial, list: partialList,
	})
	addTo(c, &c.guards, nil, kind{
		name: guardKind, path: admission, resource: "validatingadmissionpolicybindings", strip: stripMetadata, metadata: true, optional: true,
		selector: fields.OneTermEqualSelector("metadata.name", pins.Guard).String(), one: partial, list: partialList,
	})
}

// addTo makes the store of a kind and the source that fills it.
func addTo[T object](c *Cluster, at **store[T], keep func(any) T, k kind) {
	*at = newStore(keep, c.touch)
	if k.path == networking && strings.HasPrefix(k.resource, "ingress") && c.SecretsOf == nil {
		(*at).pass()
		return
	}
	c.sources = append(c.sources, c.newSource(k, *at, (*at).pass))
}

func (c *Cluster) newSource(k kind, into cache.ReflectorStore, pass func()) *source {
	return &source{kind: k, rest: c.rest, link: c.link, store: into, pass: pass, touch: c.touch, broken: time.Now()}
}

// refused gives the answer of an API server that does not let us read the kind, else nil. That it does not know the kind is
// none.
func (s *source) refused() error {
	if _, err := s.state(); apierrors.IsForbidden(err) {
		return err
	}
	return nil
}
