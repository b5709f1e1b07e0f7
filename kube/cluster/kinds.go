package cluster

import (
	"cmp"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/connect"
	"tapestry.dev/tapestry/kube/cluster/pins"
	"tapestry.dev/tapestry/kube/cluster/strip"
)

// guardKind is the kind of pins.Guard.
var guardKind = kube.KindFor[*kube.PolicyBinding]()

// row says how one kind is watched.
type row struct {
	kind *kube.Kind
	name string // in messages; "" for the kind's Plural
	// strip reduces an object that has just arrived, in place.
	strip func(runtime.Object)
	// names is set to ask for metadata only.
	names bool
	// selector says by fields which objects to ask for; nil for all.
	selector fields.Selector
	// optional is set for a kind that the agent can do without, whether the API server does not know the kind or does
	// not let the agent read it.
	optional bool
	// unknown is set for a kind that the agent can do without where the API server does not know the kind, and only
	// there: without it, the agent would let through what an object forbids.
	unknown bool
	// unused is set for a kind that is not asked for; the snapshot then has no objects of the kind.
	unused bool
	// later is set for a kind that is read only while there are policies.
	later bool
	// arrives is the kind of which the API server sends objects; nil for kind itself.
	arrives *kube.Kind
	// single is set for a kind whose objects are watched one by one, each when something refers to it.
	single bool

	newStore func(touch func()) holder
}

// holder is a store for objects of some type.
type holder interface {
	cache.ReflectorStore
	// put sets the list in objs, and reports whether the whole list has arrived once.
	put(objs *kube.Objects) (synced bool)
	// pass marks the kind as arrived although it cannot be read.
	pass()
	// forget goes back to the beginning: no objects, and none have arrived.
	forget()
	// fill sets the objects to those that objs has of the kind, until the API server's arrive.
	fill(objs *kube.Objects)
}

// rows returns the rows of all kinds InCluster, each once. A test compares them with kube.Kinds.
func (c *Cluster) rows() []row {
	noIngress := c.SecretsOf == nil
	return []row{
		whole(strip.Service),
		whole(strip.EndpointSlice),
		whole(strip.Node(c.Node)),
		whole(strip.Pod).where("spec.nodeName", c.Node),
		whole(strip.Ingress).orWithout().unless(noIngress),
		whole(strip.IngressClass).orWithout().unless(noIngress),
		whole(strip.ServiceCIDR).orWithout(),
		whole(strip.AddressPool).orWithout().unless(!c.Announce),
		whole(strip.L2Advertisement).orWithout().unless(!c.Announce),
		whole(strip.BGPPeer).orWithout().unless(!c.Announce),
		whole(strip.BGPAdvertisement).orWithout().unless(!c.Announce),
		whole(strip.EgressAddress).orUnknown(),
		whole(strip.NetworkPolicy),
		whole(strip.ClusterNetworkPolicy).orUnknown(),
		whole(strip.Namespace).afterPolicies(),
		otherPods(c.Node).afterPolicies(),
		namesOf[*kube.PolicyBinding]().orWithout().where("metadata.name", pins.Guard),
		secretRow(),
	}
}

// secretRow returns the row of Secrets: see secrets.
func secretRow() row {
	r := whole(strip.Secret).orWithout()
	r.single = true
	return r
}

// whole returns the row of a kind whose objects are asked for in full.
func whole[T object](reduce func(T)) row {
	return row{
		kind: kube.KindFor[T](), strip: func(obj runtime.Object) { reduce(obj.(T)) },
		newStore: func(touch func()) holder { return newStore[T](nil, touch) },
	}
}

// namesOf returns the row of a kind of which only the metadata is needed.
func namesOf[T object]() row {
	kind := kube.KindFor[T]()
	keep := func(arrived any) T {
		obj := kind.New()
		m := obj.(metav1.ObjectMetaAccessor).GetObjectMeta().(*metav1.ObjectMeta)
		*m = arrived.(*metav1.PartialObjectMetadata).ObjectMeta
		return obj.(T)
	}
	return row{
		kind: kind, names: true, strip: func(obj runtime.Object) { strip.Metadata(obj.(*metav1.PartialObjectMetadata)) },
		newStore: func(touch func()) holder { return newStore(keep, touch) },
	}
}

