package translate

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

// podStage turns Pods into their names and addresses, and into the host ports of this node.
type podStage struct {
	parsed memo[*corev1.Pod, *services.Pod]
	listed memo[list[*services.Pod], []services.Pod]
	ports  memo[list[*corev1.Pod], []services.HostPort]
}

// pods is what all Pods together come to.
type pods struct {
	list      []services.Pod
	hostPorts []services.HostPort
}

func (s *podStage) of(objs []*corev1.Pod, o Options, say *kube.Report) pods {
	parsed := s.parsed.each(objs, compareNames, nil, say, parsePod)
	return pods{
		list: s.listed.once(identity(parsed), say, func(*kube.Report) (list []services.Pod) {
			for _, p := range parsed {
				if p != nil {
					list = append(list, *p)
				}
			}
			return list
		}),
		hostPorts: s.ports.once(identity(objs), say, func(say *kube.Report) []services.HostPort {
			return hostPorts(objs, o.Node, say)
		}),
	}
}

// ended reports whether nothing of a pod will run again.
func ended(obj *corev1.Pod) bool {
	return obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed
}

// parsePod gives nil for a pod that has ended or has no address yet.
func parsePod(obj *corev1.Pod, say *kube.Report) *services.Pod {
	if ended(obj) {
		return nil
	}
	p := services.Pod{Namespace: obj.Namespace, Name: obj.Name, ID: string(obj.UID)}
	for _, text := range kube.PodIPs(obj) {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			say.Errorf(kube.RefOf(obj), "status.podIPs", "%q is not an address", text)
			continue
		}
		p.Addrs = append(p.Addrs, addr.Unmap())
	}
	if len(p.Addrs) == 0 {
		return nil
	}
	return &p
}
