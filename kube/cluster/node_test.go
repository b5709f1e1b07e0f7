package cluster

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/cluster/pins"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/test/await"
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

// TestPublish checks that a node's state appears on its Node, that only changes are sent, and that changes by others
// are corrected.
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
			now, status := get(), corev1.ConditionTrue
			if want.Ready {
				status = corev1.ConditionFalse
			}
			for _, key := range kube.StatusAnnotations {
				if now.Annotations[key] != want.Annotations()[key] {
					return false
				}
			}
			return !want.Ready && want.Reason == "" || slices.ContainsFunc(now.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == corev1.NodeNetworkUnavailable && c.Status == status && (want.Ready || c.Message == want.Reason)
			})
		}
	}
	st := status()
	v.Publish(st)
	await.Until(t, "published", said(st))
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
	v.Publish(st) // without them
	await.Until(t, "published", said(st))
	if _, there := get().Annotations[kube.FeaturesAnnotation]; there {
		t.Error("a feature that is gone is still said")
	}
	if got := patchesIn(s); !slices.Equal(got, []string{"PATCH nodes/n1"}) {
		t.Errorf("patches %q", got)
	}
	// The server is down while the node loses its network.
	s.Stop()
	st.Ready, st.Reason = false, "no path"
	v.Publish(st)
	s.Start()
	await.Until(t, "published", said(st))
	if c := get().Status.Conditions[1]; c.Status != corev1.ConditionTrue || c.Message != "no path" {
		t.Errorf("condition %+v", c)
	}
	// An agent that has just started does not know its state yet, and leaves the condition as it is.
	st.Ready, st.Reason, st.PublicKey = false, "", "two"
	v.Publish(st)
	await.Until(t, "published", func() bool { return get().Annotations[kube.PublicKeyAnnotation] == "two" })
	if c := get().Status.Conditions[1]; c.Status != corev1.ConditionTrue || c.Message != "no path" {
		t.Errorf("condition %+v", c)
	}
	// Somebody else changes the key.
	broken := get().DeepCopy()
	broken.Annotations[kube.PublicKeyAnnotation] = "another's"
	s.Put(broken)
	await.Until(t, "put right", func() bool { return get() != nil && said(st)() && get().ResourceVersion != broken.ResourceVersion })
}

// A server that refuses is asked again, but not continuously.
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
	await.Until(t, "three tries", func() bool { tries += len(patchesIn(s)); return tries >= 3 })
	s.Answer("nodes", 0)
	await.Until(t, "published", func() bool {
		return clustertest.Get[*corev1.Node](s, "", "n1").Annotations[kube.PublicKeyAnnotation] == "one"
	})
	if tries += len(patchesIn(s)); tries > 12 {
		t.Errorf("%d tries", tries)
	}
}

// The Cluster notices whether the guard is in the cluster.
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
	s.Put(&kube.PolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: pins.Guard}})
	v.until("belief", func(objs *kube.Objects, problems []kube.Problem) bool {
		return key(objs) == "another" && len(problems) == 0
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), node("n2"), service("a"), service("b"), ingress("i", "none"))
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
	want := "Ingress i NotServed spec: is odd\nService a NotServed spec: is wrong\nService b NotServed spec: no port here"
	await.Until(t, "events", func() bool { return events() == want })
	// An unchanged problem causes no new Event; a changed one does.
	s.Requests()
	v.Report(&objs, []kube.Problem{of("Service", "a", "is wrong"), of("Ingress", "i", "is odder")}, nil)
	await.Until(t, "the other", func() bool { return strings.Contains(events(), "is odder") })
	posts := slices.DeleteFunc(s.Requests(), func(r string) bool { return r != "POST events" })
	if len(posts) != 1 {
		t.Errorf("%d events were made for one that is new", len(posts))
	}
	// A problem that comes back renews the existing Event.
	v.Report(&objs, nil, nil)
	v.Report(&objs, nil, []kube.Problem{of("Service", "b", "no port here"), of("Service", "a", "of n2's only")})
	await.Until(t, "events", func() bool { return strings.Contains(events(), "of n2's only") })
	if n := strings.Count(events(), "no port here"); n != 1 {
		t.Errorf("%d events of one problem", n)
	}

	// The agent of the second node leaves the shared problems to the first.
	second := see(t, s, func(o *Options) { o.Node = "n2" })
	objs = second.untilNames("Node n1, Node n2, x/a, x/b, Ingress x/i")
	second.Report(&objs, []kube.Problem{of("Service", "a", "seen by both")}, []kube.Problem{of("Service", "a", "seen by n2")})
	await.Until(t, "its own", func() bool { return strings.Contains(events(), "seen by n2") })
	if strings.Contains(events(), "seen by both") {
		t.Error("an agent that is not the first has told what all see")
	}
}

