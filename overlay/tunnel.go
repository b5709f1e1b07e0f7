package overlay

import (
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay/narrow"
	"tapestry.dev/tapestry/overlay/pathmtu"
)

const (
	// paddingUnit is the device's MTU as WireGuard is told. WireGuard uses the MTU for nothing but padding
	// (device/send.go): it pads to 16 bytes, but never past the next multiple of the MTU. A real MTU would be one for
	// all peers, and on a smaller path to one of them the padding would not fit. With 20, every packet up to a path MTU
	// that is a multiple of 20, as 1500, 1400, 1280 and 9000 are, still fits when padded.
	paddingUnit = 20
	// tunnelBatch is the most packets that one Read returns.
	tunnelBatch = 128
	// readEnough is how many packets end a Read early, so that encryption begins while the next superframe is cut.
	readEnough = 40
	// inflightMax bounds the packets inside WireGuard, each of which occupies 64 KiB there (its own queues would hold
	// a hundred thousand), and thereby the delay they add: 2 to 3 ms at 3 Gb/s.
	inflightMax = 768
	// stagedMax is how many packets for a peer without a session are given to WireGuard, which keeps them until there
	// is one. Every look of the prober allows stagedGrant more.
	stagedMax   = 256
	stagedGrant = 16
	// maxInner is the largest packet that WireGuard's buffers hold with header, padding and tag.
	maxInner = device.MaxContentSize - paddingUnit
)

// carriedAlways is the largest packet in bytes that every path carries in one piece.
var carriedAlways = innerMTU(pathmtu.Small, false)

// tunnel is the tun.Device of the Mesh. WireGuard reads from it the packets of superframes, and writes to it what goes
// to Receive.
type tunnel struct {
	m      *Mesh
	events chan tun.Event
	once   sync.Once

	// Used by Read alone, which has one caller.
	seg     packet.Segmenter
	cur     entry
	busy    bool // seg is at work on cur
	counted bool // cur's packets are counted in inflight
	partial bool // cur's checksums stay partial
	cutter  *narrow.Cutter
	narrow  bool // the path carries some of cur's packets in pieces only
}

var _ tun.Device = (*tunnel)(nil)

func newTunnel(m *Mesh) *tunnel {
	return &tunnel{m: m, events: make(chan tun.Event), cutter: narrow.New()}
}

// Read implements tun.Device. A superframe with more packets than there are buffers goes on in the next Read.
func (t *tunnel) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	t.m.div.forget(bufs)
	for n < len(bufs) && (t.busy || n < readEnough) {
		if t.busy {
			n = t.fill(bufs, sizes, offset, n)
			continue
		}
		var c echo
		isEntry, isControl := t.m.ring.next(&t.cur, &c, n == 0, t.m.congested)
		switch {
		case isControl:
			if c.to == nil || t.m.div.mark(bufs[n], c.to) {
				sizes[n] = c.put(bufs[n][offset:])
				n++
			}
		case isEntry:
			t.begin()
		case n == 0:
			return 0, os.ErrClosed
		default:
			return n, nil
		}
	}
	return n, nil
}

// begin prepares cur to be cut, or drops it.
func (t *tunnel) begin() {
	var via *packet.Encap
	if t.cur.wrap {
		via = &t.cur.via
	}
	p := t.cur.peer
	t.seg.Partial = p.partial.Load()
	t.seg.Reset(&t.cur.pkt, via)
	size, room := t.seg.Size(), int(p.mtu.Load())
	if t.cur.pkt.EtherType == packet.EtherIPv6 {
		t.cur.pkt.ClearCutMark()
		if t.narrow = t.cutter.Begin(size, room, via); t.narrow {
			t.seg.Partial = false // a node that does not join the pieces takes their checksum for a full one
			t.seg.Reset(&t.cur.pkt, via)
		}
	}
	t.partial = t.seg.Partial && t.cur.pkt.VNet.Flags&packet.NeedsCsum != 0
	t.busy = true
	if size > maxInner {
		t.m.stats.tooBig.Add(1)
		t.finish()
		return
	}
	p.sent.Add(1)
	if size > carriedAlways {
		p.large.Add(1)
	}
	t.counted = p.live.Load()
	if !t.counted && p.credit.Add(-int32(1+t.cur.pkt.Len()/size)) < 0 {
		t.m.stats.noSession.Add(1)
		t.finish()
	}
}

