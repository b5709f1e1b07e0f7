package udprelay

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/share"
)

// mapping is the host socket of one address and port of a pod, for all destinations of that port.
type mapping struct {
	r     *Relay
	pod   packet.Endpoint
	fd    int
	watch atomic.Pointer[poll.Watch] // nil until open has stored it: a stale event may call Ready before
	claim share.Claim[packet.Addr, *mapping]

	users atomic.Int32 // the Relay counts as one; whoever makes it zero closes fd
	says  dgram.Says
	bulk  atomic.Bool // the last message was coalesced by the kernel

	// Guarded by Relay.mu.
	talks []*conversation
	gone  bool // the mapping has ended
	// How the mapping outlives this process (Hold): its slot, whether its socket is held, and whether it is just being
	// kept.
	slot          uint32
	held, keeping bool
	cookie        uint64 // of the socket, once it has a slot
}

// open opens the socket. The caller is its first user.
func (m *mapping) open() error {
	fd, err := dgram.Open(dgram.UDP, m.pod.Addr.Is4())
	if err != nil {
		return err
	}
	// Kernels before 5.0 have no UDP_GRO; with them datagrams come one by one.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	m.fd = fd
	m.users.Store(1)
	// It waits for no events at first, because the handler needs the Watch.
	w, err := m.r.o.Poller.Add(fd, m, 0)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	m.watch.Store(w)
	w.Arm(poll.In)
	return nil
}

// acquire keeps the socket open until release. It returns false when the mapping has ended.
func (m *mapping) acquire() bool {
	for {
		n := m.users.Load()
		if n == 0 {
			return false
		}
		if m.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (m *mapping) release() {
	if m.users.Add(-1) == 0 {
		m.watch.Load().Close()
		_ = unix.Close(m.fd)
	}
}

// tuple returns the tuple of packets that the pod sends from here to e.
func (m *mapping) tuple(e packet.Endpoint) packet.Tuple {
	return packet.Tuple{Src: m.pod.Addr, SrcPort: m.pod.Port, Dst: e.Addr, DstPort: e.Port, Proto: packet.UDP}
}

// hearErrors reads the socket's error queue and tells the pod of the errors, which are about datagrams that were sent
// earlier.
func (m *mapping) hearErrors() {
	dgram.Hear(m.fd, func(e dgram.Error) {
		t := m.tuple(e.About)
		if c := m.r.table.find(&t); c != nil && c.m == m {
			c.refuse(e.Why, e.By)
		}
	})
}
