package tcprelay

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/packet"
)

// ErrKeepLater says that sockets cannot be kept at the moment.
var ErrKeepLater = errors.New("too much waits to be kept")

func pause() { time.Sleep(time.Millisecond) }

// The live words of a slot.
const (
	// liveOffer is what the pod's SYN said and how far the connection is: number<<32 | MSS<<16 | scale<<8 | bits.
	liveOffer = iota
	// liveTaken has two numbers of the socket's stream: low<<32 | high. The socket's first unread byte has one of them,
	// or one between: they differ only while bytes are being consumed.
	liveTaken
	// livePodEnd is the number of the pod's FIN with bit 32 set, once the FIN may be passed on, and 0 before.
	// liveHostEnd is the same for the FIN that the pod is sent.
	livePodEnd
	liveHostEnd
	// liveDeaf is 1 when the socket accepts no more data.
	liveDeaf
)

// The bits of liveOffer.
const (
	offerScales = 1 << iota
	offerKnown  // the pod's SYN has come
	offerOpen   // the connection is open
	offerSACKs  // the pod takes selective acknowledgements
)

// known is the bit of a number that is there.
const known = 1 << 32

// record is what the memory says of a connection.
type record struct {
	key    packet.Tuple
	joined bool   // the client came to a NodePort
	iss    uint32 // our initial number
	cookie uint64 // of the socket (SO_COOKIE)
	base   uint32 // the socket's count of bytes, by counts.written, when none had been written

	offer           offer
	irs             uint32 // the pod's initial number
	heard, open     bool   // whether offer and irs are known, and whether the connection is open
	low, high       uint32
	podEnd, hostEnd uint32
	hasPod, hasHost bool // whether podEnd and hostEnd are known
	deaf            bool
}

// fixed returns the constant words.
func (r *record) fixed() (f memo.Fixed) {
	f[0], f[1] = be.Uint64(r.key.Src[:8]), be.Uint64(r.key.Src[8:])
	f[2], f[3] = be.Uint64(r.key.Dst[:8]), be.Uint64(r.key.Dst[8:])
	f[4] = uint64(r.key.SrcPort)<<48 | uint64(r.key.DstPort)<<32 | uint64(r.iss)
	f[5] = r.cookie
	f[6] = uint64(r.base)
	if r.joined {
		f[7] = 1
	}
	return f
}

func readRecord(f *memo.Fixed, live *[memo.Live]uint64) (r record) {
	be.PutUint64(r.key.Src[:8], f[0])
	be.PutUint64(r.key.Src[8:], f[1])
	be.PutUint64(r.key.Dst[:8], f[2])
	be.PutUint64(r.key.Dst[8:], f[3])
	r.key.SrcPort, r.key.DstPort, r.iss = uint16(f[4]>>48), uint16(f[4]>>32), uint32(f[4])
	r.key.Proto = packet.TCP
	r.cookie, r.base, r.joined = f[5], uint32(f[6]), f[7] != 0
	o := live[liveOffer]
	r.irs = uint32(o >> 32)
	r.offer = offer{mss: max(int(uint16(o>>16)), minMSS), scale: min(uint8(o>>8), maxScale), scales: o&offerScales != 0, sacks: o&offerSACKs != 0}
	r.heard, r.open = o&offerKnown != 0, o&offerOpen != 0
	r.low, r.high = uint32(live[liveTaken]>>32), uint32(live[liveTaken])
	r.podEnd, r.hasPod = uint32(live[livePodEnd]), live[livePodEnd]&known != 0
	r.hostEnd, r.hasHost = uint32(live[liveHostEnd]), live[liveHostEnd]&known != 0
	r.deaf = live[liveDeaf] != 0
	return r
}

// offerWord is the word liveOffer.
func offerWord(o offer, irs uint32, isOpen bool) uint64 {
	w := uint64(irs)<<32 | uint64(uint16(o.mss))<<16 | uint64(o.scale)<<8 | offerKnown
	if o.scales {
		w |= offerScales
	}
	if o.sacks {
		w |= offerSACKs
	}
	if isOpen {
		w |= offerOpen
	}
	return w
}

// remember writes a live word of the connection, if it has a slot.
func (c *conn) remember(word int, v uint64) {
	if c.slot != noSlot {
		c.r.hold.Memory.Set(c.slot, word, v)
	}
}

// ErrNotHoldable says that this kernel lets no connection outlive its Relay.
var ErrNotHoldable = errors.New("this kernel has no SO_PEEK_OFF for TCP, which takes Linux 6.11")

// Holdable returns an error, which wraps ErrNotHoldable, when this kernel does not let connections outlive their Relay:
// without SO_PEEK_OFF, which TCP has since Linux 6.9 and over IPv6 since 6.11, what a pod has not acknowledged would
// not be in the socket any more.
func Holdable() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			continue // the host does without that family
		}
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotHoldable, err)
		}
	}
	return nil
}

// enter begins to hold the connection, whose socket is connected and has had nothing written to it or read from it. It
// returns false when nobody holds it, and otherwise the connection is noted as kept later.
func (c *conn) enter() bool {
	h := c.r.hold
	if h == nil {
		return false
	}
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) != nil {
		return false
	}
	info, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false
	}
	cookie, err := unix.GetsockoptUint64(c.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return false
	}
	s := h.slot()
	if s == noSlot {
		return false
	}
	rec := record{key: c.key, joined: c.joined, iss: c.to.una, cookie: cookie, base: uint32(info.Bytes_acked)}
	f := rec.fixed()
	var live [memo.Live]uint64
	c.to.taken = c.to.nxt
	live[liveTaken] = uint64(c.to.taken)<<32 | uint64(c.to.taken)
	c.mu.Lock() // for offered
	c.slot, c.peeks = s, true
	live[liveOffer] = c.offered
	h.Memory.Put(s, &f, &live)
	c.mu.Unlock()
	h.put(c)
	return true
}

// counts is what the kernel knows of a TCP socket.
type counts struct {
	state uint8 // TCP_ESTABLISHED and so on
	// written counts the bytes that were written, received those that have arrived in order; each counts an end, too,
	// and written perhaps the SYN. They are exact modulo 1<<32. unread is the number of bytes that arrived and were not
	// read.
	written, received, unread uint32
	cookie                    uint64
	since                     uint32 // how many milliseconds ago data has arrived
}

// count asks the kernel. Bytes may arrive and be acknowledged at any moment, so it asks until two answers agree.
func count(fd int) (k counts, err error) {
	for {
		before, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return k, err
		}
		out, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return k, err
		}
		in, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil {
			return k, err
		}
		after, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return k, err
		}
		if before.Bytes_acked != after.Bytes_acked || before.Bytes_received != after.Bytes_received || before.State != after.State {
			continue
		}
		k.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		k.state, k.unread, k.since = after.State, uint32(in), after.Last_data_recv
		k.written, k.received = uint32(after.Bytes_acked)+uint32(out), uint32(after.Bytes_received)
		return k, err
	}
}
