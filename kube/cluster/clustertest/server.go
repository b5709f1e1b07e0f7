// Package clustertest is a small API server in memory, for tests. Like a real one, it lists, in pages or as a stream,
// watches, and accepts patches of Nodes and Events, in JSON or protobuf. A test can stop and start it, make it refuse
// a kind or not know it, compact its history, and restore an older state.
package clustertest

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"tapestry.dev/tapestry/kube"
)

// Object is a pointer to an object of the API.
type Object interface {
	runtime.Object
	metav1.Object
}

// Server is an API server. Make it with New.
type Server struct {
	// URL is the server's address. It stays the same when the server stops and starts.
	URL string
	// Streams is set to offer lists as a stream of events (KEP-3157). Set it before the server is used.
	Streams bool

	t    testing.TB
	addr string
	cert *tls.Certificate // nil for plain HTTP/1.1

	mu sync.Mutex
	// mu guards the rest.
	http     *http.Server
	state    State
	history  []event // since the last compaction
	oldest   int64   // the version from which on history is complete
	changed  chan struct{}
	cut      chan struct{} // closed to end every watch
	answers  map[string]int
	held     map[string]chan struct{} // by resource; closed when its requests are answered again
	ready    bool
	requests []string
	clients  map[string]bool
}

// State is everything that a server stores. Restore puts it back.
type State struct {
	version int64
	objects map[string]map[string]Object // by resource, by namespace/name
	uids    int
}

type event struct {
	version  int64
	resource string
	kind     watch.EventType
	object   Object
	before   Object // nil if it was not there
}

// New starts a server, which stops when the test ends.
func New(t testing.TB) *Server { return start(t, nil) }

// NewTLS starts a server that speaks HTTP/2, as real ones do.
func NewTLS(t testing.TB) *Server {
	h := httptest.NewUnstartedServer(nil) // has a certificate for 127.0.0.1
	h.StartTLS()
	defer h.Close()
	return start(t, &h.TLS.Certificates[0])
}

func start(t testing.TB, cert *tls.Certificate) *Server {
	s := &Server{
		t: t, cert: cert, ready: true, answers: map[string]int{}, held: map[string]chan struct{}{}, clients: map[string]bool{}, changed: make(chan struct{}), cut: make(chan struct{}),
		state: State{version: 1, objects: map[string]map[string]Object{}}, oldest: 1,
	}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Start listens, at the same address as before.
func (s *Server) Start() {
	s.t.Helper()
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.URL = "http://" + s.addr
	if s.cert != nil {
		s.URL = "https://" + s.addr
	}
	s.mu.Lock()
	s.cut = make(chan struct{})
	s.http = &http.Server{Handler: s}
	h := s.http
	s.mu.Unlock()
	if s.cert == nil {
		go func() { _ = h.Serve(l) }()
		return
	}
	h.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*s.cert}}
	go func() { _ = h.ServeTLS(l, "", "") }()
}

// Stop cuts all connections and refuses new ones.
func (s *Server) Stop() {
	s.mu.Lock()
	h := s.http
	s.http = nil
	if h != nil {
		close(s.cut)
	}
	s.mu.Unlock()
	if h != nil {
		_ = h.Close()
	}
}

// CutWatches ends every watch, as a server does when it is told to stop.
func (s *Server) CutWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Kubeconfig writes a kubeconfig for the server and returns its path.
func (s *Server) Kubeconfig() string {
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	cluster := "server: " + strconv.Quote(s.URL)
	if s.cert != nil {
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Certificate[0]})
		cluster += ", certificate-authority-data: " + base64.StdEncoding.EncodeToString(ca)
	}
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {" + cluster + "}}]\n" +
		"users: [{name: u, user: {}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Put creates objects or replaces them. The server keeps copies.
func (s *Server) Put(list ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, obj := range list {
		s.putLocked(obj.DeepCopyObject().(Object))
	}
}

func (s *Server) putLocked(obj Object) {
	resource := resourceOf(obj)
	byName := s.state.objects[resource]
	if byName == nil {
		byName = map[string]Object{}
		s.state.objects[resource] = byName
	}
	key := obj.GetNamespace() + "/" + obj.GetName()
	kind := watch.Added
	old := byName[key]
	if old != nil {
		kind = watch.Modified
		obj.SetUID(old.GetUID())
	} else if obj.GetUID() == "" {
		s.state.uids++
		obj.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", s.state.uids)))
	}
	s.state.version++
	obj.SetResourceVersion(strconv.FormatInt(s.state.version, 10))
	byName[key] = obj
	s.logLocked(event{s.state.version, resource, kind, obj, old})
}

