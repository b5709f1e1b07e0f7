package cluster

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"tapestry.dev/tapestry/kube/cluster/servers"
)

// pageSize is how many objects one answer holds at most.
const pageSize = 500

// source keeps a store filled with the objects of one kind.
type source struct {
	row
	name  string // as it is told to people
	path  string // of the API group, or of a namespace in it
	rest  rest.Interface
	link  *servers.Link
	store holder
	touch func()        // the state of the source has changed
	rests time.Duration // how long it pauses at least

	mu sync.Mutex
	// mu guards the rest.
	err    error     // the API server's last answer, when it was no
	broken time.Time // since when there is no watch; zero: there is one
	cut    bool      // the last watch ended before its time
}

// run lists and watches until ctx is done.
func (s *source) run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.Discard()) // what goes wrong is told by the cluster, once
	r := cache.NewReflectorWithOptions(s, s.one(), s.store, cache.ReflectorOptions{Name: s.name, TypeDescription: s.name})
	r.WatchListPageSize = pageSize
	r.RunWithContext(ctx)
}

// state gives the answer that keeps the source from being up to date, and since when it has no watch.
func (s *source) state() (broken time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken, s.err
}

// note remembers how a request ended.
func (s *source) note(err error, watching bool) {
	s.mu.Lock()
	was := s.err
	s.err = err
	if watching && err == nil {
		s.broken = time.Time{}
	}
	s.mu.Unlock()
	// A token that is not taken says nothing of the kind: nothing is read with it, and it is waited for another.
	if s.optional && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)) {
		s.store.pass()
	}
	if (err == nil) != (was == nil) || err != nil && err.Error() != was.Error() {
		s.touch()
	}
}

// refusedPause is the least time, and half of the longest, for which a Secret that we may not read is not asked for
// again: there may be many of them, and every agent asks.
const refusedPause = 2 * time.Minute

// pause waits before a single object is asked for again that we were refused last time.
func (s *source) pause(ctx context.Context) {
	if !s.single || s.refused() == nil {
		return
	}
	again := time.NewTimer(s.rests + rand.N(s.rests))
	defer again.Stop()
	select {
	case <-ctx.Done():
	case <-again.C:
	}
}

// List implements cache.ListerWatcher.
func (s *source) List(o metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), o)
}

// Watch implements cache.ListerWatcher.
func (s *source) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), o)
}

var _ cache.ListerWatcherWithContext = (*source)(nil)

// ListWithContext implements cache.ListerWatcherWithContext.
func (s *source) ListWithContext(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
	s.pause(ctx)
	err = s.link.Do(ctx, func() error {
		list = s.list()
		return s.request(&o, "List").Do(ctx).Into(list)
	})
	s.note(err, false)
	if err != nil {
		return nil, err
	}
	return list, apimeta.EachListItem(list, func(obj runtime.Object) error { s.strip(obj); return nil })
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (s *source) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.AllowWatchBookmarks = true
	s.pause(ctx)
	var w watch.Interface
	var first []watch.Event
	err := s.link.Do(ctx, func() (err error) {
		if err = s.wentBack(ctx, &o); err != nil {
			return err
		}
		if w, err = s.request(&o, "").Watch(ctx); err != nil {
			return err
		}
		// A connection that breaks before there is an answer passes for a watch that has ended.
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return io.ErrUnexpectedEOF
			}
			first = []watch.Event{e}
		default:
		}
		return nil
	})
	if err != nil {
		if !apierrors.IsResourceExpired(err) && !apierrors.IsInvalid(err) { // the reflector knows what to do
			s.note(err, true)
		}
		return nil, err
	}
	s.note(nil, true)
	return s.observe(ctx, w, first, &o), nil
}

// observe strips what arrives, and notices the end.
func (s *source) observe(ctx context.Context, w watch.Interface, first []watch.Event, o *metav1.ListOptions) watch.Interface {
	due := time.Now()
	if o.TimeoutSeconds != nil {
		due = due.Add(time.Duration(*o.TimeoutSeconds)*time.Second - time.Second)
	}
	out := &observed{Interface: w, result: make(chan watch.Event), stop: make(chan struct{})}
	pass := func(e watch.Event) {
		switch e.Type {
		case watch.Added, watch.Modified, watch.Deleted:
			s.strip(e.Object)
		}
		select {
		case out.result <- e:
		case <-out.stop:
			w.Stop()
		}
	}
	go func() {
		defer close(out.result)
		for _, e := range first {
			pass(e)
		}
		for e := range w.ResultChan() {
			pass(e)
		}
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.cut = time.Now().Before(due)
		s.broken = time.Now()
		s.mu.Unlock()
	}()
	return out
}

// observed is a watch that somebody looks through.
type observed struct {
	watch.Interface
	result chan watch.Event
	stop   chan struct{}
	once   sync.Once
}

// ResultChan implements watch.Interface.
func (o *observed) ResultChan() <-chan watch.Event { return o.result }

// Stop implements watch.Interface.
func (o *observed) Stop() {
	o.once.Do(func() { close(o.stop) })
	o.Interface.Stop()
}

// wentBack gives an error that has the reflector list anew when the API server's history ends before the version
// that a watch shall go on from: its etcd was restored. Such a server takes the watch and says nothing of what has
// changed until it gets there. It is asked only when the watch before was cut, as it is when a server is stopped.
func (s *source) wentBack(ctx context.Context, o *metav1.ListOptions) error {
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	if !cut || o.ResourceVersion == "" || o.ResourceVersion == "0" || o.SendInitialEvents != nil {
		return nil
	}
	list := s.list()
	if err := s.request(&metav1.ListOptions{Limit: 1}, "List").Do(ctx).Into(list); err != nil {
		return err
	}
	s.mu.Lock()
	s.cut = false
	s.mu.Unlock()
	m, err := apimeta.ListAccessor(list)
	if err != nil {
		return err
	}
	if order, err := resourceversion.CompareResourceVersion(m.GetResourceVersion(), o.ResourceVersion); err == nil && order < 0 {
		return apierrors.NewResourceExpired(fmt.Sprintf("the API server is at version %s and was at %s", m.GetResourceVersion(), o.ResourceVersion))
	}
	return nil
}

// request is a list when as is "List", else a watch.
func (s *source) request(o *metav1.ListOptions, as string) *rest.Request {
	o.FieldSelector = s.selector
	o.Watch = as == ""
	r := s.rest.Get().AbsPath(s.path, s.kind.Resource()).SpecificallyVersionedParams(o, parameters, schema.GroupVersion{Version: "v1"})
	if s.names {
		as = "as=PartialObjectMetadata" + as + ";g=meta.k8s.io;v=v1"
		r.SetHeader("Accept", protobuf+";"+as+",application/json;"+as)
	}
	return r
}
