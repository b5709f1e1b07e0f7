// Package flowtest writes flow memory as agents of earlier versions left it, for tests of upgrades.
package flowtest

import (
	"encoding/binary"
	"math/bits"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// The layout and the sums of version 1 are repeated here, so that they do not change with package flow.
const (
	headerSize  = 4096
	slotSize    = 128
	magic       = 0x776f6c66_70617431
	seed        = 0x5eed
	established = 3
	replied     = 9
)

// SizeV1 returns the number of bytes of version 1 memory for capacity flows.
func SizeV1(capacity int) int { return headerSize + capacity*slotSize }

// WriteV1 writes the table's flows to mem, which has SizeV1(capacity) zero bytes, as an agent of version 1 would have
// left them. It returns how many it wrote: flows that have ended or were never answered are left out.
func WriteV1(mem []byte, capacity int, table *flow.Table) int {
	n := 0
	now := flow.BootClock()
	table.Range(func(e *flow.Entry, i flow.Info) bool {
		if n == capacity {
			return false
		}
		if i.State == flow.Established || i.State == flow.Replied {
			state := uint64(established)
			if i.State == flow.Replied {
				state = replied
			}
			writeSlot(mem[headerSize+n*slotSize:], e, state, now-i.Age, now-i.Idle)
			n++
		}
		return true
	})
	le := binary.LittleEndian
	le.PutUint32(mem[8:], 1)
	le.PutUint32(mem[12:], slotSize)
	le.PutUint64(mem[16:], uint64(capacity))
	le.PutUint64(mem[24:], seed)
	le.PutUint64(mem[32:], uint64(n))
	le.PutUint64(mem, magic)
	return n
}

func writeSlot(b []byte, e *flow.Entry, state uint64, created, seen uint32) {
	le := binary.LittleEndian
	const seq = 2 // in use for the first time
	le.PutUint32(b, seq)
	putTuple(b[8:], &e.Orig)
	putTuple(b[48:], &e.Reply)
	meta := uint64(e.Orig.Proto) | uint64(e.Kind)<<8 | 1<<16 | uint64(created)<<32
	if e.Reply != e.Orig.Reverse() {
		meta |= 1 << 17
	}
	le.PutUint64(b[88:], meta)
	le.PutUint64(b[96:], e.Backend)
	le.PutUint64(b[104:], e.Via)
	le.PutUint64(b[112:], seq<<8|state)
	le.PutUint32(b[120:], seen)
	h := mum(hash(b[8:], e.Orig.Proto)^0x8ebc6af09c88c6e3, hash(b[48:], e.Orig.Proto)^mix3)
	h = mum(h^meta, seed^mix0) ^ mum(e.Backend^seed^mix1, e.Via^seed^0x8ebc6af09c88c6e3)
	le.PutUint32(b[4:], uint32(h^h>>32))
}

func putTuple(b []byte, t *packet.Tuple) {
	copy(b, t.Src[:])
	copy(b[16:], t.Dst[:])
	binary.LittleEndian.PutUint16(b[32:], t.SrcPort)
	binary.LittleEndian.PutUint16(b[34:], t.DstPort)
	binary.LittleEndian.PutUint32(b[36:], t.Space)
}

const (
	mix0 = 0xa0761d6478bd642f
	mix1 = 0xe7037ed1a0b428db
	mix3 = 0x589965cc75374cc3
)

func mum(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hash returns the hash of a tuple's words and its protocol.
func hash(b []byte, proto packet.Proto) uint64 {
	w := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	x := mum(w(0)^seed, w(1)^seed^mix0)
	y := mum(w(2)^seed^mix1, w(3)^seed^0x8ebc6af09c88c6e3)
	z := mum(w(4)^seed^mix3, uint64(proto)^seed^mix1)
	return mum(x^mix0^bits.RotateLeft64(z, 32), y^z^seed)
}
