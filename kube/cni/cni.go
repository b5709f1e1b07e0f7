// Package cni is the agent's side of attaching pods: the protocol on the agent's socket, between whoever makes a pod's
// TAP (the CNI executable, or a lab's supervisor) and the agent that switches its frames.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
)

// Pod names a pod's sandbox and says how its interface was configured.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
	// ContainerID tells sandboxes of one pod apart (CNI_CONTAINERID).
	ContainerID string `json:"containerID,omitempty"`
	// Addrs are the pod's addresses, one per family.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// MAC is that of the pod's interface, as net.ParseMAC reads it.
	MAC string `json:"mac,omitempty"`
	// MTU is that of the pod's interface, in bytes.
	MTU int `json:"mtu,omitempty"`

	// What follows is said by the CNI executable only.

	// Network is the name of the CNI network. Where it is given, the addresses are those of a lease, which Prepare made.
	Network string `json:"network,omitempty"`
	// IfName is the interface's name inside of the sandbox, and Netns the path of its namespace, for the reader of a log.
	IfName string `json:"ifname,omitempty"`
	Netns  string `json:"netns,omitempty"`
	// PortMappings are ports of the node that belong to the pod.
	PortMappings []PortMapping `json:"portMappings,omitempty"`
	// Bandwidth is what the runtime asks to limit the pod to.
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
}

// PortMapping is one hostPort, as the capability portMappings of CNI has it.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	// Protocol is "tcp", "udp" or "sctp", in any case.
	Protocol string `json:"protocol"`
	// HostIP is the address of the node; empty for all.
	HostIP string `json:"hostIP,omitempty"`
}

// Bandwidth are limits in bits per second, and how many bits may come at once; 0 for no limit. It is the capability
// bandwidth of CNI, seen from the pod: what it receives is ingress.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// Equal reports whether both are the same limits; nil is a limit of its own.
func (b *Bandwidth) Equal(other *Bandwidth) bool {
	if b == nil || other == nil {
		return b == other
	}
	return *b == *other
}

// Attachment names one interface of one container, as CNI does.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Attachment is the pod's.
func (p *Pod) Attachment() Attachment { return Attachment{p.ContainerID, p.IfName} }

// WithoutObject begins the namespace of pods whose runtime names containers only, so that there is no Pod object.
const WithoutObject = "cni."

// OfKubernetes reports whether the pod is one of Kubernetes.
func (p *Pod) OfKubernetes() bool { return !strings.HasPrefix(p.Namespace, WithoutObject) }

func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// Status says whether pods can be attached.
type Status struct {
	Ready bool `json:"ready"`
	// Reason is a sentence that says why not.
	Reason string `json:"reason,omitempty"`
}

// Attacher is what the agent does for its clients. It is called by several goroutines at once. The context ends when
// the client has waited too long, or the server is stopped; a client that goes away does not end it.
type Attacher interface {
	// Add attaches a pod whose TAP is tap; the pod was checked to be complete, the descriptor not at all. Without error
	// the Attacher owns tap, otherwise the caller closes it. Adding what is attached already is no error.
	Add(ctx context.Context, pod Pod, tap *os.File) error
	// Del detaches a pod, of which only the names are certain to be given. What is not attached is no error.
	Del(ctx context.Context, pod Pod) error
	Status(ctx context.Context) (Status, error)
}

// Allocator is what the agent does for the CNI executable besides. It is called like an Attacher.
type Allocator interface {
	// Prepare gives a pod what its interface is to be like: Addrs, MAC and MTU. want.Addrs are fixed ones that the runtime
	// asks for. Called again it gives the same. What was prepared and is not attached for a while is given up;
	// Attacher.Del gives it up at once.
	Prepare(ctx context.Context, want Pod) (Prepared, error)
	// Check gives the pod as it was attached. The error wraps ErrNotAttached when it is not.
	Check(ctx context.Context, pod Pod) (Pod, error)
	// Collect detaches, and releases the addresses of, what is on the network and not in valid.
	Collect(ctx context.Context, network string, valid []Attachment) error
}

// Prepared is the answer of Prepare.
type Prepared struct {
	Pod
	// Attached: the pod is attached already, by an ADD before this one.
	Attached bool `json:"attached,omitempty"`
}

// Errors that mean something to a client. What wraps one in the agent wraps it in the client.
var (
	// ErrUnavailable tells that the agent cannot be reached at the moment. It comes from the client alone.
	ErrUnavailable = errors.New("the agent of this node cannot be reached")
	// ErrTryLater tells of something that passes.
	ErrTryLater = errors.New("try again later")
	// ErrNotAttached tells that the agent does not have the pod.
	ErrNotAttached = errors.New("the pod is not attached")
)

// checkNamed judges a pod that is to be let go, whatever it is called: an earlier agent may have attached it.
func (p *Pod) checkNamed() error {
	if p.Namespace == "" || p.Name == "" {
		return errors.New("a pod needs a namespace and a name")
	}
	return nil
}

// checkAttachment judges a pod whose container has to be named.
func (p *Pod) checkAttachment() error {
	if err := p.CheckNames(); err != nil {
		return err
	}
	if p.ContainerID == "" || p.IfName == "" || p.Network == "" {
		return errors.New("an attachment needs a network, a container and the name of an interface")
	}
	return nil
}

// check judges a pod to be attached.
func (p *Pod) check() error {
	if err := p.CheckNames(); err != nil {
		return err
	}
	if len(p.Addrs) < 1 || len(p.Addrs) > 2 {
		return fmt.Errorf("a pod needs one address, or one of each family; got %v", p.Addrs)
	}
	for _, a := range p.Addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return fmt.Errorf("%q is no address for a pod", a)
		}
	}
	if len(p.Addrs) == 2 && p.Addrs[0].Is4() == p.Addrs[1].Is4() {
		return fmt.Errorf("a pod may have one address of each family; got %v", p.Addrs)
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return fmt.Errorf("%q is no MAC address of an interface", p.MAC)
	}
	if p.MTU < 576 || p.MTU > 65535 {
		return fmt.Errorf("MTU %d is not within 576..65535", p.MTU)
	}
	if b := p.Bandwidth; b != nil && b.IngressRate > 0 && b.IngressRate < 8 {
		return fmt.Errorf("bandwidth.ingressRate: %d bits per second are less than a byte: expected 8 at least, or 0 for no limit", b.IngressRate)
	}
	return nil
}
