// Package cni is the agent's side of attaching pods: the protocol on the agent's socket, between whoever makes a pod's TAP
// (the CNI executable, or a lab's supervisor) and the agent that switches its frames.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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
}

func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// Status is how the agent is.
type Status struct {
	// Ready: pods can be attached.
	Ready     bool   `json:"ready"`
	Node      string `json:"node"`
	PublicKey string `json:"publicKey,omitempty"`
	// Problems are sentences for people.
	Problems []string `json:"problems,omitempty"`
}

// Stats are what an agent holds at the moment, for whoever looks for a leak, and what it has counted since it started.
type Stats struct {
	// Goroutines and HeapBytes are the process's.
	Goroutines int    `json:"goroutines"`
	HeapBytes  uint64 `json:"heapBytes"`
	// Flows counts tracked flows by state; FlowsFull those that found no room.
	Flows     map[string]int `json:"flows,omitempty"`
	FlowsFull uint64         `json:"flowsFull,omitempty"`
	// Taps counts the TAPs by the offloads in use, as "csum,tso4,tso6,uso" or "none".
	Taps map[string]int `json:"taps,omitempty"`
	// Verdicts and Drops count packets, a superframe as one; Link counts datagrams and packets of the tunnel.
	Verdicts map[string]uint64 `json:"verdicts,omitempty"`
	Drops    map[string]uint64 `json:"drops,omitempty"`
	Link     map[string]uint64 `json:"link,omitempty"`
}

// Attacher is what the agent does for its clients. It is called by several goroutines at once. The context ends when the client
// has waited too long, or the server is stopped; a client that goes away does not end it.
type Attacher interface {
	// Add attaches a pod whose TAP is tap; the pod was checked to be complete, the descriptor not at all. Without error the
	// Attacher owns tap, otherwise the caller closes it. Adding what is attached already is no error.
	Add(ctx context.Context, pod Pod, tap *os.File) error
	// Del detaches a pod, of which only the names are certain to be given. What is not attached is no error.
	Del(ctx context.Context, pod Pod) error
	Status(ctx context.Context) (Status, error)
	Stats(ctx context.Context) (Stats, error)
}

func (p *Pod) checkNames() error {
	if p.Namespace == "" || p.Name == "" {
		return errors.New("a pod needs a namespace and a name")
	}
	return nil
}

// check judges a pod to be attached.
func (p *Pod) check() error {
	if err := p.checkNames(); err != nil {
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
	return nil
}
