package udprelay

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// Hold lets mappings outlive the Relay and its process, so that everybody outside goes on seeing a pod at the same
// port. Somebody else has a duplicate of each socket, and shared memory says whose it is and whom the pod has sent to.
type Hold struct {
	// Memory is of kind MemoryKind. The first Most slots are for sockets, the others for conversations.
	Memory *memo.Memo
	Most   int
	// Keep makes somebody hold a duplicate of each of the sockets, under the numbers of their slots, at most MaxKept at
	// once. It does not block. After an error it is tried again later.
	Keep func(slots []uint32, fds []int) error
	// Release says that what is held under a slot is not needed any longer. It does not block, and may be late.
	Release func(slot uint32)
	// Found has the sockets that were held when this process began. They belong to the Relay.
	Found map[uint32]int
}

const (
	// MemoryKind is the kind of the Memory of a Hold. It changes whenever the meaning of a word does.
	MemoryKind = 0x7564_7001 // "udp", 1
	// MaxKept is how many sockets Keep gets at once at most.
	MaxKept = 128

	noSlot = ^uint32(0)
	// The kinds of slots, in the upper half of the word with the pod's port.
	isMapping = 1
	isTalk    = 2
)

// holder is the state of a Hold. Relay.mu guards it, but not the calls of Keep.
type holder struct {
	Hold
	sockets, talks slots
	fresh          []*mapping // those that are not held yet
	leaving        bool       // the Relay is closed, and its mappings go on
	resumed        bool
}

// slots gives out numbers.
type slots struct {
	free       []uint32
	fresh, end uint32 // numbers that were never used
	taken      map[uint32]bool
}

func (s *slots) get() uint32 {
	if n := len(s.free); n > 0 {
		v := s.free[n-1]
		s.free = s.free[:n-1]
		return v
	}
	for s.fresh < s.end {
		s.fresh++
		if v := s.fresh - 1; !s.taken[v] {
			return v
		}
	}
	return noSlot
}

func newHolder(h Hold) *holder {
	most := uint32(min(h.Most, h.Memory.Len()))
	return &holder{Hold: h, sockets: slots{end: most, taken: map[uint32]bool{}}, talks: slots{fresh: most, end: uint32(h.Memory.Len()), taken: map[uint32]bool{}}}
}

// keep has the sockets held that have lived for a moment. Most sockets are for one question to a DNS server, and are
// gone before.
func (r *Relay) keep() {
	h := r.hold
	if h == nil {
		return
	}
	for {
		r.mu.Lock()
		n := min(len(h.fresh), MaxKept)
		batch := make([]*mapping, 0, n)
		for _, m := range h.fresh[:n] {
			if m.gone {
				continue
			}
			if m.slot == noSlot {
				m.slot = h.sockets.get()
			}
			if m.slot != noSlot {
				m.keeping = true
				batch = append(batch, m)
			}
		}
		h.fresh = append(h.fresh[:0], h.fresh[n:]...)
		r.mu.Unlock()
		if n == 0 || !r.keepAll(batch) {
			return
		}
	}
}

// keepAll has the sockets of a batch held. Nobody closes them meanwhile.
func (r *Relay) keepAll(batch []*mapping) bool {
	h := r.hold
	var numbers []uint32
	var fds []int
	for _, m := range batch {
		m.cookie, _ = unix.GetsockoptUint64(m.fd, unix.SOL_SOCKET, unix.SO_COOKIE) // fails for no socket
		f := mappingRecord(m)
		h.Memory.Put(m.slot, &f, new([memo.Live]uint64))
		numbers, fds = append(numbers, m.slot), append(fds, m.fd)
	}
	var err error
	if len(batch) > 0 {
		err = h.Keep(numbers, fds)
	}
	r.mu.Lock()
	var over []*mapping
	for _, m := range batch {
		m.keeping, m.held = false, err == nil
		switch {
		case m.gone:
			over = append(over, m)
		case m.held:
			for _, c := range m.talks {
				h.record(c)
			}
		default:
			h.fresh = append(h.fresh, m) // again at the next Sweep
		}
	}
	r.mu.Unlock()
	for _, m := range over {
		r.forget(m)
		m.release()
	}
	return err == nil
}

// record writes down a conversation of a mapping that is held. The caller holds Relay.mu.
func (h *holder) record(c *conversation) {
	if h == nil || !c.m.held || c.slot != noSlot {
		return
	}
	if c.slot = h.talks.get(); c.slot != noSlot {
		f := mappingRecord(c.m)
		f[2] = uint64(isTalk)<<32 | uint64(c.tuple.SrcPort)
		f[4], f[5], f[6] = word(c.tuple.Dst[:8]), word(c.tuple.Dst[8:]), uint64(c.tuple.DstPort)
		h.Memory.Put(c.slot, &f, new([memo.Live]uint64))
	}
}

