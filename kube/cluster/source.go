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

	"tapestry.dev/tapestry/kube/cluster/connect"
	"tapestry.dev/tapestry/kube/cluster/servers"
	"tapestry.dev/tapestry/kube/cluster/turns"
)

// pageSize is the largest number of objects in one answer.
const pageSize = 500

// source keeps a store filled with the objects of one kind.
type source struct {
	row
	name  string   // in messages
	paths []string // of the versions of the API group, the better one first; or of a namespace in it
	rest  rest.Interface
	link  *servers.Link
	store holder
	touch func()        // called when the state of the source changes
	while *gate         // it is read while this is open; nil: always
	rests time.Duration // the least pause after a refusal
	// turns paces requests among all sources that share it, whose owners take turns. nil: requests are sent at once.
	turns *turns.Turns
	owner string

	version int // the index of the path that is asked; only requests, one after the other, use it

	mu sync.Mutex
	// mu guards the rest.
	err    error     // the API server's last answer, when it was an error
	broken time.Time // when the watch was lost; zero while there is one
	cut    bool      // the last watch ended early
}

// run lists and watches until ctx is done.
func (s *source) run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.Discard()) // the cluster reports what goes wrong, once
	if s.while == nil {
		s.read(ctx)
		return
	}
	for {
		turn, ok := s.while.enter(ctx)
		if !ok {
			return
		}
		reading, end := context.WithCancel(ctx)
		stop := context.AfterFunc(turn, end)
		s.read(reading)
		stop()
		end()
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.broken, s.err = time.Now(), nil
		s.mu.Unlock()
		s.store.forget()
		s.touch()
	}
}

func (s *source) read(ctx context.Context) {
	r := cache.NewReflectorWithOptions(s, s.one(), s.store, cache.ReflectorOptions{Name: s.name, TypeDescription: s.name})
	r.WatchListPageSize = pageSize
	r.RunWithContext(ctx)
}

// asked is state, as of a source that works while nobody needs it. What is needed is not there since then at least.
func (s *source) asked() (broken time.Time, err error) {
	broken, err = s.state()
	if s.while == nil || broken.IsZero() {
		return broken, err
	}
	switch since, needed := s.while.isOpen(); {
	case !needed:
		return time.Time{}, nil
	case since.After(broken):
		return since, err
	}
	return broken, err
}

// state returns when the watch was lost, and the answer that keeps the source from being up to date.
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
	// A token that is not accepted says nothing about the kind: nothing can be read with it, and the agent waits for
	// another.
	if s.without(err) {
		s.store.pass()
	}
	if (err == nil) != (was == nil) || err != nil && err.Error() != was.Error() {
		s.touch()
	}
}

// refusedPause is the shortest, and half of the longest, pause before a Secret is asked for again that the agent may
// not read. There may be many such Secrets, and every agent asks.
const refusedPause = 2 * time.Minute

// pause waits before a request for a single object that was refused last time.
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

// do sends a request as soon as a server can be reached, and again when the server was lost on the way. Of a kind that
// the server does not know in one version it asks for the next one.
func (s *source) do(ctx context.Context, request func() error) (err error) {
	for range s.paths {
		if err = s.send(ctx, request); !apierrors.IsNotFound(err) {
			return err
		}
		s.version = (s.version + 1) % len(s.paths)
	}
	return err
}

func (s *source) send(ctx context.Context, request func() error) error {
	if s.turns == nil {
		return s.link.Do(ctx, request)
	}
	return s.link.Do(ctx, func() error { return s.turns.Do(ctx, s.owner, request) })
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
	err = s.do(ctx, func() error {
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
	err := s.do(ctx, func() (err error) {
		if err = s.wentBack(ctx, &o); err != nil {
			return err
		}
		if w, err = s.request(&o, "").Watch(ctx); err != nil {
			return err
		}
		// A connection that breaks before the answer looks like a watch that has ended.
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
		if !apierrors.IsResourceExpired(err) && !apierrors.IsInvalid(err) { // the reflector handles those two
			s.note(err, true)
		}
		return nil, err
	}
	s.note(nil, true)
	return s.observe(ctx, w, first, &o), nil
}

// observe strips the objects that arrive, and notices when the watch ends.
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

// observed is a watch whose events observe has passed on.
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

// wentBack returns an error that makes the reflector list anew when the API server's history ends before the version
// from which the watch is to continue: its etcd was restored. Such a server accepts the watch, and reports no change
// until it reaches that version. wentBack asks only when the last watch was cut, as happens when a server is stopped.
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

// request returns a request for a list when as is "List", and for a watch when as is "".
func (s *source) request(o *metav1.ListOptions, as string) *rest.Request {
	if s.selector != nil {
		o.FieldSelector = s.selector.String()
	}
	o.Watch = as == ""
	r := s.rest.Get().AbsPath(s.paths[s.version], s.kind.Resource()).SpecificallyVersionedParams(o, connect.Parameters, schema.GroupVersion{Version: "v1"})
	if s.names {
		as = "as=PartialObjectMetadata" + as + ";g=meta.k8s.io;v=v1"
		r.SetHeader("Accept", connect.Protobuf+";"+as+",application/json;"+as)
	}
	return r
}