// otherPods returns the row of the pods of other nodes than one. Those that wait for a node, or have ended, are not
// asked for, and those without an address of their own are not kept: each node has all others.
func otherPods(than string) row {
	return row{
		selector: fields.AndSelectors(
			fields.OneTermNotEqualSelector("spec.nodeName", than), fields.OneTermNotEqualSelector("spec.nodeName", ""),
			fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)), fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
		),
		kind: kube.KindFor[*kube.OtherPod](), name: "Pods of other nodes", arrives: kube.KindFor[*corev1.Pod](), strip: func(obj runtime.Object) { strip.OtherPod(obj.(*corev1.Pod)) },
		newStore: func(touch func()) holder {
			s := newStore(func(arrived any) *kube.OtherPod { return kube.OtherPodOf(arrived.(*corev1.Pod)) }, touch)
			s.omit = func(p *kube.OtherPod) bool { return len(p.Addrs) == 0 }
			return s
		},
	}
}

func (r row) where(field, value string) row {
	r.selector = fields.OneTermEqualSelector(field, value)
	return r
}

func (r row) afterPolicies() row {
	r.later = true
	return r
}

func (r row) orWithout() row {
	r.optional = true
	return r
}

func (r row) orUnknown() row {
	r.unknown = true
	return r
}

// without reports whether the agent goes on without the kind after that answer of the API server.
func (r *row) without(answer error) bool {
	return r.optional && apierrors.IsForbidden(answer) || (r.optional || r.unknown) && apierrors.IsNotFound(answer)
}

func (r row) unless(unused bool) row {
	r.unused = unused
	return r
}

// one returns an empty object of the type in which the kind arrives.
func (r *row) one() runtime.Object {
	if r.names {
		return &metav1.PartialObjectMetadata{}
	}
	return cmp.Or(r.arrives, r.kind).New()
}

// list returns an empty list of the type in which the kind arrives.
func (r *row) list() runtime.Object {
	if r.names {
		return &metav1.PartialObjectMetadataList{}
	}
	return kube.NewList(connect.Scheme, cmp.Or(r.arrives, r.kind))
}

// makeSources makes the stores of all kinds, and the sources that fill them. Those of Secrets are made when they are
// needed.
func (c *Cluster) makeSources() {
	c.stores = map[*kube.Kind]holder{}
	for _, r := range c.rows() {
		if r.single {
			continue
		}
		s := r.newStore(c.touch)
		c.stores[r.kind] = s
		if r.unused {
			s.pass()
			continue
		}
		c.sources = append(c.sources, c.newSource(r, s))
	}
	select {
	case <-c.wake: // kinds that are not asked for have not changed
	default:
	}
	storeOf[*corev1.Pod](c).next = c.hasten
}

func (c *Cluster) newSource(r row, into holder) *source {
	var while *gate // always
	if r.later {
		while = c.policies.gate
	}
	return &source{
		row: r, while: while, name: cmp.Or(r.name, r.kind.Plural), paths: r.kind.Group.Paths(), rest: c.rest, link: c.link, store: into, touch: c.touch, broken: time.Now(),
		rests: cmp.Or(c.refusedPause, refusedPause),
	}
}

// storeOf returns the store of the objects of type T.
func storeOf[T object](c *Cluster) *store[T] { return c.stores[kube.KindFor[T]()].(*store[T]) }

// refused returns the API server's answer when it does not let the agent read the kind, and nil otherwise. A kind
// that the server does not know is not refused.
func (s *source) refused() error {
	if _, err := s.state(); apierrors.IsForbidden(err) {
		return err
	}
	return nil
}
