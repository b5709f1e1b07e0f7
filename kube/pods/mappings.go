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

// HostPorts gives all hostPorts of the node: those that its Pod objects name, and then those that a runtime asked for
// with a pod that is attached. One that both name is one. A Problem tells of a port that another pod has.
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

// merge adds what pods ask for to the hostPorts that are named, which it leaves as they are.
func merge(named []services.HostPort, pods []cni.Pod) ([]services.HostPort, []services.Problem) {
	all := slices.Clone(named)
	var problems []services.Problem
	for i := range pods {
		pod := &pods[i]
		wanted, _ := hostPortsOf(pod) // they were checked when it was attached
		for _, h := range wanted {
			owner, taken := ownerOf(&h, all)
			switch {
			case !taken:
				all = append(all, h)
			case owner != h.Pod && !pod.OfKubernetes(): // of other pods the object tells
				problems = append(problems, services.Problem{Object: "Pod " + h.Pod, Message: takenText(&h, owner)})
			}
		}
	}
	return all, slices.Compact(problems) // of both families
}

func takenText(h *services.HostPort, owner string) string {
	at := ""
	if !h.Addr.IsUnspecified() {
		at = " at " + h.Addr.String()
	}
	return fmt.Sprintf("portMappings: hostPort %d%s belongs to Pod %s on this node already: give one of them another", h.Port, at, owner)
}

// ownerOf finds the pod that has what h asks for. Every address includes each one.
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

// checkMappingsLocked judges what a pod asks for. In Kubernetes the scheduler keeps pods apart, and the next one may
// come before the last is gone; elsewhere nobody does, and whoever asks is told.
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

// hostPortsOf gives what a pod's port mappings come to: one for each of its addresses that the port is asked for.
func hostPortsOf(pod *cni.Pod) ([]services.HostPort, error) {
	var list []services.HostPort
	for i, m := range pod.PortMappings {
		field := fmt.Sprintf("portMappings[%d]", i)
		if m.HostPort == 0 {
			continue // runtimes tell of ports that are not the node's, too
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

// protocols are those of a port mapping, where none is TCP.
var protocols = map[string]packet.Proto{"": packet.TCP, "tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP}
