package overlay

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
)

// The types of WireGuard's messages that go where WireGuard itself decides: they answer whoever asked.
const (
	messageResponse = 2
	messageCookie   = 3
)

// diverter is the Bind that WireGuard sends through. WireGuard knows one address of each peer, the one that the peer
// was heard from last. The diverter sends single probes to another one, and all packets to one that the Mesh chose.
//
// A probe is known by its buffer: WireGuard encrypts a packet in the buffer into which tunnel.Read wrote it.
type diverter struct {
	conn.Bind

	marks atomic.Int32 // the length of marked
	mu    sync.Mutex   // guards marked, and serialises changes of pins
	// marked are buffers of probes, by their first byte, and where they go.
	marked map[*byte]conn.Endpoint

	// pins are the addresses of peers in place of which others are used; nil when there are none.
	pins atomic.Pointer[map[netip.AddrPort]pin]
}

// pin says where everything goes that WireGuard would send to an address of a peer.
type pin struct {
	of *peer
	to conn.Endpoint
}

// maxMarks bounds the marked buffers. WireGuard may drop a packet, and its buffer stays marked until it is used again.
// One Read marks tunnelBatch buffers at most.
const maxMarks = 2 * tunnelBatch

func newDiverter(b conn.Bind) *diverter {
	return &diverter{Bind: b, marked: make(map[*byte]conn.Endpoint)}
}

// mark has the packet that WireGuard makes in buf sent to an address. It reports false when too many are marked: then
// the packet must not be sent, since its answer would tell of another address.
func (d *diverter) mark(buf []byte, to conn.Endpoint) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.marked) >= maxMarks {
		return false
	}
	d.marked[&buf[0]] = to
	d.marks.Store(int32(len(d.marked)))
	return true
}

// forget takes the marks from bufs, which are used anew.
func (d *diverter) forget(bufs [][]byte) {
	if d.marks.Load() == 0 {
		return
	}
	d.mu.Lock()
	for _, b := range bufs {
		delete(d.marked, &b[0])
	}
	d.marks.Store(int32(len(d.marked)))
	d.mu.Unlock()
}

// pin has everything that WireGuard would send to one of from sent to another address, answers to handshakes apart.
// from must be addresses of p alone, since an address does not tell for which peer a packet is.
func (d *diverter) pin(p *peer, from []netip.AddrPort, to conn.Endpoint) {
	d.change(func(pins map[netip.AddrPort]pin) {
		for _, a := range from {
			pins[a] = pin{p, to}
		}
	})
}

// unpin ends what pin began for p.
func (d *diverter) unpin(p *peer) {
	d.change(func(pins map[netip.AddrPort]pin) {
		maps.DeleteFunc(pins, func(_ netip.AddrPort, a pin) bool { return a.of == p })
	})
}

func (d *diverter) change(f func(map[netip.AddrPort]pin)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pins := make(map[netip.AddrPort]pin)
	if old := d.pins.Load(); old != nil {
		maps.Copy(pins, *old)
	}
	f(pins)
	if len(pins) == 0 {
		d.pins.Store(nil)
	} else {
		d.pins.Store(&pins)
	}
}

// Send implements conn.Bind.
func (d *diverter) Send(bufs [][]byte, ep conn.Endpoint) error {
	if d.marks.Load() > 0 {
		if bufs = d.sendMarked(bufs); len(bufs) == 0 {
			return nil
		}
	}
	if pins := d.pins.Load(); pins != nil {
		if t := bufs[0][0]; t != messageResponse && t != messageCookie {
			if a, ok := ep.(interface{ AddrPort() netip.AddrPort }); ok {
				if at, ok := (*pins)[a.AddrPort()]; ok {
					ep = at.to
				}
			}
		}
	}
	return d.Bind.Send(bufs, ep)
}

// sendMarked sends those of bufs that are marked, and returns the others.
func (d *diverter) sendMarked(bufs [][]byte) [][]byte {
	var rest [][]byte
	for i, b := range bufs {
		d.mu.Lock()
		to := d.marked[&b[0]]
		delete(d.marked, &b[0])
		d.marks.Store(int32(len(d.marked)))
		d.mu.Unlock()
		switch {
		case to != nil:
			if rest == nil {
				rest = slices.Clone(bufs[:i]) // bufs are WireGuard's
			}
			_ = d.Bind.Send([][]byte{b}, to) // this host may have no route there, and then there is no answer
		case rest != nil:
			rest = append(rest, b)
		}
	}
	if rest == nil {
		return bufs
	}
	return rest
}
