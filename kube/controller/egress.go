package controller

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/egress"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// EgressStatus gives EgressAddresses their status. It returns a new snapshot with changed copies of those that have
// another one. Problems with them are told by the agents, who find the same.
func EgressStatus(objs kube.Objects, at time.Time) kube.Objects {
	now := metav1.NewTime(at.Truncate(time.Second))
	faults := map[string]*egress.Address{}
	for _, a := range egress.Read(&objs, translate.ServiceRanges(objs), new(kube.Report)) {
		faults[a.Name] = a
	}
	objs.EgressAddresses = changed(objs.EgressAddresses, every, func(obj *v1alpha1.EgressAddress) {
		a := faults[obj.Name]
		n := len(announce.Eligible(a.Nodes, []announce.Needs{{}})) // none that is about to go
		c := metav1.Condition{Type: v1alpha1.EgressReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: fmt.Sprintf("%d nodes can be the gateway", n)}
		if n == 1 {
			c.Message = "one node can be the gateway: there is no other when it fails"
		}
		if len(a.Faults) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, "Unusable", "its pods reach nothing outside: "+faultText(a.Faults)
		}
		setCondition(&obj.Status.Conditions, c, obj.Generation, now)
	})
	return objs
}
