package flow

import (
	"sync/atomic"
	"unsafe"

	"tapestry.dev/tapestry/netstack/packet"
)

// slotV1 is a slot of version 1, whose memory has only slots after the header. The words up to via were constant.
type slotV1 struct {
	seq     atomic.Uint32
	sum     atomic.Uint32
	tuple   [2]words
	meta    atomic.Uint64 // proto, kind << 8, judged << 16, translated << 17 if judged, created << 32
	backend atomic.Uint64
	via     atomic.Uint64
	live    atomic.Uint64 // as in version 3
	seen    atomic.Uint32
	_       uint32
}

// v1 reads memory of version 1.
type v1 struct {
	head  *header
	slots []slotV1
	owner func(*Entry) uint64
}

func openV1(mem []byte, h *header, capacity int, owner func(*Entry) uint64) records {
	const size = unsafe.Sizeof(slotV1{})
	if uintptr(h.slotSize.Load()) != size || len(mem) < headerSize+capacity*int(size) {
		return nil
	}
	return &v1{head: h, slots: unsafe.Slice((*slotV1)(unsafe.Pointer(&mem[headerSize])), capacity), owner: owner}
}

func (v *v1) header() *header { return v.head }

func (v *v1) read(i uint32, h *hasher, r *record) (state State, seen uint32, whole, empty bool) {
	s := &v.slots[i]
	seq, l := s.seq.Load(), live(s.live.Load())
	if empty = seq&3 == 0 && l == 0; empty {
		return 0, 0, false, true
	}
	meta := s.meta.Load()
	*r = record{backend: s.backend.Load(), via: s.via.Load(), created: uint32(meta >> 32)}
	for d := range s.tuple {
		s.tuple[d].load(&r.tuple[d], packet.Proto(meta))
	}
	sum := mum(h.hash(&r.tuple[Original])^mix2, h.hash(&r.tuple[Reply])^mix3)
	sum = mum(sum^meta, h.seed0) ^ mum(r.backend^h.seed1, r.via^h.seed2)
	whole = seq&3 == 2 && l.of(seq) && l.state() != free && l.state() < Closed && uint32(sum^sum>>32) == s.sum.Load()
	r.meta = makeMeta(&r.tuple[Original], &r.tuple[Reply], uint8(meta>>8))
	if whole && v.owner != nil {
		e := r.entry()
		r.owner = v.owner(&e)
	}
	return l.state(), s.seen.Load(), whole, false
}
