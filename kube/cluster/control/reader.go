package control

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/connect"
)

// reader keeps copies of the objects.
type reader struct {
	Options
	wake chan struct{} // capacity 1

	stores    []cache.Store
	informers []cache.Controller
	services  cache.Store // one of stores

	mu sync.Mutex
	// mu guards the rest.
	said map[string]string // what was logged last, by kind
}

func newReader(o Options) *reader {
	r := &reader{Options: o, wake: make(chan struct{}, 1), said: map[string]string{}}
	for _, k := range kube.Kinds() {
		if k.Use&kube.InController == 0 {
			continue
		}
		store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: r.lister(k),
			ObjectType:    k.New(),
			Transform:     reduce,
			Handler: cache.ResourceEventHandlerFuncs{
				AddFunc: func(obj any) { r.changed(nil, obj) }, UpdateFunc: r.changed, DeleteFunc: func(obj any) { r.changed(obj, nil) },
			},
		})
		if k == kube.KindFor[*corev1.Service]() {
			r.services = store
		}
		r.stores, r.informers = append(r.stores, store), append(r.informers, informer)
	}
	return r
}

// lister lists and watches the objects of a kind.
func (r *reader) lister(k *kube.Kind) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := kube.NewList(connect.Scheme, k)
			err := r.Link.Do(ctx, func() error {
				return r.Rest.Get().AbsPath(k.Group.Path(), k.Resource()).SpecificallyVersionedParams(&o, connect.Parameters, schema.GroupVersion{Version: "v1"}).Do(ctx).Into(list)
			})
			r.note(k, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
			o.Watch = true
			err = r.Link.Do(ctx, func() error {
				w, err = r.Rest.Get().AbsPath(k.Group.Path(), k.Resource()).SpecificallyVersionedParams(&o, connect.Parameters, schema.GroupVersion{Version: "v1"}).Watch(ctx)
				return err
			})
			return w, err
		},
	}
}

// note logs why a kind cannot be read, once.
func (r *reader) note(k *kube.Kind, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if text != "" && r.said[k.Name] != text {
		r.Log.Log(context.Background(), slog.LevelError, "nothing is decided before every kind can be read", "kind", k.Plural, "err", err)
	}
	r.said[k.Name] = text
}

// reduce leaves out what is large, changes often, and decides nothing.
func reduce(obj any) (any, error) {
	o, ok := obj.(kube.Object)
	if !ok {
		return obj, nil
	}
	o.SetManagedFields(nil)
	switch n := obj.(type) {
	case *discoveryv1.EndpointSlice:
		reduceSlice(n)
	case *corev1.Node:
		n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: slices.DeleteFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type != corev1.NodeReady })}
		for i := range n.Status.Conditions {
			n.Status.Conditions[i] = corev1.NodeCondition{Type: corev1.NodeReady, Status: n.Status.Conditions[i].Status}
		}
	}
	return obj, nil
}

// run reads until ctx is done.
func (r *reader) run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.Discard()) // note says what goes wrong, once
	var all sync.WaitGroup
	for _, c := range r.informers {
		all.Go(func() { c.RunWithContext(ctx) })
	}
	all.Go(func() { // an empty list brings no change
		if cache.WaitForCacheSync(ctx.Done(), r.synced) {
			r.touch()
		}
	})
	all.Wait()
}

func (r *reader) synced() bool {
	for _, c := range r.informers {
		if !c.HasSynced() {
			return false
		}
	}
	return true
}

func (r *reader) touch() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// wait waits for a change, and for settle more for those that come with it. It returns false when ctx is done.
func (r *reader) wait(ctx context.Context, settle time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-r.wake:
	}
	t := time.NewTimer(settle)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	}
	select {
	case <-r.wake:
	default:
	}
	return true
}

// objects returns a snapshot, or false when not everything has been read.
func (r *reader) objects() (objs kube.Objects, ready bool) {
	if !r.synced() {
		return kube.Objects{}, false
	}
	var all kube.Builder
	for _, s := range r.stores {
		for _, obj := range s.List() {
			if es, is := obj.(*discoveryv1.EndpointSlice); is && !r.decides(es) {
				continue
			}
			all.Add(obj.(kube.Object), "")
		}
	}
	objs = all.Objects()
	objs.Sort()
	return objs, true
}