// erase forgets a conversation. The caller holds Relay.mu.
func (h *holder) erase(c *conversation) {
	if h == nil || c.slot == noSlot || h.leaving {
		return
	}
	h.Memory.Clear(c.slot)
	h.talks.free = append(h.talks.free, c.slot)
	c.slot = noSlot
}

// forget forgets the socket of m, which has ended.
func (r *Relay) forget(m *mapping) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.hold
	if h == nil || m.slot == noSlot || h.leaving {
		return
	}
	h.Memory.Clear(m.slot)
	h.Release(m.slot)
	h.sockets.free = append(h.sockets.free, m.slot)
	m.slot = noSlot
}

// KeepAgain has all sockets held once more, by somebody new, at the next Sweep.
func (r *Relay) KeepAgain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hold == nil {
		return
	}
	r.hold.fresh = r.hold.fresh[:0]
	for _, m := range r.mappings {
		r.hold.fresh = append(r.hold.fresh, m)
	}
}

// Resume goes on with the mappings of the Relay before, as far as their pods are here. It returns how many go on.
// Nothing of a pod may be sent before.
func (r *Relay) Resume(here func(pod netip.Addr) bool) (resumed int) {
	h := r.hold
	if h == nil || h.resumed {
		return 0
	}
	h.resumed = true
	mappings := map[uint64]*mapping{} // by cookie
	var talks []memo.Fixed
	var clear []uint32
	h.Memory.Used(func(s uint32) {
		f, _, whole := h.Memory.Get(s)
		switch fd, there := h.Found[s]; {
		case whole && f[2]>>32 == isTalk:
			talks, clear = append(talks, f), append(clear, s) // it gets a slot anew
		case whole && f[2]>>32 == isMapping && there && here(addr(f[0], f[1]).Netip()):
			if m := r.revive(s, fd, &f); m != nil {
				mappings[m.cookie] = m
				delete(h.Found, s)
				return
			}
			clear = append(clear, s)
		default:
			clear = append(clear, s)
		}
	})
	for _, s := range clear {
		h.Memory.Clear(s)
	}
	for s, fd := range h.Found {
		_ = unix.Close(fd)
		h.Release(s)
	}
	h.Found = nil
	for i := range talks {
		r.reviveTalk(mappings, &talks[i])
	}
	for _, m := range mappings {
		m.watch.Load().Arm(poll.In)
		r.endVacant(m)
		if !m.gone {
			resumed++
		}
	}
	return resumed
}

// revive makes the mapping of a record, or returns nil.
func (r *Relay) revive(s uint32, fd int, f *memo.Fixed) *mapping {
	m := &mapping{r: r, pod: packet.Endpoint{Addr: addr(f[0], f[1]), Port: uint16(f[2])}, fd: fd, slot: s, cookie: f[3], held: true}
	m.claim.Value = m
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil || cookie != m.cookie {
		return nil
	}
	if r.mappings[m.pod] != nil {
		return nil
	}
	lost, ok := r.sockets.Acquire(&m.claim, r.o.Owner(m.pod.Addr))
	if lost != nil {
		r.endMapping(lost.Value)
	}
	if !ok {
		return nil
	}
	w, err := r.o.Poller.Add(fd, m, 0)
	if err != nil {
		r.sockets.Release(&m.claim)
		return nil
	}
	m.watch.Store(w)
	m.users.Store(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mappings[m.pod] = m
	r.hold.sockets.taken[s], r.hold.talks.taken[s] = true, true // either, as the plan may have been another one
	return m
}

// reviveTalk begins a conversation of a record again, if its mapping goes on.
func (r *Relay) reviveTalk(mappings map[uint64]*mapping, f *memo.Fixed) {
	m := mappings[f[3]]
	if m == nil || m.pod != (packet.Endpoint{Addr: addr(f[0], f[1]), Port: uint16(f[2])}) {
		return
	}
	t := m.tuple(packet.Endpoint{Addr: addr(f[4], f[5]), Port: uint16(f[6])})
	c := newConversation(m, &t)
	lost, ok := r.talks.Acquire(&c.claim, r.o.Owner(t.Src))
	if lost != nil {
		r.end(lost.Value)
	}
	if ok && r.insert(c) != c {
		r.talks.Release(&c.claim)
	}
}

func mappingRecord(m *mapping) memo.Fixed {
	a := &m.pod.Addr
	return memo.Fixed{word(a[:8]), word(a[8:]), isMapping<<32 | uint64(m.pod.Port), m.cookie}
}

func word(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

func addr(hi, lo uint64) (a packet.Addr) {
	binary.BigEndian.PutUint64(a[:8], hi)
	binary.BigEndian.PutUint64(a[8:], lo)
	return a
}
