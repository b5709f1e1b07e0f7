package cluster

import (
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
)

func status() kube.NodeStatus {
	return kube.NodeStatus{
		Name: "n1", PublicKey: "one", Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Features: []string{"x", "y"}, Ready: true,
		Problems: []kube.Problem{{Severity: kube.Error, Object: kube.Ref{Kind: "Service", Namespace: "x", Name: "a"}, Message: "is wrong"}},
	}
}

func patchesIn(s *clustertest.Server) []string {
	return slices.DeleteFunc(s.Requests(), func(r string) bool { return !strings.HasPrefix(r, "PATCH") })
}

// TestPublish: what a node says of itself is on its Node, only what changes is sent, and what others break is put right.
func TestPublish(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	n := node("n1")
	n.Annotations = map[string]string{"other": "stays", kube.PublicKeyAnnotation: "of before"}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}}
	s.Put(n)
	v := see(t, s)
	v.untilNames("Node n1")
	get := func() *corev1.Node { return clustertest.Get[*corev1.Node](s, "", "n1") }
	said := func(want kube.NodeStatus) func() bool {
		return func() bool {
			stripped := get().DeepCopy()
			stripNode("n1")(stripped)
			p := patchesFor(stripped, &want)
			return p.empty()
		}
	}
	st := status()
	v.Publish(st)
	eventually(t, "published", said(st))
	now := get()
	if now.Annotations["other"] != "stays" || now.Annotations[kube.PublicKeyAnnotation] != "one" || now.Annotations[kube.FeaturesAnnotation] != "x,y" ||
		now.Annotations[kube.EndpointAnnotation] != "192.0.2.1:51820" || !strings.Contains(now.Annotations[kube.ProblemsAnnotation], "is wrong") {
		t.Errorf("annotations %v", now.Annotations)
	}
	if c := now.Status.Conditions; len(c) != 2 || c[0].Status != corev1.ConditionTrue || c[1].Status != corev1.ConditionFalse || time.Since(c[1].LastTransitionTime.Time) > time.Minute {
		t.Errorf("conditions %+v", c)
	}
	if got := patchesIn(s); !slices.Equal(got, []string{"PATCH nodes/n1", "PATCH nodes/n1/status"}) {
		t.Errorf("patches %q", got)
	}
	v.Publish(st)
	st.Features, st.Problems = nil, nil
	v.Publish(st) // says less
	eventually(t, "published", said(st))
	if _, there := get().Annotations[kube.FeaturesAnnotation]; there {
		t.Error("a feature that is gone is still said")
	}
	if got := patchesIn(s); !slices.Equal(got, []string{"PATCH nodes/n1"}) {
		t.Errorf("patches %q", got)
	}
	// The server is gone while the node loses its network.
	s.Stop()
	st.Ready, st.Reason = false, "no path"
	v.Publish(st)
	s.Start()
	eventually(t, "published", said(st))
	if c := get().Status.Conditions[1]; c.Status != corev1.ConditionTrue || c.Message != "no path" {
		t.Errorf("condition %+v", c)
	}
	// An agent that starts does not know yet, and leaves what is said.
	st.Ready, st.Reason, st.PublicKey = false, "", "two"
	v.Publish(st)
	eventually(t, "published", func() bool { return get().Annotations[kube.PublicKeyAnnotation] == "two" })
	if c := get().Status.Conditions[1]; c.Status != corev1.ConditionTrue || c.Message != "no path" {
		t.Errorf("condition %+v", c)
	}
	// Somebody else changes the key.
	broken := get().DeepCopy()
	broken.Annotations[kube.PublicKeyAnnotation] = "another's"
	s.Put(broken)
	eventually(t, "put right", func() bool { return get() != nil && said(st)() && get().ResourceVersion != broken.ResourceVersion })
}

// A server that refuses is asked again, and not all the time.
func TestPublishRefused(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"))
	v := see(t, s)
	v.untilNames("Node n1")
	s.Requests()
	s.Answer("nodes", http.StatusForbidden)
	v.Publish(status())
	tries := 0
	eventually(t, "three tries", func() bool { tries += len(patchesIn(s)); return tries >= 3 })
	s.Answer("nodes", 0)
	eventually(t, "published", func() bool {
		return clustertest.Get[*corev1.Node](s, "", "n1").Annotations[kube.PublicKeyAnnotation] == "one"
	})
	if tries += len(patchesIn(s)); tries > 12 {
		t.Errorf("%d tries", tries)
	}
}

