package cluster

import (
	"cmp"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/pins"
	"tapestry.dev/tapestry/kube/cluster/strip"
)

// guardKind is that of pins.Guard.
var guardKind = kube.KindFor[*kube.PolicyBinding]()

// row says of one kind how it is watched.
type row struct {
	kind *kube.Kind
	// strip reduces an object that has just arrived, in place.
	strip func(runtime.Object)
	// names: only metadata are asked for.
	names bool
	// selector of fields says which objects are asked for, "" for all.
	selector string
	// optional: the cluster's state is complete without, be it that the API server does not know the kind or that it
	// refuses us.
	optional bool
	// unused: nobody asks for the objects, and there are none.
	unused bool
	// single: an object is watched by itself, when somebody refers to it.
	single bool

	newStore func(touch func()) holder
}

// holder is a store of objects of some type.
type holder interface {
	cache.ReflectorStore
	// put gives objs the list of what there is, and reports whether all of it has arrived once.
	put(objs *kube.Objects) (synced bool)
	// pass counts the kind as arrived though it cannot be had.
	pass()
}

// rows are all kinds of a cluster, each once: a test holds them against kube.Kinds.
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
		namesOf[*networkingv1.NetworkPolicy]().orWithout(),
		namesOf[*kube.PolicyBinding]().orWithout().where("metadata.name", pins.Guard),
		secretRow(),
	}
}

// secretRow is that of the Secrets: see secrets.
func secretRow() row {
	r := whole(strip.Secret).orWithout()
	r.single = true
	return r
}

// whole is the row of a kind of which all is asked for.
func whole[T object](reduce func(T)) row {
	return row{
		kind: kube.KindFor[T](), strip: func(obj runtime.Object) { reduce(obj.(T)) },
		newStore: func(touch func()) holder { return newStore[T](nil, touch) },
	}
}

// namesOf is the row of a kind of which nobody needs more than the metadata.
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

func (r row) where(field, value string) row {
	r.selector = fields.OneTermEqualSelector(field, value).String()
	return r
}

func (r row) orWithout() row {
	r.optional = true
	return r
}

func (r row) unless(unused bool) row {
	r.unused = unused
	return r
}

// one makes an object as it arrives.
func (r *row) one() runtime.Object {
	if r.names {
		return &metav1.PartialObjectMetadata{}
	}
	return r.kind.New()
}

// list makes a list of objects as it arrives.
func (r *row) list() runtime.Object {
	if r.names {
		return &metav1.PartialObjectMetadataList{}
	}
	return kube.NewList(scheme, r.kind)
}

// makeSources makes the stores of what is watched, and the sources that fill them; those of Secrets are made when
// there is a need.
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
}

func (c *Cluster) newSource(r row, into holder) *source {
	return &source{
		row: r, name: r.kind.Plural, path: r.kind.Group.Path(), rest: c.rest, link: c.link, store: into, touch: c.touch, broken: time.Now(),
		rests: cmp.Or(c.refusedPause, refusedPause),
	}
}

// storeOf gives the store of the objects of type T.
func storeOf[T object](c *Cluster) *store[T] { return c.stores[kube.KindFor[T]()].(*store[T]) }

// refused gives the answer of an API server that does not let us read the kind, else nil. That it does not know
// the kind is none.
func (s *source) refused() error {
	if _, err := s.state(); apierrors.IsForbidden(err) {
		return err
	}
	return nil
}
