package udprelay

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/superframe"
	"tapestry.dev/tapestry/share"
)

// conversation is the exchange between one address and port of a pod and one address and port outside.
type conversation struct {
	m     *mapping
	tuple packet.Tuple      // of the packets that the pod sends
	to    dgram.Addr        // the address of the far end
	head  superframe.Header // of the answers

	next  atomic.Pointer[conversation] // in the table's chain
	used  atomic.Int64                 // the time of the last use, by Relay.now
	known int64                        // the value of used when the heap last read it; guarded by Relay.mu, like place
	place int
	at    int    // index in the mapping's talks; guarded by Relay.mu
	gone  bool   // the conversation has ended; guarded by Relay.mu
	slot  uint32 // in the memory of Hold; guarded by Relay.mu
	claim share.Claim[packet.Addr, *conversation]

	noGSO atomic.Bool // the device refuses UDP_SEGMENT
}

// newConversation makes a conversation that is not in the table yet.
func newConversation(m *mapping, t *packet.Tuple) *conversation {
	back := t.Reverse()
	c := &conversation{m: m, tuple: *t, to: dgram.AddrOf(packet.Endpoint{Addr: t.Dst, Port: t.DstPort}), head: superframe.HeaderOf(&back), slot: noSlot}
	c.claim.Value = c
	c.known = m.r.now.Load()
	c.used.Store(c.known)
	return c
}

// touch records that the conversation is in use. It writes the time only when the time has changed, so that goroutines
// of both directions can keep the cache line.
func (c *conversation) touch() {
	r := c.m.r
	if now := r.now.Load(); c.used.Load() != now {
		c.used.Store(now)
		r.talks.Touch(&c.claim)
		r.sockets.Touch(&c.m.claim)
	}
}

// send sends the datagrams of p. The caller has acquired the mapping.
func (c *conversation) send(p *packet.Packet) (mtu int, err error) {
	c.m.says.Set(c.m.fd, c.m.pod.Addr.Is4(), dgram.HeadOf(p))
	data := payload(p)
	if p.VNet.GSOType == packet.GSONone {
		return c.put(p, data, 0)
	}
	size := int(p.VNet.GSOSize)
	if !c.noGSO.Load() {
		if mtu, err = c.put(p, data, size); err != errNotWhole {
			return mtu, err
		}
	}
	for len(data) > 0 {
		n := min(size, len(data))
		if mtu, err = c.put(p, data[:n], 0); err != nil {
			return mtu, err // the others would fare no better
		}
		data = data[n:]
	}
	return 0, nil
}

// payload returns the data of p's datagrams. An IP packet may be longer than its datagram.
func payload(p *packet.Packet) []byte {
	return p.IP[p.Payload : p.L4+int(p.IP[p.L4+4])<<8+int(p.IP[p.L4+5])]
}

// tries is how often put gives a datagram to the kernel. If an error is pending on the socket, the call returns it and
// sends nothing. That error is about an earlier datagram, maybe to another destination. Two errors may be pending.
const tries = 3

// put sends one datagram of p, or several of size bytes each if size is not 0.
func (c *conversation) put(p *packet.Packet, data []byte, size int) (mtu int, err error) {
	var errno unix.Errno
	for range tries {
		errno = dgram.Send(c.m.fd, &c.to, packet.Addr{}, data, size)
		switch fateOf(errno, size != 0) {
		case sent:
			return 0, nil
		case busy:
			return 0, ErrBusy
		case notWhole:
			if errno == unix.EIO {
				c.noGSO.Store(true) // the device has no checksum offload (udp(7), UDP_SEGMENT)
			}
			return 0, errNotWhole
		case tooBig:
			if mtu = dgram.PathMTU(c.tuple.Dst); mtu > 0 && mtu < p.Payload+len(data) {
				return mtu, ErrTooBig
			}
		}
		c.m.hearErrors()
	}
	return 0, errno
}

// refuse tells the pod that its datagrams do not arrive, and that by says so. The error quotes a datagram like the
// pod's.
func (c *conversation) refuse(why packet.ICMPError, by packet.Addr) {
	var p packet.Packet
	if p.ParseIP(c.head.Quote()) == packet.Good {
		c.m.r.o.Refuse(&p, why, by)
	}
}
