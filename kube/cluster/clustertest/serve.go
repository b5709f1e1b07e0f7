package clustertest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

var (
	scheme = newScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kube.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return s
}

// answer writes responses in the format that the client prefers.
type answer struct {
	w       http.ResponseWriter
	info    runtime.SerializerInfo
	partial bool
	as      runtime.GroupVersioner // of objects that exist in it
}

// versionOf returns the version of the API for which a path asks.
func versionOf(path string) schema.GroupVersion {
	parts := strings.Split(path, "/")
	if len(parts) < 4 || parts[1] != "apis" {
		return schema.GroupVersion{Version: "v1"}
	}
	return schema.GroupVersion{Group: parts[2], Version: parts[3]}
}

func newAnswer(w http.ResponseWriter, r *http.Request) *answer {
	accept := r.Header.Get("Accept")
	want := runtime.ContentTypeJSON
	// A real server has only JSON for the kinds of CustomResourceDefinitions.
	group := strings.HasPrefix(r.URL.Path, "/apis/"+v1alpha1.GroupVersion.Group+"/") || strings.HasPrefix(r.URL.Path, "/apis/"+policyapi.Group+"/")
	custom := group && !strings.Contains(accept, "as=PartialObjectMetadata")
	if strings.HasPrefix(accept, runtime.ContentTypeProtobuf) && !custom {
		want = runtime.ContentTypeProtobuf
	}
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), want)
	return &answer{w: w, info: info, as: versionOf(r.URL.Path), partial: strings.Contains(accept, "as=PartialObjectMetadata")}
}

func (a *answer) encoder() runtime.Encoder {
	return codecs.WithoutConversion().EncoderForVersion(a.info.Serializer, a.as)
}

func (a *answer) object(status int, obj runtime.Object) {
	a.w.Header().Set("Content-Type", a.info.MediaType)
	a.w.WriteHeader(status)
	_ = a.encoder().Encode(obj.DeepCopyObject(), a.w) // encoding sets the kind in the object
}

func (a *answer) fail(err *apierrors.StatusError) {
	status := err.Status()
	a.object(int(status.Code), &status)
}

// request is what the path of a request asks for.
type request struct {
	namespace, resource, name, sub string
}

func parsePath(path string) request {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if len(parts) > 0 && parts[0] == "api" {
		parts = parts[min(2, len(parts)):]
	} else {
		parts = parts[min(3, len(parts)):]
	}
	var r request
	if len(parts) > 2 && parts[0] == "namespaces" {
		r.namespace, parts = parts[1], parts[2:]
	}
	for i, at := range []*string{&r.resource, &r.name, &r.sub} {
		if i < len(parts) {
			*at = parts[i]
		}
	}
	return r
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" {
		s.mu.Lock()
		ready := s.ready
		s.mu.Unlock()
		if !ready {
			http.Error(w, "not ready", http.StatusInternalServerError)
		}
		return
	}
	a, req := newAnswer(w, r), parsePath(r.URL.Path)
	q := r.URL.Query()
	line := r.Method + " " + strings.TrimRight(req.resource+"/"+req.name+"/"+req.sub, "/")
	if r.Method == http.MethodGet && req.name == "" {
		switch {
		case q.Get("watch") != "":
			line += " watch"
		case q.Get("limit") == "1":
			line += " version" // no client lists a single object for another reason
		default:
			line += " list"
		}
	}
	s.mu.Lock()
	s.requests = append(s.requests, line)
	s.clients[r.UserAgent()] = true
	status, held := cmp.Or(s.answers[req.resource], s.answers[versionOf(r.URL.Path).Version+"/"+req.resource]), s.held[req.resource]
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	group := schema.GroupResource{Resource: req.resource}
	switch {
	case status == http.StatusForbidden:
		a.fail(apierrors.NewForbidden(group, req.name, fmt.Errorf("refused by the test")))
	case status == http.StatusNotFound || listOf(req.resource) == nil:
		a.fail(apierrors.NewNotFound(group, req.name))
	case status != 0:
		a.fail(apierrors.NewGenericServerResponse(status, r.Method, group, req.name, "answered by the test", 0, true))
	case r.Method == http.MethodPatch:
		s.patch(a, r, req)
	case r.Method == http.MethodPost && req.sub == "eviction":
		s.evict(a, r, req)
	case r.Method == http.MethodPost:
		s.create(a, r, req)
	case req.name != "":
		s.get(a, req)
	case q.Get("watch") != "":
		s.watch(a, r, req)
	default:
		s.list(a, r, req)
	}
}

func (s *Server) get(a *answer, req request) {
	s.mu.Lock()
	obj := s.state.objects[req.resource][req.namespace+"/"+req.name]
	s.mu.Unlock()
	if obj == nil {
		a.fail(apierrors.NewNotFound(schema.GroupResource{Resource: req.resource}, req.name))
		return
	}
	a.object(http.StatusOK, obj)
}

