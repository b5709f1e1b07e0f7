package tell

import (
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/visible/visibletest"
)

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