// fill fills buffers from the n-th on with packets of cur, and returns how many buffers are full.
func (t *tunnel) fill(bufs [][]byte, sizes []int, offset, n int) int {
	first, bytes := n, 0
	for ; n < len(bufs); n++ {
		size := t.next(bufs[n][offset:])
		if size == 0 {
			t.finish()
			break
		}
		sizes[n] = size
		bytes += size
	}
	t.m.stats.sent.Add(uint64(n - first))
	if t.partial {
		t.m.stats.sentPartial.Add(uint64(n - first))
	}
	t.m.stats.sentBytes.Add(uint64(bytes))
	if t.counted {
		t.m.inflight.Add(int64(n - first))
	}
	return n
}

// next writes the next packet of cur, or the next piece of one, to dst and returns its length, 0 when there is none
// left.
func (t *tunnel) next(dst []byte) int {
	if !t.narrow {
		return t.seg.Next(dst)
	}
	n, cut := t.cutter.Next(&t.seg, dst)
	if cut {
		t.m.stats.cut.Add(1)
	}
	return n
}

// finish ends work on cur, and returns its buffer to the ring.
func (t *tunnel) finish() {
	t.m.ring.release(t.cur.buf)
	t.cur, t.busy, t.narrow = entry{}, false, false
}

// congested reports whether WireGuard holds as many packets as it may.
func (m *Mesh) congested() bool { return m.inflight.Load() >= inflightMax }

// noteSent subtracts n data packets that WireGuard sent from inflight. The count drifts, because WireGuard drops
// packets by itself and sends some that were not counted. So the count stops at zero, and the prober resets a stuck
// one.
func (m *Mesh) noteSent(n int) {
	if n == 0 {
		return
	}
	after := m.inflight.Add(-int64(n))
	if after < 0 {
		m.inflight.CompareAndSwap(after, 0)
	}
	if after < inflightMax && after+int64(n) >= inflightMax {
		m.ring.wake()
	}
}

// Write implements tun.Device: bufs hold a batch of one peer. Write changes the slice of slices, which is allowed
// because WireGuard fills it anew for every batch.
func (t *tunnel) Write(bufs [][]byte, offset int) (int, error) {
	m := t.m
	tab := m.table.Load()
	var from *peer
	var last packet.Addr
	out := bufs[:0]
	for i := range bufs {
		ip := bufs[i][offset:]
		src, ok := source(ip)
		if !ok {
			m.stats.spoofed.Add(1)
			continue
		}
		if owner := from; src != last || from == nil {
			if owner = tab.owner(src); owner == nil {
				m.stats.spoofed.Add(1)
				continue
			}
			if owner != from {
				m.deliver(from, out)
				from, out = owner, bufs[:0]
			}
			last = src
		}
		if !m.takeEcho(from, ip) {
			out = append(out, ip)
		}
	}
	m.deliver(from, out)
	return len(bufs), nil
}

// deliver hands packets of one peer to Receive.
func (m *Mesh) deliver(from *peer, packets [][]byte) {
	if len(packets) == 0 {
		return
	}
	from.heard.Add(1)
	bytes := 0
	for _, p := range packets {
		bytes += len(p)
	}
	m.stats.received.Add(uint64(len(packets)))
	m.stats.receivedBytes.Add(uint64(bytes))
	m.o.Receive(from.id, packets)
}

// source returns the source address of an IP packet. It reports false for a packet that is too short, is not IP, or is
// IPv6 with a mapped IPv4 address.
func source(ip []byte) (a packet.Addr, ok bool) {
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		a[10], a[11] = 0xff, 0xff
		copy(a[12:], ip[12:16])
		return a, true
	case len(ip) >= 40 && ip[0]>>4 == 6:
		copy(a[:], ip[8:24])
		return a, !a.Is4()
	}
	return a, false
}

// File implements tun.Device. There is no file.
func (t *tunnel) File() *os.File { return nil }

// MTU implements tun.Device; see paddingUnit.
func (t *tunnel) MTU() (int, error) { return paddingUnit, nil }

// Name implements tun.Device.
func (t *tunnel) Name() (string, error) { return "tapestry", nil }

// Events implements tun.Device. The Mesh is always up, so there are none.
func (t *tunnel) Events() <-chan tun.Event { return t.events }

// BatchSize implements tun.Device.
func (t *tunnel) BatchSize() int { return tunnelBatch }

// Close implements tun.Device.
func (t *tunnel) Close() error {
	t.once.Do(func() {
		t.m.ring.close()
		close(t.events)
	})
	return nil
}

// innerMTU returns the size in bytes of the largest inner packet that, padded (see paddingUnit) and encrypted, fits
// into an underlay packet of path bytes.
func innerMTU(path int, v4 bool) int {
	room := path - addressing.Tunnel(!v4)
	if rest := room % paddingUnit; rest >= 16 {
		return room - rest + 16
	} else {
		return room - rest
	}
}
