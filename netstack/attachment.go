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

// Device is what an attachment reads and writes superframes through; *tap.Device is one.
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

// AttachmentKind tells pods' attachments from the host's.
type AttachmentKind uint8

// The kinds of attachments.
const (
	PodTAP AttachmentKind = iota
	HostTAP
)

// AttachmentConfig describes an attachment.
type AttachmentConfig struct {
	Name  string // "namespace/name" of the pod, or "host"
	Kind  AttachmentKind
	MAC   packet.MAC
	Addrs []netip.Addr // addresses the pod may send from; for the host TAP, those besides the node's own
	// Limit is that of what the attachment is sent, in bytes of IP; what comes faster waits, and is dropped when too much
	// does. The zero Rate is none.
	Limit tap.Rate
}

// Attachment is a TAP that the Path reads and writes: a pod's or the host's.
type Attachment struct {
	AttachmentConfig
	addrs []packet.Addr
	owner uint64 // see journey.owner
	dev   Device
	lacks tap.Offloads // what dev cannot do, or shall not
	// toPort and fromTAP count packets (a superframe is one) and bytes of IP.
	toTAP, fromTAP counter
	down           atomic.Uint64
	limit          *pace.Limit   // nil for none
	overLimit      atomic.Uint64 // packets
}

type counter struct{ packets, bytes atomic.Uint64 }

func (c *counter) add(n int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(n))
}

// AttachmentStats are an attachment's counters; a superframe counts as one packet.
type AttachmentStats struct {
	Name                   string
	Addrs                  []netip.Addr
	ToPackets, ToBytes     uint64
	FromPackets, FromBytes uint64
	Down                   uint64 // writes the TAP refused
	OverLimit              uint64 // packets that Limit did not allow
	Offloads               string // of its device, that are in use
}

func (att *Attachment) close() {
	if att.limit != nil {
		att.limit.Stop()
	}
	_ = att.dev.Close()
}

func (att *Attachment) owns(a *packet.Addr) bool {
	for i := range att.addrs {
		if att.addrs[i] == *a {
			return true
		}
	}
	return false
}

// attachmentTable is the immutable set of attachments by address; it is copied on every change, which is rare.
type attachmentTable struct {
	byName map[string]*Attachment
	byAddr map[packet.Addr]*Attachment
	host   *Attachment
}

// attachments guards the table against concurrent changes; readers only load.
type attachments struct {
	mu    sync.Mutex
	table atomic.Pointer[attachmentTable]
}

func (ps *attachments) change(edit func(t *attachmentTable) error) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	old := ps.table.Load()
	t := &attachmentTable{byName: map[string]*Attachment{}, byAddr: map[packet.Addr]*Attachment{}, host: old.host}
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

var errNoAddr = errors.New("a pod's attachment needs at least one address")

func (ps *attachments) add(att *Attachment) error {
	if att.Kind == PodTAP && len(att.addrs) == 0 {
		return fmt.Errorf("attach %s: %w", att.Name, errNoAddr)
	}
	return ps.change(func(t *attachmentTable) error {
		if t.byName[att.Name] != nil {
			return fmt.Errorf("attach %s: already attached; detach it first", att.Name)
		}
		if att.Kind == HostTAP {
			if t.host != nil {
				return fmt.Errorf("attach %s: this node has a host TAP already", att.Name)
			}
			t.host = att
		}
		t.byName[att.Name] = att
		if att.Kind == HostTAP {
			return nil
		}
		for _, a := range att.addrs {
			if other := t.byAddr[a]; other != nil {
				return fmt.Errorf("attach %s: address %s belongs to %s already", att.Name, a, other.Name)
			}
			t.byAddr[a] = att
		}
		return nil
	})
}

// remove takes out the attachment of that name; only, when only is not nil, if it is that one.
func (ps *attachments) remove(name string, only *Attachment) (*Attachment, bool) {
	var att *Attachment
	_ = ps.change(func(t *attachmentTable) error {
		if att = t.byName[name]; att == nil {
			return nil
		}
		if only != nil && att != only {
			att = nil
			return nil
		}
		delete(t.byName, name)
		for _, a := range att.addrs {
			if t.byAddr[a] == att {
				delete(t.byAddr, a)
			}
		}
		if t.host == att {
			t.host = nil
		}
		return nil
	})
	return att, att != nil
}
