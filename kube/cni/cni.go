// Package cni is the agent's side of attaching pods. It defines the protocol on the agent's socket, between whoever
// makes a pod's TAP (the CNI executable, or a lab's supervisor) and the agent that switches the TAP's frames.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"tapestry.dev/tapestry/addressing"
)

// Pod names a pod's sandbox and describes its interface.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
	// ContainerID tells the sandboxes of one pod apart (CNI_CONTAINERID).
	ContainerID string `json:"containerID,omitempty"`
	// Addrs are the pod's addresses, one per family.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// MAC is the Ethernet address of the pod's interface, as net.ParseMAC reads it.
	MAC string `json:"mac,omitempty"`
	// MTU is the MTU of the pod's interface, in bytes.
	MTU int `json:"mtu,omitempty"`

	// Only the CNI executable sets the fields below.

	// Network is the name of the CNI network. When it is set, Addrs are those of a lease, which Prepare made.
	Network string `json:"network,omitempty"`
	// IfName is the interface's name in the sandbox. Netns is the path of the sandbox's network namespace, for logs.
	IfName string `json:"ifname,omitempty"`
	Netns  string `json:"netns,omitempty"`
	// PortMappings are the ports of the node that lead to the pod.
	PortMappings []PortMapping `json:"portMappings,omitempty"`
	// Bandwidth is the limit that the runtime asks for, or nil.
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
}

// PortMapping is one hostPort, in the form of the CNI capability portMappings.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	// Protocol is "tcp", "udp" or "sctp", in any case.
	Protocol string `json:"protocol"`
	// HostIP is an address of the node; empty means all of them.
	HostIP string `json:"hostIP,omitempty"`
}

// Bandwidth holds limits in bits per second, and bursts in bits; 0 means no limit. It has the form of the CNI
// capability bandwidth. Directions are the pod's: ingress is what it receives.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// Equal reports whether both have the same limits. nil equals only nil.
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

// Attachment returns the pod's Attachment.
func (p *Pod) Attachment() Attachment { return Attachment{p.ContainerID, p.IfName} }

// WithoutObject is the prefix of the namespace for pods without a Pod object, whose runtime names only containers.
const WithoutObject = "cni."

// OfKubernetes reports whether the pod has a Pod object.
func (p *Pod) OfKubernetes() bool { return !strings.HasPrefix(p.Namespace, WithoutObject) }

func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// Status says whether pods can be attached.
type Status struct {
	Ready bool `json:"ready"`
	// Reason says in one sentence why not.
	Reason string `json:"reason,omitempty"`
}

// Attacher does what clients ask of the agent. Its methods are called concurrently. Their context ends when the
// client has waited too long or the server is stopped, but not when the client disconnects.
type Attacher interface {
	// Add attaches a pod whose TAP is tap. The pod has been checked for completeness, the descriptor not at all.
	// Without an error the Attacher owns tap; otherwise the caller closes it. Adding an attached pod again is no
	// error.
	Add(ctx context.Context, pod Pod, tap *os.File) error
	// Del detaches a pod, of which only Namespace and Name are sure to be set. Detaching an unknown pod is no error.
	Del(ctx context.Context, pod Pod) error
	Status(ctx context.Context) (Status, error)
}

// Allocator does what the CNI executable asks for besides attaching. It is called like an Attacher.
type Allocator interface {
	// Prepare returns want with the properties that its interface is to have: Addrs, MAC and MTU. want.Addrs are
	// fixed addresses that the runtime asks for. Called again it returns the same. Addresses that are prepared and
	// not attached are released after a while, or at once by Attacher.Del.
	Prepare(ctx context.Context, want Pod) (Prepared, error)
	// Check returns the pod as it was attached. The error wraps ErrNotAttached when it is not attached.
	Check(ctx context.Context, pod Pod) (Pod, error)
	// Collect detaches every attachment on the network that is not in valid, and releases its addresses.
	Collect(ctx context.Context, network string, valid []Attachment) error
}

// Prepared is the answer of Prepare.
type Prepared struct {
	Pod
	// Attached is set when an earlier ADD has attached the pod already.
	Attached bool `json:"attached,omitempty"`
}

// These errors mean something to a client. An error of the agent that wraps one of them wraps it in the client too.
var (
	// ErrUnavailable means that the agent cannot be reached at the moment. Only the client returns it.
	ErrUnavailable = errors.New("the agent of this node cannot be reached")
	// ErrTryLater means that the cause is temporary.
	ErrTryLater = errors.New("try again later")
	// ErrNotAttached means that the agent does not have the pod.
	ErrNotAttached = errors.New("the pod is not attached")
)

// checkNamed checks a pod that is to be detached. It accepts any names: an earlier agent may have attached the pod.
func (p *Pod) checkNamed() error {
	if p.Namespace == "" || p.Name == "" {
		return errors.New("a pod needs a namespace and a name")
	}
	return nil
}

// checkAttachment checks a pod whose container must be named.
func (p *Pod) checkAttachment() error {
	if err := p.CheckNames(); err != nil {
		return err
	}
	if p.ContainerID == "" || p.IfName == "" || p.Network == "" {
		return errors.New("an attachment needs a network, a container and the name of an interface")
	}
	return nil
}

// check checks a pod that is to be attached.
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
	if p.MTU < addressing.MinMTU4 || p.MTU > 65535 {
		return fmt.Errorf("MTU %d is not within %d..65535", p.MTU, addressing.MinMTU4)
	}
	if b := p.Bandwidth; b != nil && b.IngressRate > 0 && b.IngressRate < 8 {
		return fmt.Errorf("bandwidth.ingressRate: %d bits per second are less than a byte: expected 8 at least, or 0 for no limit", b.IngressRate)
	}
	return nil
}
