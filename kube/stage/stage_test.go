package stage

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/version"
)

func node(name string, edit func(*corev1.Node)) corev1.Node {
	n := corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: name}},
		},
	}
	if edit != nil {
		edit(&n)
	}
	return n
}

func TestUsableNodes(t *testing.T) {
	got := usableNodes([]corev1.Node{
		node("b", nil),
		node("unready", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }),
		node("cordoned", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
		node("control", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Effect: corev1.TaintEffectNoSchedule}} }),
		node("a", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Effect: corev1.TaintEffectPreferNoSchedule}} }),
	})
	if len(got) != 2 || got[0].Name != "a" || got[1].Name != "b" || !slices.Equal(got[0].Addrs, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) {
		t.Errorf("got %+v", got)
	}
}

func TestUnready(t *testing.T) {
	pod := func(name string, edit func(*corev1.PodStatus)) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PodStatus{Phase: corev1.PodPending}}
		edit(&p.Status)
		return p
	}
	got := unready([]corev1.Pod{
		pod("ready", func(s *corev1.PodStatus) {
			s.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}),
		pod("homeless", func(s *corev1.PodStatus) {
			s.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no room"}}
		}),
		pod("pulling", func(s *corev1.PodStatus) {
			s.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}}}
		}),
		pod("new", func(*corev1.PodStatus) {}),
	})
	if want := "pod homeless (no room), pod pulling (ErrImagePull), pod new (Pending)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// server is an API server that keeps what is created, and makes every pod ready at once.
type server struct {
	mu      sync.Mutex
	pods    map[string]*corev1.Pod
	agents  []corev1.Pod
	deleted []string
	refuse  string // the resource that may not be created
	client  string // the User-Agent of the last request
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = r.UserAgent()
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	resource := path[strings.LastIndex(path, "/")+1:]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost && resource == s.refuse:
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonForbidden, Message: "not for you", Code: 403})
	case r.Method == http.MethodPost && resource == "namespaces":
		_ = json.NewEncoder(w).Encode(corev1.Namespace{TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "tapestry-test-x"}})
	case r.Method == http.MethodPost && resource == "pods":
		p := &corev1.Pod{}
		_ = json.NewDecoder(r.Body).Decode(p)
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		p.Status.PodIP = "10.244.1." + string(rune('1'+len(s.pods)))
		p.Spec.NodeName = p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
		s.pods[p.Name] = p
		_ = json.NewEncoder(w).Encode(p)
	case r.Method == http.MethodPost && resource == "services":
		svc := &corev1.Service{}
		_ = json.NewDecoder(r.Body).Decode(svc)
		svc.Spec.ClusterIPs = []string{"10.96.0.7", "fd96::7"}
		svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort = 30001, 30002
		_ = json.NewEncoder(w).Encode(svc)
	case r.Method == http.MethodGet && resource == "nodes":
		_ = json.NewEncoder(w).Encode(corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: []corev1.Node{node("n1", nil), node("n2", nil), node("n3", nil)}})
	case r.Method == http.MethodGet && resource == "pods":
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		if r.URL.Query().Get("labelSelector") != "" {
			list.Items = s.agents
		} else {
			for _, p := range s.pods {
				list.Items = append(list.Items, *p)
			}
		}
		_ = json.NewEncoder(w).Encode(list)
	case r.Method == http.MethodDelete:
		s.deleted = append(s.deleted, path)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func start(t *testing.T, s *server) Options {
	t.Helper()
	s.pods = map[string]*corev1.Pod{}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],` +
		`"clusters":[{"name":"c","cluster":{"server":"` + h.URL + `"}}],"users":[{"name":"u","user":{"token":"t"}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{Kubeconfig: file}
}

func TestSetup(t *testing.T) {
	api := &server{agents: []corev1.Pod{{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "agents:1", Command: []string{"/bin/tapestry", "agent"}}}}}}}
	s, err := Setup(t.Context(), start(t, api))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Nodes) != 2 || s.Namespace != "tapestry-test-x" || len(s.Services) != 3 || s.Services["far"].UDP != 30002 || len(s.Services["near"].Addrs) != 2 {
		t.Errorf("got %+v", s)
	}
	for name, want := range map[string]string{"client": "n1", "near": "n1", "far": "n2", "host": "n1"} {
		p := s.Pods[name]
		if p.Node != want || len(p.Addrs) != 1 || p.HostNetwork != (name == "host") {
			t.Errorf("pod %s is %+v", name, p)
		}
		c := api.pods[name].Spec.Containers[0]
		if c.Image != "agents:1" || c.Command[0] != "/bin/tapestry" || !*api.pods[name].Spec.SecurityContext.RunAsNonRoot {
			t.Errorf("pod %s runs %s %v", name, c.Image, c.Command)
		}
	}
	if api.client != version.UserAgent() {
		t.Errorf("the API server is asked by %q, want %q", api.client, version.UserAgent())
	}
	if err := s.Close(t.Context()); err != nil || !slices.Equal(api.deleted, []string{"namespaces/tapestry-test-x"}) {
		t.Errorf("%v, deleted %v", err, api.deleted)
	}
}

func TestSetupFails(t *testing.T) {
	api := &server{}
	o := start(t, api)
	if _, err := Setup(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--image") {
		t.Errorf("without agents and image: %v", err)
	}
	o.Image = "mine:1"
	api.refuse = "services"
	if _, err := Setup(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not for you") {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(api.deleted, []string{"namespaces/tapestry-test-x"}) {
		t.Errorf("what was made is left there: deleted %v", api.deleted)
	}
}
