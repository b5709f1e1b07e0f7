package translate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// podStage turns Pods into the pods that are alive, their DNS names, and the hostPorts and quotas of this node.
type podStage struct {
	parsed memo[*corev1.Pod, *pod]
	listed memo[list[*pod], pods]
	ports  memo[list[*corev1.Pod], []services.HostPort]
	quotas memo[list[*corev1.Pod], map[string]quota.Quota]
}

// pod is what the data plane needs of a corev1.Pod.
type pod struct {
	alive services.Pod
	named dns.Pod
}

// pods is the result of all Pods together.
type pods struct {
	alive     []services.Pod
	named     []dns.Pod
	hostPorts []services.HostPort
	quotas    map[string]quota.Quota
}

func (s *podStage) of(objs []*corev1.Pod, o Options, say *kube.Report) pods {
	parsed := s.parsed.each(objs, compareNames, nil, say, parsePod)
	out := s.listed.once(identity(parsed), say, func(*kube.Report) (all pods) {
		for _, p := range parsed {
			if p != nil {
				all.alive, all.named = append(all.alive, p.alive), append(all.named, p.named)
			}
		}
		return all
	})
	out.hostPorts = s.ports.once(identity(objs), say, func(say *kube.Report) []services.HostPort { return hostPorts(objs, o.Node, say) })
	out.quotas = s.quotas.once(identity(objs), say, func(say *kube.Report) map[string]quota.Quota { return quotas(objs, o.Node, say) })
	return out
}

// ended reports whether a pod has ended for good.
func ended(obj *corev1.Pod) bool {
	return obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed
}

// parsePod returns nil for a pod that has ended or has no address yet.
func parsePod(obj *corev1.Pod, say *kube.Report) *pod {
	if ended(obj) {
		return nil
	}
	var addrs []netip.Addr
	for _, text := range kube.PodIPs(obj) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			say.Errorf(kube.RefOf(obj), "status.podIPs", "%q is not an address", text)
			continue
		}
		addrs = append(addrs, addr.Unmap())
	}
	if len(addrs) == 0 {
		return nil
	}
	return &pod{
		alive: services.Pod{ID: string(obj.UID), Addrs: addrs},
		named: dns.Pod{Namespace: obj.Namespace, Addrs: addrs, HostNetwork: obj.Spec.HostNetwork},
	}
}
