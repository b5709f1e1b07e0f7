package controller_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/visible/visibletest"
)

// saying returns a Node with what its agent says of itself.
func saying(t *testing.T, name string, problems ...kube.Problem) *corev1.Node {
	t.Helper()
	text, err := json.Marshal(problems)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{kube.ProblemsAnnotation: string(text)}}}
}

// TestPortsServed: a Service's condition names the nodes and why, is bounded, and heals.
func TestPortsServed(t *testing.T) {
	service := func(name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Generation: 3}}
	}
	taken := func(name, text string) kube.Problem {
		return kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: "Service", Namespace: "default", Name: name}, Message: text, Reason: kube.PortNotServed}
	}
	other := taken("web", "its selector selects nothing")
	other.Reason = ""
	in := kube.Objects{
		Nodes: []*corev1.Node{
			saying(t, "n2", taken("web", "port 30080 is taken"), taken("web", "port 30081 is taken")), saying(t, "n1", other, taken("web", "port 30080 is taken")),
			saying(t, "n3", other, taken("absent", "x")), {ObjectMeta: metav1.ObjectMeta{Name: "n4", Annotations: map[string]string{kube.ProblemsAnnotation: "{}"}}},
		},
		Services: []*corev1.Service{service("web"), service("fine")},
	}
	before := allJSON(t, in)
	out := controller.PortsServed(in, time.Unix(1000, 0).UTC())
	if allJSON(t, in) != before {
		t.Error("the input has been changed")
	}
	const at = `"lastTransitionTime":"1970-01-01T00:16:40Z"`
	if got, want := statusOf(t, out, "web"), `{"loadBalancer":{},"conditions":[{"type":"tapestry.dev/PortsServed","status":"False","observedGeneration":3,`+at+
		`,"reason":"PortNotServed","message":"node n1: port 30080 is taken; node n2: port 30080 is taken"}]}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if out.Services[1] != in.Services[1] {
		t.Error("a Service with which nothing is wrong has another status")
	}
	if again := controller.PortsServed(out, time.Unix(2000, 0)); again.Services[0] != out.Services[0] {
		t.Error("a condition that says so already was written again")
	}
	// What the controller decides about load balancers leaves the condition alone.
	if lb, _ := controller.LoadBalancers(out, controller.Options{}); statusOf(t, lb, "web") != statusOf(t, out, "web") {
		t.Errorf("after LoadBalancers: %s", statusOf(t, lb, "web"))
	}
	out.Nodes = out.Nodes[2:]
	healed := controller.PortsServed(out, time.Unix(3000, 0))
	if c := meta.FindStatusCondition(healed.Services[0].Status.Conditions, controller.PortsServedCondition); c == nil || c.Status != metav1.ConditionTrue || c.LastTransitionTime.Unix() != 3000 {
		t.Errorf("healed, it is %+v", c)
	}

	var many []*corev1.Node
	for i := range 1000 {
		many = append(many, saying(t, fmt.Sprintf("n%03d", i), taken("web", visibletest.Hostile+strings.Repeat("\u00e9", 10000))))
	}
	hostile := controller.PortsServed(kube.Objects{Nodes: many, Services: in.Services}, time.Unix(1000, 0))
	c := meta.FindStatusCondition(hostile.Services[0].Status.Conditions, controller.PortsServedCondition)
	visibletest.Check(t, "the condition", c.Message)
	if len(c.Message) > 4096 || !strings.HasSuffix(c.Message, "; and 995 more nodes") || !strings.HasPrefix(c.Message, "node n000: ") {
		t.Errorf("%d bytes: %s", len(c.Message), c.Message)
	}
}
