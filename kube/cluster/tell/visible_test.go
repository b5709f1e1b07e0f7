package tell

import (
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/visible/visibletest"
)

// TestPortNotServed: what one node says of a port of its host is an Event of its own, and one on another node is
// another.
func TestPortNotServed(t *testing.T) {
	service := &corev1.Service{}
	service.Namespace, service.Name, service.UID = "default", "web", "u"
	objs := &kube.Objects{Services: []*corev1.Service{service}}
	names := map[string]int{}
	for _, node := range []string{"n1", "n2", "n1"} {
		r := NewReporter("tapestry.dev/agent", node, nil, nil, slog.New(slog.DiscardHandler))
		r.Want(objs, nil, []kube.Problem{{Severity: kube.Error, Object: kube.RefOf(service), Message: "NodePort 30080/TCP is taken", Reason: kube.PortNotServed}})
		for name, e := range r.events {
			names[name]++
			if want := "node " + node + ": NodePort 30080/TCP is taken"; e.Message != want || e.InvolvedObject.Name != "web" {
				t.Errorf("of node %s it is told: %s, %q", node, e.InvolvedObject.Name, e.Message)
			}
		}
	}
	if len(names) != 2 {
		t.Errorf("two nodes have the Events %v", names)
	}
}

// kubectl prints Events and conditions, and logs collect them.
func TestHostile(t *testing.T) {
	r := NewReporter("tapestry.dev/agent", "n1", nil, nil, slog.New(slog.DiscardHandler))
	service := &corev1.Service{}
	service.Namespace, service.Name, service.UID = "default", "web", "u"
	objs := &kube.Objects{Services: []*corev1.Service{service}}
	e := r.event(objs, kube.Problem{Object: kube.RefOf(service), Field: "spec." + visibletest.Hostile, Message: visibletest.Hostile})
	visibletest.Check(t, "an Event", e.Message)
	visibletest.Check(t, "the condition", condition(&kube.NodeStatus{Reason: visibletest.Hostile}).Message)
}

// The author of an object of any kind finds what is wrong with it as an Event on it. Nodes have no author.
func TestEveryKind(t *testing.T) {
	r := NewReporter("tapestry.dev/agent", "n1", nil, nil, slog.New(slog.DiscardHandler))
	for _, k := range kube.Kinds() {
		if !k.Held() {
			continue
		}
		var all kube.Builder
		for _, name := range []string{"a", "b", "c"} {
			obj := k.New()
			obj.SetName(name)
			if !k.ClusterScoped {
				obj.SetNamespace("shop")
			}
			obj.SetUID(types.UID("the UID of " + name))
			all.Add(obj, "")
		}
		objs := all.Objects()
		problem := kube.Problem{Object: kube.Ref{Kind: k.Name, Name: "b"}, Message: "wrong"}
		if !k.ClusterScoped {
			problem.Object.Namespace = "shop"
		}
		e := r.event(&objs, problem)
		if k.Name == "Node" {
			if e != nil {
				t.Errorf("a Node has the Event %+v", e)
			}
			continue
		}
		if e == nil {
			t.Errorf("a %s has no Event", k.Name)
			continue
		}
		if o := e.InvolvedObject; o.Kind != k.Name || o.APIVersion != k.Group.Version || o.Name != "b" || o.UID != "the UID of b" || e.Message != "wrong" {
			t.Errorf("a %s has the Event %+v", k.Name, e)
		}
		problem.Object.Name = "d"
		if e := r.event(&objs, problem); e != nil {
			t.Errorf("a %s that is not there has the Event %+v", k.Name, e)
		}
	}
}
