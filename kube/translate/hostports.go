package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/services"
)

// hostPorts returns the hostPorts that the pods of a node ask for. Earlier pods win: those that stay before those
// that terminate, then the older ones. The scheduler prevents that two pods ask for the same port, unless somebody
// sets spec.nodeName himself or a pod has not terminated yet.
func hostPorts(all []*corev1.Pod, node string, say *kube.Report) []services.HostPort {
	var pods []*corev1.Pod
	for _, obj := range all {
		if obj.Spec.NodeName == node && node != "" && !obj.Spec.HostNetwork && !ended(obj) {
			pods = append(pods, obj)
		}
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(compareBool(a.DeletionTimestamp != nil, b.DeletionTimestamp != nil),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time), compareNames(a, b))
	})
	var list []services.HostPort
	for _, obj := range pods {
		eachHostPort(obj, func(field string, p *corev1.ContainerPort) {
			list = append(list, hostPort(obj, field, p, list, say)...)
		})
	}
	return list
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// eachHostPort yields the hostPorts of the containers that run as long as the pod does. A sidecar is an init
// container that is always restarted (KEP-753). All other init containers have ended before anyone could use their
// ports.
func eachHostPort(obj *corev1.Pod, yield func(field string, p *corev1.ContainerPort)) {
	containers := func(field string, list []corev1.Container, take func(*corev1.Container) bool) {
		for i := range list {
			for j := range list[i].Ports {
				if p := &list[i].Ports[j]; p.HostPort != 0 && take(&list[i]) {
					yield(index(index(field, i)+".ports", j), p)
				}
			}
		}
	}
	containers("spec.initContainers", obj.Spec.InitContainers, func(c *corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
	containers("spec.containers", obj.Spec.Containers, func(*corev1.Container) bool { return true })
}

// hostPort returns the entries for one port: one for each of the pod's address families in which the port is asked
// for.
func hostPort(obj *corev1.Pod, field string, p *corev1.ContainerPort, before []services.HostPort, say *kube.Report) []services.HostPort {
	ref := kube.RefOf(obj)
	proto, ok := protoOf(p.Protocol)
	if !ok {
		say.Errorf(ref, field+".protocol", "%q is not a protocol of ports: expected TCP, UDP or SCTP", p.Protocol)
		return nil
	}
	port, ok := portOf(p.HostPort)
	target, ok2 := portOf(p.ContainerPort)
	if !ok || !ok2 {
		say.Errorf(ref, field+".hostPort", "%d to %d are no two ports: expected 1 to 65535", p.HostPort, p.ContainerPort)
		return nil
	}
	var host netip.Addr
	if p.HostIP != "" {
		var err error
		if host, err = netip.ParseAddr(p.HostIP); err != nil || host.Zone() != "" || host.IsMulticast() {
			say.Errorf(ref, field+".hostIP", "%q is no address of a host: expected one like 127.0.0.1, or none for all", p.HostIP)
			return nil
		}
		host = host.Unmap()
	}
	var list []services.HostPort
	for _, text := range kube.PodIPs(obj) {
		pod, err := netip.ParseAddr(text)
		if err != nil {
			continue // reported where pods are parsed
		}
		pod = pod.Unmap()
		at := host
		if !at.IsValid() {
			at = unspecified(pod.Is4())
		}
		if at.Is4() != pod.Is4() {
			continue
		}
		h := services.HostPort{
			Pod: obj.Namespace + "/" + obj.Name, ID: string(obj.UID), Addr: at, Port: port, Protocol: proto,
			To: netip.AddrPortFrom(pod, target),
		}
		if owner, taken := hostPortOwner(&h, before); taken {
			if obj.DeletionTimestamp != nil {
				return nil // the successor of this pod has the port
			}
			say.Errorf(ref, field+".hostPort", "%s belongs to Pod %s on this node already: give one of them another hostPort or hostIP",
				hostPortText(port, p.Protocol, host), owner)
			return nil
		}
		list = append(list, h)
	}
	return list
}

// hostPortOwner returns the pod that has what h asks for. An unspecified address includes every address of its
// family.
func hostPortOwner(h *services.HostPort, before []services.HostPort) (owner string, taken bool) {
	for i := range before {
		b := &before[i]
		if b.Port == h.Port && b.Protocol == h.Protocol && b.Addr.Is4() == h.Addr.Is4() &&
			(b.Addr == h.Addr || b.Addr.IsUnspecified() || h.Addr.IsUnspecified()) {
			return b.Pod, true
		}
	}
	return "", false
}

func hostPortText(port uint16, proto corev1.Protocol, host netip.Addr) string {
	text := fmt.Sprintf("%d/%s", port, cmp.Or(proto, corev1.ProtocolTCP))
	if host.IsValid() {
		text += " at " + host.String()
	}
	return text
}

func unspecified(is4 bool) netip.Addr {
	if is4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
