package controller

import (
	"reflect"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/translate"
)

// IngressStatus sets the status of every Ingress that Tapestry serves: the addresses of all nodes that run an agent,
// sorted. It returns a new snapshot with changed copies of the Ingresses that have another status. It leaves
// Ingresses of other classes to their controllers.
func IngressStatus(objs kube.Objects) kube.Objects {
	status := networkingv1.IngressLoadBalancerStatus{}
	for _, a := range translate.Translate(kube.Objects{Nodes: objs.Nodes}, translate.Options{}).Services.NodeAddrs {
		status.Ingress = append(status.Ingress, networkingv1.IngressLoadBalancerIngress{IP: a.String()})
	}
	ours := map[*networkingv1.Ingress]bool{}
	for _, obj := range translate.Ingresses(&objs) {
		ours[obj] = true
	}
	objs.Ingresses = slices.Clone(objs.Ingresses)
	for i, obj := range objs.Ingresses {
		if !ours[obj] || reflect.DeepEqual(obj.Status.LoadBalancer, status) {
			continue
		}
		objs.Ingresses[i] = obj.DeepCopy()
		objs.Ingresses[i].Status.LoadBalancer = *status.DeepCopy()
	}
	return objs
}
