package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/knock"
	"tapestry.dev/tapestry/netstack/pace"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/netstack/tap"
)

// Device is how an attachment reads and writes superframes; *tap.Device is one.
type Device interface {
	// Run reads superframes until Close and passes each to handle, one at a time. handle owns the frame and returns
	// another buffer of the same capacity in exchange. Run calls rest, unless it is nil, when no more frames are at
	// hand for the moment, and when it gives way to others. Run returns nil after Close.
	Run(handle func(frame []byte) []byte, rest func()) error
	// Write and Writev write one superframe. They are safe for concurrent use.
	Write(frame []byte) error
	Writev(iov [][]byte) error
	// Offloads returns the offloads that a written frame may rely on. They do not change.
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
	UID   string // of the pod, which tells it from others of that name; "" if it is not known
	Kind  AttachmentKind
	MAC   packet.MAC
	Addrs []netip.Addr // addresses the pod may send from; for the host TAP, those besides the node's own
	// Limit is the largest rate at which the attachment is sent packets; the bytes of IP count. Packets that come
	// faster wait; when too many wait, further ones are dropped. The zero Rate is no limit.
	Limit tap.Rate
}

// Attachment is a TAP that the Path reads and writes: a pod's or the host's.
type Attachment struct {
	AttachmentConfig
	addrs []packet.Addr
	owner uint64 // who is charged for its flows and fragments; see snapshot.owner
	dev   Device
	lacks tap.Offloads // offloads that dev does not do
	// toTAP and fromTAP count packets (a superframe is one) and bytes of IP.
	toTAP, fromTAP counter
	down           atomic.Uint64
	limit          *pace.Limit   // nil for none
	overLimit      atomic.Uint64 // packets
	// meter holds the pod to its quota; nil for none.
	meter atomic.Pointer[quota.Meter]
	// knocks has the SYNs of the pod, or of the host's own processes, that ask Services.
	knocks knock.Ring
	// exit is how the pod's packets leave the cluster; nil for as everybody's.
	exit atomic.Pointer[exit.Pod]
}

type counter struct{ packets, bytes atomic.Uint64 }

func (c *counter) add(n int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(n))
}

// AttachmentStats holds an attachment's counters; a superframe counts as one packet.
type AttachmentStats struct {
	Name                   string
	Addrs                  []netip.Addr
	ToPackets, ToBytes     uint64
	FromPackets, FromBytes uint64
	Down                   uint64 // writes that the TAP refused
	OverLimit              uint64 // packets that Limit did not allow
	// Quota is what the pod may send, and OverPackets and OverFlows count what it sent beyond that.
	Quota                  quota.Quota
	OverPackets, OverFlows uint64
	Offloads               string // the offloads of its device that are in use
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

// attachmentTable is the immutable set of attachments, by name and by address. It is copied on every change, which is
// rare.
type attachmentTable struct {
	byName map[string]*Attachment
	byAddr map[packet.Addr]*Attachment
	host   *Attachment
}

// attachments holds the current table. mu keeps changes apart; readers only load the pointer.
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

// remove removes the attachment with this name. With a non-nil only it does so only if that is the one.
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
