package controller

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
)

// PortsServedCondition of a Service is False when nodes cannot listen on a port of it, and True when they could not and
// can again.
const PortsServedCondition = "tapestry.dev/PortsServed"

// PortsServed sets the condition PortsServedCondition of Services, by what the Nodes say of their own hosts in their
// annotation. It returns a new snapshot with changed copies of the Services that have another condition.
func PortsServed(objs kube.Objects, now time.Time) kube.Objects {
	// Each node listens, and so each is heard.
	said := reports(objs.Nodes, "Service", kube.PortNotServed, func(kube.Ref, string) bool { return true })
	told := func(svc *corev1.Service) bool {
		return meta.FindStatusCondition(svc.Status.Conditions, PortsServedCondition) != nil
	}
	objs.Services = changed(objs.Services, func(svc *corev1.Service) bool { return len(said[kube.RefOf(svc)]) > 0 || told(svc) }, func(svc *corev1.Service) {
		c := metav1.Condition{Type: PortsServedCondition, Status: metav1.ConditionTrue, Reason: "Served", Message: "every node listens on its ports"}
		if list := said[kube.RefOf(svc)]; len(list) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, kube.PortNotServed, reportText(list)
		}
		setCondition(&svc.Status.Conditions, c, svc.Generation, metav1.NewTime(now.Truncate(time.Second)))
	})
	return objs
}