// A node that gets another name and keeps its key is two Nodes for some time. The first by name has the key, and the
// other gets a Problem, until the old Node is deleted.
func TestRenamedNode(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	of := func(name, cidr string) *corev1.Node {
		n := node(name)
		n.Annotations[kube.PublicKeyAnnotation], n.Spec.PodCIDRs = key, []string{cidr}
		return n
	}
	own := node("n1")
	delete(own.Annotations, kube.PublicKeyAnnotation)
	s.Put(own, of("old", "10.244.2.0/24"))
	v := see(t, s)
	until := func(want string, wantSaid bool) {
		t.Helper()
		v.until(want, func(objs *kube.Objects, problems []kube.Problem) bool {
			names := ""
			r := translate.Translate(*objs, translate.Options{Node: "n1"})
			for _, p := range r.Overlay.Peers {
				if !p.PublicKey.IsZero() {
					names += p.Name
				}
			}
			said := slices.ContainsFunc(problems, func(p kube.Problem) bool {
				return p.Object.Name == "renamed" && strings.Contains(p.Message, "is the key of Node old, which had it first")
			})
			return names == want && said == wantSaid && (len(problems) > 0) == said && len(r.Problems) == 0
		})
	}
	until("old", false)
	s.Put(of("renamed", "10.244.3.0/24"))
	until("old", true)
	s.Delete(of("old", ""))
	until("renamed", false)
}

// A Node that claims addresses which are not its own gets none of them: not the API server's address, which is
// learned, not another node's, not one outside the cluster. It keeps what is its own.
func TestLyingNode(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	at := func(n *corev1.Node, addrs ...string) *corev1.Node {
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	port, https := int32(6443), "https"
	server := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.168.0.9"}}, {Addresses: []string{"192.168.0.10"}}},
	}
	master := at(node("n9"), "192.168.0.9")
	master.Labels = map[string]string{"node-role.kubernetes.io/control-plane": ""}
	s.Put(server, at(node("n1"), "192.168.0.1"), at(node("n3"), "192.168.0.3"), master)
	v := see(t, s, func(o *Options) { o.State = t.TempDir() })
	v.until("the honest nodes", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.Nodes) == 3 && len(problems) == 0
	})
	const lies = 6
	s.Put(at(node("n2"), "192.168.0.10", "192.168.0.1", "192.168.0.3", "203.0.113.7", "fd00:ec2::254", "169.254.169.254", "10.244.3.7", "192.168.0.2"))
	objs := v.until("the lies are told", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(problems) == lies && !slices.ContainsFunc(problems, func(p kube.Problem) bool { return p.Object.Name != "n2" || p.Severity != kube.Error })
	})
	r := translate.Translate(objs, translate.Options{Node: "n1"})
	got := map[string]string{}
	for _, p := range r.Overlay.Peers {
		got[p.Name] = fmt.Sprint(p.Prefixes)
	}
	for _, p := range r.Netstack.Peers {
		got[p.Name] += fmt.Sprint(p.NodeAddrs)
	}
	for name, want := range map[string]string{
		"n2": "[10.244.2.0/24 192.168.0.2/32][192.168.0.2]", "n3": "[10.244.3.0/24 192.168.0.3/32][192.168.0.3]", "n9": "[10.244.9.0/24 192.168.0.9/32][192.168.0.9]",
	} {
		if got[name] != want {
			t.Errorf("%s has %s, want %s", name, got[name], want)
		}
	}
	if !slices.ContainsFunc(r.Problems, func(p kube.Problem) bool {
		return p.Object.Name == "n2" && p.Field == "status.addresses[5].address" && strings.Contains(p.Message, "169.254.169.254 is a link-local address")
	}) {
		t.Errorf("problems of the translation: %v", r.Problems)
	}
}
