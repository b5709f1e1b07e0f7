package services

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// All constants here are part of the choice of backends, which must be the same on all nodes, after a restart and
// across versions. Changing one moves running connections whose flow entry was lost.
const (
	mixA = 0x9e3779b97f4a7c15
	mixB = 0xbf58476d1ce4e5b9
	mixC = 0x94d049bb133111eb
	mixD = 0xd6e8feb86659fd93

	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// mix folds the 128-bit product of a and b.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// finish makes every bit of the result depend on every bit of x (the finalizer of SplitMix64).
func finish(x uint64) uint64 {
	x ^= x >> 30
	x *= mixB
	x ^= x >> 27
	x *= mixC
	return x ^ x>>31
}

// flowHash returns the hash that decides the backend of a flow. It covers the client's address, the two ports and the
// protocol. It leaves out the frontend's address, so that a client keeps its backend when an outside load balancer
// moves it to another node.
func flowHash(t *packet.Tuple) uint64 {
	ports := uint64(t.SrcPort)<<32 | uint64(t.DstPort)<<16 | uint64(t.Proto)
	return mix(clientHash(&t.Src)^ports, mixC)
}

// clientHash takes the place of flowHash under ClientIP session affinity. It covers only the client's address.
func clientHash(a *packet.Addr) uint64 {
	hi := binary.LittleEndian.Uint64(a[:8])
	lo := binary.LittleEndian.Uint64(a[8:])
	return mix(mix(hi^mixA, mixB)^lo, mixD)
}

// score is the weight of a backend for a hash; the highest wins (rendezvous hashing).
func score(h, id uint64) uint64 {
	return mix(mix(h^id, mixA)^id, mixB)
}

// A backend's id has two parts: the upper says who serves, the lower says for which Service port. The upper part alone
// shows whether the pod still lives when no Service leads to it any longer.
const (
	podShift = 24
	podMask  = ^uint64(1<<podShift - 1)
)

// podID returns the upper part of the ids of all backends that the server (id, addr) has. The lower part is zero.
func podID[S string | []byte](id S, addr netip.Addr) uint64 {
	h := hashString(fnvOffset, id)
	b := addr.As16()
	for _, c := range b {
		h = (h ^ uint64(c)) * fnvPrime
	}
	if h = finish(h) & podMask; h == 0 {
		h = 1 << podShift // 0 stands for "no backend" in packet.Choice
	}
	return h
}

// addrID returns the podID of a server that is known by its address alone (Endpoint.ID).
func addrID(at packet.Addr) uint64 {
	var text [len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]byte
	addr := at.Netip()
	return podID(addr.AppendTo(text[:0]), addr)
}

// portID returns the hash of a Service port, for the lower part of an id. backendID adds the target port.
func portID(s *Service, p *Port) uint64 {
	h := hashString(fnvOffset, s.Namespace)
	h = hashString(h, s.Name)
	h = hashString(h, p.Name)
	return (h ^ uint64(p.Protocol)) * fnvPrime
}

// backendID returns the stable identity of one backend. It is the same on every node and after a restart. Another pod
// at the same address, another Service port or another target port has another id.
func backendID(pod, port uint64, target uint16) uint64 {
	return pod | finish(port^uint64(target)*mixA)&^podMask
}

// hashString continues an FNV-1a hash with s and an end mark, so that ("a", "bc") and ("ab", "c") differ.
func hashString[S string | []byte](h uint64, s S) uint64 {
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return (h ^ 0xff) * fnvPrime
}

// rendezvousMax is the size of the largest set in which every backend is weighed at each choice (rendezvous hashing).
// This moves the fewest flows and needs no memory. At this size it costs about as much as the cache misses of a Maglev
// table.
const rendezvousMax = 16

// maglevMax is the size of the largest set that gets a Maglev table. Such a table is made anew when one backend
// changes, and of 100,000 backends it would take 64 MB and seconds; a larger set gets a tree.
const maglevMax = 1000

// maglevPrimes are the possible sizes of a Maglev table.
var maglevPrimes = []uint32{2039, 4093, 8191, 16381, 32749, 65521}

// maglevLoad is the least number of slots per backend. The shares of backends differ by about 1/maglevLoad at most
// (Eisenbud et al., "Maglev", NSDI 2016, 3.4).
const maglevLoad = 64

func maglevSize(n int) uint32 {
	for _, m := range maglevPrimes {
		if uint64(m) >= uint64(n)*maglevLoad {
			return m
		}
	}
	return maglevPrimes[len(maglevPrimes)-1]
}

// walk is a backend's position in its own permutation of the slots.
type walk struct{ at, skip uint32 }

func (w *walk) step(m uint32) {
	if w.at += w.skip; w.at >= m {
		w.at -= m
	}
}

// fillMaglev fills slots with indexes into bs. The length of slots is a prime greater than len(bs); bs is sorted by
// id. Only the upper part of the ids counts, so that ports with the same pods have the same table.
func fillMaglev(slots []uint32, bs []backend) {
	const empty = ^uint32(0)
	for i := range slots {
		slots[i] = empty
	}
	m := uint32(len(slots))
	walks := make([]walk, len(bs))
	for i := range bs {
		walks[i] = walk{
			at:   uint32(finish(bs[i].id&podMask^mixA) % uint64(m)),
			skip: uint32(finish(bs[i].id&podMask^mixD)%uint64(m-1)) + 1,
		}
	}
	for left := m; left > 0; {
		for i := range walks {
			w := &walks[i]
			for slots[w.at] != empty {
				w.step(m)
			}
			slots[w.at] = uint32(i)
			w.step(m)
			if left--; left == 0 {
				return
			}
		}
	}
}
