package flow

import (
	"sync/atomic"
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

// slotV2 is a slot of version 2. The tuples, meta, backend and via were constant. Version 2 knew nothing of the streams
// of a connection.
type slotV2 struct {
	seq     atomic.Uint32
	seen    atomic.Uint32
	tuple   [2]words
	meta    uint32 // as in version 3
	packets [2]uint16
	bytes   [2]uint32
	backend uint64
	via     uint64
	live    atomic.Uint64 // as in version 3
}

// ledgerV2 is a ledger of version 2. The words up to spare were constant.
type ledgerV2 struct {
	sum, created          uint32
	owner, cluster, spare uint64 // spare: always 0
	policy                uint64 // as in version 3
	bytes                 [2]uint64
	packets               [2]uint32 // in units of packetsV2
}

const packetsV2 = 1 << 15

// v2 reads memory of version 2: the header, the slots, and a ledger for each.
type v2 struct {
	head    *header
	slots   []slotV2
	ledgers []ledgerV2
}

func openV2(mem []byte, h *header, capacity int) records {
	const size, ledger = unsafe.Sizeof(slotV2{}), unsafe.Sizeof(ledgerV2{})
	if uintptr(h.slotSize.Load()) != size || len(mem) < headerSize+capacity*int(size+ledger) {
		return nil
	}
	return &v2{
		head:    h,
		slots:   unsafe.Slice((*slotV2)(unsafe.Pointer(&mem[headerSize])), capacity),
		ledgers: unsafe.Slice((*ledgerV2)(unsafe.Pointer(&mem[headerSize+capacity*int(size)])), capacity),
	}
}

func (v *v2) header() *header { return v.head }

func (v *v2) read(i uint32, h *hasher, r *record) (state State, seen uint32, whole, empty bool) {
	s, g := &v.slots[i], &v.ledgers[i]
	seq, l := s.seq.Load(), live(s.live.Load())
	if empty = seq&3 == 0 && l == 0; empty {
		return 0, 0, false, true
	}
	*r = record{
		meta: s.meta, created: g.created, backend: s.backend, via: s.via,
		owner: g.owner, cluster: g.cluster, policy: live(g.policy).checked(),
	}
	for d := range s.tuple {
		s.tuple[d].load(&r.tuple[d], packet.Proto(r.meta))
		r.counts[d] = Count{
			Bytes:   g.bytes[d] + uint64(s.bytes[d]),
			Packets: uint64(g.packets[d])*packetsV2 + uint64(s.packets[d]),
		}
	}
	sum := mum(h.hash(&r.tuple[Original])^mix2, h.hash(&r.tuple[Reply])^mix3)
	sum = mum(sum^uint64(r.meta)^uint64(r.created)<<32, h.seed0) ^ mum(r.backend^h.seed1, r.via^h.seed2)
	sum = mum(sum^r.owner, h.seed3) ^ mum(r.cluster^h.seed1, g.spare^h.seed0)
	whole = seq&3 == 2 && l.of(seq) && l.state() != free && l.state() < Closed && uint32(sum^sum>>32) == g.sum
	return l.state(), s.seen.Load(), whole, false
}
