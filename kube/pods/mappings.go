package pods

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// HostPorts returns all hostPorts of the node: named, from its Pod objects, and then those that a runtime asked for
// with an attached pod. A port that both name occurs once. A Problem reports a port that another pod has.
func (p *Registry) HostPorts(named []services.HostPort) ([]services.HostPort, []services.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var asking []cni.Pod
	for _, pod := range p.attached {
		if len(pod.PortMappings) > 0 {
			asking = append(asking, pod)
		}
	}
	slices.SortFunc(asking, func(a, b cni.Pod) int { return cmp.Compare(a.String(), b.String()) })
	return merge(named, asking)
}

// merge adds the port mappings of pods to named, which it does not change.
func merge(named []services.HostPort, pods []cni.Pod) ([]services.HostPort, []services.Problem) {
	all := slices.Clone(named)
	var problems []services.Problem
	for i := range pods {
		pod := &pods[i]
		wanted, _ := hostPortsOf(pod) // checked when the pod was attached
		for _, h := range wanted {
			owner, taken := ownerOf(&h, all)
			switch {
			case !taken:
				all = append(all, h)
			case owner != h.Pod && !pod.OfKubernetes(): // problems of other pods are reported by their objects
				problems = append(problems, services.Problem{Object: "Pod " + h.Pod, Message: takenText(&h, owner)})
			}
		}
	}
	return all, slices.Compact(problems) // one problem for both families
}

func takenText(h *services.HostPort, owner string) string {
	at := ""
	if !h.Addr.IsUnspecified() {
		at = " at " + h.Addr.String()
	}
	return fmt.Sprintf("portMappings: hostPort %d%s belongs to Pod %s on this node already: give one of them another", h.Port, at, owner)
}

// ownerOf returns the pod that has what h asks for. An unspecified address includes every address of its family.
func ownerOf(h *services.HostPort, list []services.HostPort) (owner string, taken bool) {
	for i := range list {
		b := &list[i]
		if b.Port == h.Port && b.Protocol == h.Protocol && b.Addr.Is4() == h.Addr.Is4() &&
			(b.Addr == h.Addr || b.Addr.IsUnspecified() || h.Addr.IsUnspecified()) {
			return b.Pod, true
		}
	}
	return "", false
}

// checkMappingsLocked checks a pod's port mappings. In Kubernetes the scheduler prevents conflicts, and a new pod may
// come before the old one is gone. Elsewhere nobody prevents conflicts, and the runtime gets an error.
func (p *Registry) checkMappingsLocked(pod *cni.Pod) error {
	wanted, err := hostPortsOf(pod)
	if err != nil || pod.OfKubernetes() {
		return err
	}
	for _, other := range p.attached {
		if other.String() == pod.String() {
			continue
		}
		theirs, _ := hostPortsOf(&other)
		for i := range wanted {
			if owner, taken := ownerOf(&wanted[i], theirs); taken {
				return fmt.Errorf("%s", takenText(&wanted[i], owner))
			}
		}
	}
	return nil
}

// hostPortsOf returns a pod's port mappings as hostPorts: one for each of the pod's addresses to which the mapping
// applies.
func hostPortsOf(pod *cni.Pod) ([]services.HostPort, error) {
	var list []services.HostPort
	for i, m := range pod.PortMappings {
		field := fmt.Sprintf("portMappings[%d]", i)
		if m.HostPort == 0 {
			continue // runtimes also pass ports that have no hostPort
		}
		if m.ContainerPort == 0 {
			return nil, fmt.Errorf("%s.containerPort: 0 is no port: expected 1 to 65535", field)
		}
		proto, ok := protocols[strings.ToLower(m.Protocol)]
		if !ok {
			return nil, fmt.Errorf("%s.protocol: %q is not a protocol of ports: expected tcp, udp or sctp", field, m.Protocol)
		}
		var host netip.Addr
		if m.HostIP != "" {
			var err error
			if host, err = netip.ParseAddr(m.HostIP); err != nil || host.Zone() != "" || host.IsMulticast() {
				return nil, fmt.Errorf("%s.hostIP: %q is no address of a host: expected one like 127.0.0.1, or none for all", field, m.HostIP)
			}
			host = host.Unmap()
		}
		for _, a := range pod.Addrs {
			at := host
			switch {
			case !at.IsValid() && a.Is4():
				at = netip.IPv4Unspecified()
			case !at.IsValid():
				at = netip.IPv6Unspecified()
			}
			if at.Is4() == a.Is4() {
				list = append(list, services.HostPort{
					Pod: pod.String(), ID: pod.UID, Addr: at, Port: m.HostPort, Protocol: proto, To: netip.AddrPortFrom(a, m.ContainerPort),
				})
			}
		}
	}
	return list, nil
}

// protocols maps the protocol of a port mapping; "" means TCP.
var protocols = map[string]packet.Proto{"": packet.TCP, "tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP}
