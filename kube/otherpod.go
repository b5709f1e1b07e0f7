package kube

import (
	"net/netip"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// OtherPod is a pod of another node, as policies see it. There may be as many as a cluster has pods, so it has no more
// than that. It is a Pod for the API server, and for protobuf.
type OtherPod struct {
	metav1.TypeMeta
	// ObjectMeta has names, the UID and labels.
	metav1.ObjectMeta
	Node string // where it is
	// Addrs are its own addresses; none if it uses the network of its node, has ended or is on no node.
	Addrs []netip.Addr
	Ports []NamedPort
}

// NamedPort is a port of a pod that has a name.
type NamedPort struct {
	Name     string
	Protocol corev1.Protocol
	Port     uint16
}

// NamedPorts returns the ports of a pod's containers that have names. Those of init containers that end are left out.
func NamedPorts(s *corev1.PodSpec) (list []NamedPort) {
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.Name == "" || p.ContainerPort < 1 || p.ContainerPort > 1<<16-1 {
				continue
			}
			if p.Protocol == "" {
				p.Protocol = corev1.ProtocolTCP
			}
			list = append(list, NamedPort{p.Name, p.Protocol, uint16(p.ContainerPort)})
		}
	}
	for i := range s.InitContainers {
		if c := &s.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range s.Containers {
		add(&s.Containers[i])
	}
	return list
}

// OtherPodOf returns what is kept of a Pod.
func OtherPodOf(p *corev1.Pod) *OtherPod {
	o := &OtherPod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels, ResourceVersion: p.ResourceVersion}}
	o.Node = unique.Make(p.Spec.NodeName).Value() // many pods share it
	if o.Node == "" || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return o
	}
	for _, text := range PodIPs(p) {
		if a, err := netip.ParseAddr(text); err == nil {
			o.Addrs = append(o.Addrs, a.Unmap())
		}
	}
	o.Ports = NamedPorts(&p.Spec)
	return o
}

// pod returns a Pod of which OtherPodOf makes o.
func (o *OtherPod) pod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: o.ObjectMeta, Spec: corev1.PodSpec{NodeName: o.Node}}
	for _, a := range o.Addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	if len(o.Ports) > 0 {
		p.Spec.Containers = make([]corev1.Container, 1)
		for _, n := range o.Ports {
			p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{Name: n.Name, Protocol: n.Protocol, ContainerPort: int32(n.Port)})
		}
	}
	return p
}

// Size, MarshalToSizedBuffer and Unmarshal are those of the Pod in protobuf.
func (o *OtherPod) Size() int { return o.pod().Size() }

// MarshalToSizedBuffer writes the Pod at the end of b.
func (o *OtherPod) MarshalToSizedBuffer(b []byte) (int, error) {
	return o.pod().MarshalToSizedBuffer(b)
}

// Unmarshal reads a Pod.
func (o *OtherPod) Unmarshal(b []byte) error {
	var p corev1.Pod
	if err := p.Unmarshal(b); err != nil {
		return err
	}
	*o = *OtherPodOf(&p)
	return nil
}

// DeepCopyObject implements runtime.Object.
func (o *OtherPod) DeepCopyObject() runtime.Object {
	return &OtherPod{ObjectMeta: *o.ObjectMeta.DeepCopy(), Node: o.Node, Addrs: append([]netip.Addr(nil), o.Addrs...), Ports: append([]NamedPort(nil), o.Ports...)}
}
