package nodeport

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/packet"
)

// SessionsKind is the kind of Options.Sessions. It changes whenever the meaning of a word does.
const SessionsKind = 0x6e70_7501 // "npu", 1

// memory keeps what the next Proxy needs of UDP sessions, so that clients keep their backends, and backends go on
// seeing a client at the same port: for each session one slot, which is written when the session begins and cleared
// when it ends. The listening sockets are kept by the Listener.
type memory struct {
	memo *memo.Memo // nil: nothing outlives the Proxy

	mu    sync.Mutex // guards what follows
	free  []uint32
	found map[key][]remembered // of the Proxy before, by socket; nil after the first Set
}

// remembered is a session as memory has it.
type remembered struct {
	sessionKey
	at     key           // the socket
	seen   uint16        // the client's port that the backend sees
	choice packet.Choice // of the backend
	slot   uint32
}

const noSlot = ^uint32(0)

// The bits of the word with ports.
const (
	wasCounted  = 1 << iota
	wasSpecific // the socket has the session's local address, and not all of its family
)

func newMemory(m *memo.Memo) *memory {
	mem := &memory{memo: m, found: map[key][]remembered{}}
	if m == nil {
		return mem
	}
	taken := map[uint32]bool{}
	m.Used(func(s uint32) {
		f, _, whole := m.Get(s)
		r, ok := readSession(&f)
		if !whole || !ok {
			m.Clear(s)
			return
		}
		r.slot, taken[s] = s, true
		mem.found[r.at] = append(mem.found[r.at], r)
	})
	for s := m.Len() - 1; s >= 0; s-- {
		if !taken[uint32(s)] {
			mem.free = append(mem.free, uint32(s))
		}
	}
	return mem
}

// take returns the sessions of a socket in the Proxy before, once.
func (m *memory) take(at key) []remembered {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.found[at]
	delete(m.found, at)
	return list
}

// forgetRest forgets the sessions of sockets that are not there any more.
func (m *memory) forgetRest() {
	m.mu.Lock()
	rest := m.found
	m.found = nil
	m.mu.Unlock()
	for _, list := range rest {
		for _, r := range list {
			m.forget(r.slot)
		}
	}
}

// put remembers a session and returns its slot. When there is no room the session ends with the Proxy, and so does one
// of a link-local client, whose zone has no place in a slot.
func (m *memory) put(r *remembered) uint32 {
	if m.memo == nil || !r.local.IsValid() || r.client.Addr().Zone() != "" || r.local.Zone() != "" {
		return noSlot
	}
	m.mu.Lock()
	n := len(m.free)
	if n == 0 {
		m.mu.Unlock()
		return noSlot
	}
	s := m.free[n-1]
	m.free = m.free[:n-1]
	m.mu.Unlock()
	f := r.fixed()
	m.memo.Put(s, &f, new([memo.Live]uint64))
	return s
}

func (m *memory) forget(slot uint32) {
	if slot == noSlot {
		return
	}
	m.memo.Clear(slot)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free = append(m.free, slot)
}

func (r *remembered) fixed() (f memo.Fixed) {
	putAddr(f[0:], r.client.Addr())
	putAddr(f[2:], r.local)
	putAddr(f[5:], r.choice.To.Addr.Netip())
	bits := uint64(0)
	if r.choice.Counted {
		bits |= wasCounted
	}
	if !r.at.local.Addr().IsUnspecified() {
		bits |= wasSpecific
	}
	f[4] = uint64(r.client.Port())<<48 | uint64(r.at.local.Port())<<32 | uint64(r.seen)<<16 | bits
	f[7], f[8] = uint64(r.choice.To.Port), r.choice.Backend
	return f
}

// readSession is the inverse of fixed. ok is false for words that no session has.
func readSession(f *memo.Fixed) (r remembered, ok bool) {
	r.client = netip.AddrPortFrom(getAddr(f[0:]), uint16(f[4]>>48))
	r.local, r.seen = getAddr(f[2:]), uint16(f[4]>>16)
	r.choice = packet.Choice{Kind: packet.Picked, Backend: f[8], Counted: f[4]&wasCounted != 0}
	r.choice.To = packet.EndpointFrom(netip.AddrPortFrom(getAddr(f[5:]), uint16(f[7])))
	all, network := netip.IPv6Unspecified(), "udp6"
	if r.client.Addr().Is4() {
		all, network = netip.IPv4Unspecified(), "udp4"
	}
	if f[4]&wasSpecific != 0 {
		all = r.local
	}
	r.at = key{network, netip.AddrPortFrom(all, uint16(f[4]>>32))}
	return r, r.client.Addr().Is4() == r.local.Is4() && !r.local.IsUnspecified() && r.seen != 0
}

func putAddr(w []uint64, a netip.Addr) {
	b := a.As16()
	w[0], w[1] = binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func getAddr(w []uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], w[0])
	binary.BigEndian.PutUint64(b[8:], w[1])
	return netip.AddrFrom16(b).Unmap()
}

// resume goes on with the sessions that the Proxy before had at the socket, as far as their backends may keep them.
func (s *server) resume(u udpSocket) {
	for _, r := range s.p.memory.take(s.key) {
		if !s.revive(u, &r) {
			s.p.memory.forget(r.slot)
		}
	}
}

func (s *server) revive(u udpSocket, r *remembered) bool {
	f, ok := s.p.asking(r.client, place{s.key.local, s.proxy()}, packet.UDP)
	if !ok {
		return false
	}
	f.choice, f.backend = r.choice, r.choice.To.AddrPort()
	if !s.p.opts.Stays(&f.tuple, f.choice) {
		return false
	}
	f.client = netip.AddrPortFrom(f.client.Addr(), r.seen)
	return s.begin(u, r.sessionKey, &f, r.slot) != nil
}

// remember keeps a session that begins.
func (s *server) remember(sess *session) {
	var seen uint16
	switch to := sess.to.(type) {
	case interface{ Seen() uint16 }:
		seen = to.Seen()
	case net.Conn:
		if at, err := addrPort(to.LocalAddr()); err == nil {
			seen = at.Port()
		}
	}
	if seen != 0 {
		sess.slot = s.p.memory.put(&remembered{sessionKey: sess.key, at: s.key, seen: seen, choice: sess.choice})
	}
}