func (s *Server) logLocked(e event) {
	s.history = append(s.history, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Delete removes objects. Only their names matter.
func (s *Server) Delete(list ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, obj := range list {
		resource, key := resourceOf(obj), obj.GetNamespace()+"/"+obj.GetName()
		old := s.state.objects[resource][key]
		if old == nil {
			s.t.Errorf("there is no %s %s to delete", resource, key)
			continue
		}
		delete(s.state.objects[resource], key)
		s.state.version++
		gone := old.DeepCopyObject().(Object)
		gone.SetResourceVersion(strconv.FormatInt(s.state.version, 10))
		s.logLocked(event{s.state.version, resource, watch.Deleted, gone, old})
	}
}

// Get returns the object of that type and name, or nil.
func Get[T Object](s *Server, namespace, name string) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var none T
	typed := reflect.New(reflect.TypeOf(none).Elem()).Interface().(T)
	obj, _ := s.state.objects[resourceOf(typed)][namespace+"/"+name].(T)
	return obj
}

// List returns all objects of a type, in no order.
func List[T Object](s *Server) []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var none T
	typed := reflect.New(reflect.TypeOf(none).Elem()).Interface().(T)
	var list []T
	for _, obj := range s.state.objects[resourceOf(typed)] {
		list = append(list, obj.(T))
	}
	return list
}

// Answer makes the server answer every request for a resource ("secrets") with an HTTP status; 0 restores the normal
// answers.
func (s *Server) Answer(resource string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[resource] = status
}

// Hold makes requests for a resource ("secrets") wait until the func that it returns is called.
func (s *Server) Hold(resource string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make(chan struct{})
	s.held[resource] = held
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, resource)
		close(held)
	}
}

// SetReady sets whether the server says that it is ready.
func (s *Server) SetReady(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = ready
}

// Compact forgets the history: a watch from an earlier version gets the error that its version has expired.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history, s.oldest = nil, s.state.version
}

// Save returns the state, for Restore.
func (s *Server) Save() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := State{version: s.state.version, uids: s.state.uids, objects: map[string]map[string]Object{}}
	for resource, byName := range s.state.objects {
		out.objects[resource] = maps.Clone(byName)
	}
	return out
}

// Restore goes back to a state, versions included, and ends every watch, as if etcd was restored and the API server
// restarted.
func (s *Server) Restore(st State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.history, s.oldest = st, nil, st.version
	close(s.cut)
	s.cut = make(chan struct{})
}

// Requests returns the requests so far, in order, and forgets them. They read "GET services list", "GET services
// watch", "GET services version" (a list of one), "PATCH nodes/n1/status" and so on.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.requests
	s.requests = nil
	return out
}

// Clients returns the User-Agents of all requests so far, sorted.
func (s *Server) Clients() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.clients))
}

// eventResource is the resource of Events, the only kind that is written and never read.
const eventResource = "events"

func resourceOf(obj Object) string {
	if _, ok := obj.(*corev1.Event); ok {
		return eventResource
	}
	if k := kube.KindOf(obj); k != nil {
		return k.Resource()
	}
	panic(fmt.Sprintf("clustertest: there is no place for %T", obj))
}

// listOf returns an empty list for a resource, or nil for an unknown one. For kinds of which clients read only the
// names, it is a list of metadata.
func listOf(resource string) runtime.Object {
	if resource == eventResource {
		return &corev1.EventList{}
	}
	for _, k := range kube.Kinds() {
		switch {
		case k.Resource() != resource || !k.Held():
		case scheme.Recognizes(k.GroupVersionKind()):
			return kube.NewList(scheme, k)
		default:
			return &metav1.PartialObjectMetadataList{}
		}
	}
	return nil
}

// merge applies a JSON merge patch (RFC 7386).
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = merge(t[k], v)
		}
	}
	return t
}

// patched returns obj with a merge patch applied.
func patched(obj Object, patch []byte) (Object, error) {
	data, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var target, change any
	if err := json.Unmarshal(data, &target); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(patch, &change); err != nil {
		return nil, err
	}
	if data, err = json.Marshal(merge(target, change)); err != nil {
		return nil, err
	}
	out := reflect.New(reflect.TypeOf(obj).Elem()).Interface().(Object)
	return out, json.Unmarshal(data, out)
}

// sorted returns the objects that are wanted, in the order of their keys.
func sorted(byName map[string]Object, wanted func(Object) bool) []Object {
	var out []Object
	for _, key := range slices.Sorted(maps.Keys(byName)) {
		if wanted(byName[key]) {
			out = append(out, byName[key])
		}
	}
	return out
}

// matcher returns a filter for a namespace and for the field selectors that package cluster uses.
func matcher(namespace, selector string) func(Object) bool {
	which, err := fields.ParseSelector(selector)
	if err != nil {
		panic(err) // of a request that no server accepts
	}
	return func(obj Object) bool {
		if namespace != "" && obj.GetNamespace() != namespace {
			return false
		}
		has := fields.Set{"metadata.name": obj.GetName()}
		if p, ok := obj.(*corev1.Pod); ok {
			has["spec.nodeName"], has["status.phase"] = p.Spec.NodeName, string(p.Status.Phase)
		}
		return which.Matches(has)
	}
}

func setItems(list runtime.Object, items []Object, partial bool) error {
	objs := make([]runtime.Object, len(items))
	for i, obj := range items {
		if objs[i] = obj; partial {
			objs[i] = asPartial(obj)
		}
	}
	return meta.SetList(list, objs)
}

func asPartial(obj Object) *metav1.PartialObjectMetadata {
	p := meta.AsPartialObjectMetadata(obj)
	p.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
	p.GetObjectKind().SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
	return p
}
