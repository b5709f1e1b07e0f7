package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/pace"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// Device is what a Port reads and writes superframes through; *tap.Device is one.
type Device interface {
	// Run reads superframes until Close and hands each to handle, one at a time. The frame is handle's, which returns a
	// buffer of the same capacity for another one. rest is called when no more frames are at hand for the moment, or
	// others get their turn; nil for nothing. It returns nil after Close.
	Run(handle func(frame []byte) []byte, rest func()) error
	// Write and Writev write one superframe. Safe for concurrent use.
	Write(frame []byte) error
	Writev(iov [][]byte) error
	// Offloads are what a written frame may count on. They do not change.
	Offloads() tap.Offloads
	Close() error
}

// PortKind tells pods' Ports from the host's.
type PortKind uint8

// The kinds of Ports.
const (
	PodPort PortKind = iota
	HostPort
)

// PortConfig describes an attachment.
type PortConfig struct {
	Name  string // "namespace/name" of the pod, or "host"
	Kind  PortKind
	MAC   packet.MAC
	Addrs []netip.Addr // addresses the pod may send from; for the host Port, those besides the node's own
	// Limit is that of what the Port is sent, in bytes of IP; what comes faster waits, and is dropped when too much does.
	// The zero Rate is none.
	Limit tap.Rate
}

// Port is one attachment to the switch.
type Port struct {
	PortConfig
	addrs []packet.Addr
	owner uint64 // see journey.owner
	dev   Device
	lacks tap.Offloads // what dev cannot do, or shall not
	// toPort and fromPort count packets (a superframe is one) and bytes of IP.
	toPort, fromPort counter
	down             atomic.Uint64
	limit            *pace.Limit   // nil for none
	overLimit        atomic.Uint64 // packets
}

type counter struct{ packets, bytes atomic.Uint64 }

func (c *counter) add(n int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(n))
}

// PortStats are a Port's counters; a superframe counts as one packet.
type PortStats struct {
	Name                   string
	Addrs                  []netip.Addr
	ToPackets, ToBytes     uint64
	FromPackets, FromBytes uint64
	Down                   uint64 // writes the TAP refused
	OverLimit              uint64 // packets that Limit did not allow
	Offloads               string // of its device, that are in use
}

func (p *Port) close() {
	if p.limit != nil {
		p.limit.Stop()
	}
	_ = p.dev.Close()
}

func (p *Port) owns(a *packet.Addr) bool {
	for i := range p.addrs {
		if p.addrs[i] == *a {
			return true
		}
	}
	return false
}

// portTable is the immutable set of Ports by address; it is copied on every change, which is rare.
type portTable struct {
	byName map[string]*Port
	byAddr map[packet.Addr]*Port
	host   *Port
}

// ports guards the table against concurrent changes; readers only load.
type ports struct {
	mu    sync.Mutex
	table atomic.Pointer[portTable]
}

func (ps *ports) change(edit func(t *portTable) error) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	old := ps.table.Load()
	t := &portTable{byName: map[string]*Port{}, byAddr: map[packet.Addr]*Port{}, host: old.host}
	for k, v := range old.byName {
		t.byName[k] = v
	}
	for k, v := range old.byAddr {
		t.byAddr[k] = v
	}
	if err := edit(t); err != nil {
		return err
	}
	ps.table.Store(t)
	return nil
}

var errNoAddr = errors.New("a pod's Port needs at least one address")

func (ps *ports) add(p *Port) error {
	if p.Kind == PodPort && len(p.addrs) == 0 {
		return fmt.Errorf("attach %s: %w", p.Name, errNoAddr)
	}
	return ps.change(func(t *portTable) error {
		if t.byName[p.Name] != nil {
			return fmt.Errorf("attach %s: already attached; detach it first", p.Name)
		}
		if p.Kind == HostPort {
			if t.host != nil {
				return fmt.Errorf("attach %s: this node has a host Port already", p.Name)
			}
			t.host = p
		}
		t.byName[p.Name] = p
		if p.Kind == HostPort {
			return nil
		}
		for _, a := range p.addrs {
			if other := t.byAddr[a]; other != nil {
				return fmt.Errorf("attach %s: address %s belongs to %s already", p.Name, a, other.Name)
			}
			t.byAddr[a] = p
		}
		return nil
	})
}

// remove takes out the Port of that name; only, when only is not nil, if it is that one.
func (ps *ports) remove(name string, only *Port) (*Port, bool) {
	var p *Port
	_ = ps.change(func(t *portTable) error {
		if p = t.byName[name]; p == nil {
			return nil
		}
		if only != nil && p != only {
			p = nil
			return nil
		}
		delete(t.byName, name)
		for _, a := range p.addrs {
			if t.byAddr[a] == p {
				delete(t.byAddr, a)
			}
		}
		if t.host == p {
			t.host = nil
		}
		return nil
	})
	return p, p != nil
}