func TestShorten(t *testing.T) {
	p := kube.Problem{Severity: kube.Warning, Message: strings.Repeat("x", 1000)}
	list := slices.Repeat([]kube.Problem{p}, 200)
	st := kube.NodeStatus{Problems: shorten(list)}
	if n := len(st.Annotations()[kube.ProblemsAnnotation]); n > problemBytes+1000 || n < problemBytes/2 {
		t.Errorf("%d bytes", n)
	}
	if last := st.Problems[len(st.Problems)-1]; !strings.Contains(last.Message, "more problems") {
		t.Errorf("the last is %v", last)
	}
	if len(shorten(list[:3])) != 3 {
		t.Error("a short list was cut")
	}
}

func keyed(name string, uid types.UID, key string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid}}
	if key != "" {
		n.Annotations = map[string]string{kube.PublicKeyAnnotation: key, "x": "y"}
	}
	return n
}

// TestPins plays one node's history, state by state, and what is believed after each.
func TestPins(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	for _, step := range []struct {
		what    string
		node    *corev1.Node // nil: there is none
		guarded bool
		want    string // the key that is believed
		problem string
	}{
		{"no key yet", keyed("n", "1", ""), false, "", ""},
		{"the first is believed", keyed("n", "1", "A"), false, "A", ""},
		{"a change is refused", keyed("n", "1", "B"), false, "A", "has changed to B"},
		{"and again after a restart", keyed("n", "1", "B"), false, "A", "ValidatingAdmissionPolicy"},
		{"taken back", keyed("n", "1", "A"), false, "A", ""},
		{"it vanishes", keyed("n", "1", ""), false, "A", "has vanished"},
		{"guarded, a change is believed", keyed("n", "1", "B"), true, "B", ""},
		{"guarded, it may vanish", keyed("n", "1", ""), true, "", ""},
		{"the guard is gone: what it let through stays", keyed("n", "1", "B"), false, "B", ""},
		{"and the old key is a change", keyed("n", "1", "A"), false, "B", "has changed to A"},
		{"a new object begins anew", keyed("n", "2", "C"), false, "C", ""},
		{"the node is deleted", nil, false, "", ""},
		{"and made again", keyed("n", "3", "D"), false, "D", ""},
	} {
		p, err := openPins(file) // an agent that has just started
		if err != nil {
			t.Fatal(err)
		}
		var nodes []*corev1.Node
		if step.node != nil {
			nodes = append(nodes, step.node)
		}
		nodes = append(nodes, keyed("other", "9", "O"))
		var problems []kube.Problem
		got := p.judge(nodes, step.guarded, &problems)
		if len(got) != len(nodes) || got[len(got)-1] != nodes[len(nodes)-1] {
			t.Errorf("%s: other nodes have changed", step.what)
		}
		if step.node != nil && got[0].Annotations[kube.PublicKeyAnnotation] != step.want {
			t.Errorf("%s: believed %q, want %q", step.what, got[0].Annotations[kube.PublicKeyAnnotation], step.want)
		}
		if step.problem == "" && len(problems) > 0 || step.problem != "" && (len(problems) != 1 || !strings.Contains(problems[0].Message, step.problem)) {
			t.Errorf("%s: problems %v, want %q", step.what, problems, step.problem)
		}
		// The same question has the same answer, by pointer; another change keeps the copy.
		var more []kube.Problem
		if again := p.judge(nodes, step.guarded, &more); !kube.Same(again, got) || len(more) != len(problems) {
			t.Errorf("%s: asked again, the answer is another", step.what)
		}
		if again := p.judge(slices.Clone(nodes), step.guarded, &more); again[0] != got[0] {
			t.Errorf("%s: the copy has changed though nothing has", step.what)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openPins(file); err == nil || !strings.Contains(err.Error(), "repair or remove") {
		t.Errorf("a torn file: %v", err)
	}
	p, err := openPins(filepath.Join(t.TempDir(), "no", "such"))
	if err != nil {
		t.Fatal(err)
	}
	var problems []kube.Problem
	if p.judge([]*corev1.Node{keyed("n", "1", "A")}, false, &problems); len(problems) != 1 || !strings.Contains(problems[0].Message, "cannot be kept") {
		t.Errorf("keys that cannot be written: %v", problems)
	}
}

// The guard is seen in the cluster.
func TestGuard(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), node("n2"))
	v := see(t, s)
	v.untilNames("Node n1, Node n2")
	key := func(objs *kube.Objects) string { return objs.Nodes[1].Annotations[kube.PublicKeyAnnotation] }
	other := node("n2")
	other.Annotations[kube.PublicKeyAnnotation] = "another"
	s.Put(other)
	v.until("a refusal", func(objs *kube.Objects, problems []kube.Problem) bool {
		return key(objs) == "key of n2" && len(problems) == 1 && problems[0].Object.Name == "n2"
	})
	s.Put(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: GuardName}})
	v.until("belief", func(objs *kube.Objects, problems []kube.Problem) bool {
		return key(objs) == "another" && len(problems) == 0
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), node("n2"), service("a"), service("b"), ingress("i", "none"),
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p"}})
	v := see(t, s)
	objs := v.untilNames("Node n1, Node n2, x/a, x/b, Ingress x/i")
	of := func(kind, name, message string) kube.Problem {
		return kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: kind, Namespace: "x", Name: name}, Field: "spec", Message: message}
	}
	events := func() string {
		var list []string
		for _, e := range clustertest.List[*corev1.Event](s) {
			o := e.InvolvedObject
			if o.UID == "" || e.Namespace != "x" || e.Type != corev1.EventTypeWarning || e.LastTimestamp.IsZero() {
				t.Errorf("event %+v", e)
			}
			list = append(list, o.Kind+" "+o.Name+" "+e.Reason+" "+e.Message)
		}
		slices.Sort(list)
		return strings.Join(list, "\n")
	}
	v.Report(&objs, []kube.Problem{of("Service", "a", "is wrong"), of("Node", "n1", "no author"), of("Service", "unknown", "is not there"), of("Ingress", "i", "is odd")},
		[]kube.Problem{of("Service", "b", "no port here")})
	want := "Ingress i NotServed spec: is odd\nNetworkPolicy p NotEnforced NetworkPolicies are not enforced yet: traffic is let through as if there were none\n" +
		"Service a NotServed spec: is wrong\nService b NotServed spec: no port here"
	eventually(t, "events", func() bool { return events() == want })
	// The same again is nothing new; a problem that changes is.
	s.Requests()
	v.Report(&objs, []kube.Problem{of("Service", "a", "is wrong"), of("Ingress", "i", "is odder")}, nil)
	eventually(t, "the other", func() bool { return strings.Contains(events(), "is odder") })
	posts := slices.DeleteFunc(s.Requests(), func(r string) bool { return r != "POST events" })
	if len(posts) != 1 {
		t.Errorf("%d events were made for one that is new", len(posts))
	}
	// One that comes back is told of the Event that is there.
	v.Report(&objs, nil, nil)
	v.Report(&objs, nil, []kube.Problem{of("Service", "b", "no port here"), of("Service", "a", "of n2's only")})
	eventually(t, "events", func() bool { return strings.Contains(events(), "of n2's only") })
	if n := strings.Count(events(), "no port here"); n != 1 {
		t.Errorf("%d events of one problem", n)
	}

	// The agent of the second node leaves to the first what both see.
	second := see(t, s, func(o *Options) { o.Node = "n2" })
	objs = second.untilNames("Node n1, Node n2, x/a, x/b, Ingress x/i")
	second.Report(&objs, []kube.Problem{of("Service", "a", "seen by both")}, []kube.Problem{of("Service", "a", "seen by n2")})
	eventually(t, "its own", func() bool { return strings.Contains(events(), "seen by n2") })
	if strings.Contains(events(), "seen by both") {
		t.Error("an agent that is not the first has told what all see")
	}
}