func (s *Server) list(a *answer, r *http.Request, req request) {
	q := r.URL.Query()
	s.mu.Lock()
	version := s.state.version
	items := sorted(s.state.objects[req.resource], matcher(req.namespace, q.Get("fieldSelector")))
	s.mu.Unlock()
	if asked, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64); asked > version {
		a.fail(tooLarge(asked, version))
		return
	}
	from, _ := strconv.Atoi(q.Get("continue"))
	items = items[min(from, len(items)):]
	m := metav1.ListMeta{ResourceVersion: strconv.FormatInt(version, 10)}
	if limit, _ := strconv.Atoi(q.Get("limit")); limit > 0 && limit < len(items) {
		items = items[:limit]
		m.Continue = strconv.Itoa(from + limit)
	}
	list := listOf(req.resource)
	if a.partial {
		list = &metav1.PartialObjectMetadataList{}
	}
	if err := setItems(list, items, a.partial); err != nil {
		a.fail(apierrors.NewInternalError(err))
		return
	}
	l, _ := meta.ListAccessor(list)
	l.SetResourceVersion(m.ResourceVersion)
	l.SetContinue(m.Continue)
	a.object(http.StatusOK, list)
}

func tooLarge(asked, version int64) *apierrors.StatusError {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, version), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

func (s *Server) watch(a *answer, r *http.Request, req request) {
	q := r.URL.Query()
	stream := q.Get("sendInitialEvents") == "true"
	if stream && !s.Streams {
		a.fail(apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
		return
	}
	wanted := matcher(req.namespace, q.Get("fieldSelector"))
	from, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	s.mu.Lock()
	version, oldest, cut := s.state.version, s.oldest, s.cut
	initial := sorted(s.state.objects[req.resource], wanted)
	s.mu.Unlock()
	switch {
	case stream && from > version:
		a.fail(tooLarge(from, version))
		return
	case !stream && from < oldest && from != 0:
		a.fail(apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", from, oldest)))
		return
	}
	w := a.events()
	if stream {
		for _, obj := range initial {
			w.send(watch.Added, obj)
		}
		mark := listOf(req.resource)
		w.mark(mark, version)
		from = version
	}
	w.flush()
	s.follow(r, w, req.resource, wanted, from, cut)
}

// follow sends the changes after a version. As in a real server, a client is not told that its version lies in the
// future.
func (s *Server) follow(r *http.Request, w *events, resource string, wanted func(Object) bool, from int64, cut <-chan struct{}) {
	for {
		s.mu.Lock()
		changed := s.changed
		var news []event
		for _, e := range s.history {
			if e.version > from {
				switch from = e.version; {
				case e.resource != resource:
				case wanted(e.object):
					news = append(news, e)
				case e.before != nil && wanted(e.before): // it is gone for who asks for such objects
					e.kind = watch.Deleted
					news = append(news, e)
				}
			}
		}
		s.mu.Unlock()
		for _, e := range news {
			w.send(e.kind, e.object)
		}
		w.flush()
		select {
		case <-cut:
			return
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

func (s *Server) patch(a *answer, r *http.Request, req request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	old := s.state.objects[req.resource][req.namespace+"/"+req.name]
	if old == nil {
		s.mu.Unlock()
		a.fail(apierrors.NewNotFound(schema.GroupResource{Resource: req.resource}, req.name))
		return
	}
	var now Object
	if strings.Contains(r.Header.Get("Content-Type"), "strategic") {
		now, err = strategic(old, body)
	} else {
		now, err = patched(old, body)
	}
	if err == nil {
		s.putLocked(now)
	}
	s.mu.Unlock()
	if err != nil {
		a.fail(apierrors.NewBadRequest(err.Error()))
		return
	}
	a.object(http.StatusOK, now)
}

func strategic(obj Object, patch []byte) (Object, error) {
	data, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	if data, err = strategicpatch.StrategicMergePatch(data, patch, obj); err != nil {
		return nil, err
	}
	return patched(obj, data)
}

func (s *Server) create(a *answer, r *http.Request, req request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	decoded, err := runtime.Decode(codecs.UniversalDeserializer(), body)
	if err != nil {
		a.fail(apierrors.NewBadRequest(err.Error()))
		return
	}
	obj := decoded.(Object)
	s.mu.Lock()
	_, there := s.state.objects[req.resource][obj.GetNamespace()+"/"+obj.GetName()]
	if !there {
		s.putLocked(obj)
	}
	s.mu.Unlock()
	if there {
		a.fail(apierrors.NewAlreadyExists(schema.GroupResource{Resource: req.resource}, obj.GetName()))
		return
	}
	a.object(http.StatusCreated, obj)
}

// evict deletes a pod at once, unless the test answers for "evictions" as an API server does that has a budget.
func (s *Server) evict(a *answer, r *http.Request, req request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var asked policyv1.Eviction
	if err := json.Unmarshal(body, &asked); err != nil || asked.Name != req.name || asked.Namespace != req.namespace {
		a.fail(apierrors.NewBadRequest(fmt.Sprintf("no eviction of this pod: %s, %v", body, err)))
		return
	}
	s.mu.Lock()
	status, pod := s.answers["evictions"], s.state.objects["pods"][req.namespace+"/"+req.name]
	s.mu.Unlock()
	pods := schema.GroupResource{Resource: "pods"}
	o := asked.DeleteOptions
	switch {
	case status != 0:
		a.fail(apierrors.NewGenericServerResponse(status, r.Method, pods, req.name, "answered by the test", 0, true))
	case pod == nil:
		a.fail(apierrors.NewNotFound(pods, req.name))
	case o != nil && o.Preconditions != nil && o.Preconditions.UID != nil && *o.Preconditions.UID != pod.GetUID():
		a.fail(apierrors.NewConflict(pods, req.name, errors.New("the UID is another one")))
	default:
		s.Delete(pod)
		a.object(http.StatusCreated, &metav1.Status{Status: metav1.StatusSuccess})
	}
}
