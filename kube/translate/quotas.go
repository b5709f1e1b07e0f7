package translate

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/quota"
)

// quotas returns what the pods of a node may send, by "namespace/name"; nil when nobody says. Whoever may write a Pod
// limits that pod alone. A value that cannot be understood limits nothing, and is told.
func quotas(all []*corev1.Pod, node string, say *kube.Report) map[string]quota.Quota {
	var out map[string]quota.Quota
	for _, obj := range all {
		if obj.Spec.NodeName != node || node == "" || len(obj.Annotations) == 0 || ended(obj) {
			continue
		}
		var q quota.Quota
		perSecond(obj, kube.EgressPacketsAnnotation, &q.Packets, say)
		perSecond(obj, kube.EgressConnectionsAnnotation, &q.Flows, say)
		switch {
		case q == (quota.Quota{}):
		case obj.Spec.HostNetwork:
			say.Warnf(kube.RefOf(obj), "metadata.annotations", "its limits of packets and connections are not kept, since it uses the network of its node: remove them, or spec.hostNetwork")
		default:
			if out == nil {
				out = map[string]quota.Quota{}
			}
			out[obj.Namespace+"/"+obj.Name] = q
		}
	}
	return out
}

// perSecond reads an annotation with a number into n, which stays as it is without the annotation.
func perSecond(obj *corev1.Pod, key string, n *uint32, say *kube.Report) {
	text, ok := obj.Annotations[key]
	if !ok {
		return
	}
	v, err := strconv.ParseUint(text, 10, 32)
	if err != nil || v == 0 || v > quota.Most {
		say.Errorf(kube.RefOf(obj), annotation(key), "%q is no limit, so there is none: expected a whole number from 1 to %d, like 1000", text, quota.Most)
		return
	}
	*n = uint32(v)
}
