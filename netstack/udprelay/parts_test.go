package udprelay

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
)

func bytesAt(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

func TestFate(t *testing.T) {
	for _, c := range []struct {
		errno       unix.Errno
		alone, many fate
	}{
		{0, sent, sent},
		{unix.ECONNREFUSED, failed, failed},
		{unix.EAGAIN, busy, busy},
		{unix.ENOBUFS, busy, busy},
		{unix.EMSGSIZE, tooBig, notWhole},
		{unix.EINVAL, failed, notWhole},
		{unix.EIO, failed, notWhole},
		{unix.EPERM, failed, failed},
		{unix.ENETUNREACH, failed, failed},
	} {
		if a, m := fateOf(c.errno, false), fateOf(c.errno, true); a != c.alone || m != c.many {
			t.Errorf("%v: %d and, of a superframe, %d; want %d and %d", c.errno, a, m, c.alone, c.many)
		}
	}
}

func TestRunJoins(t *testing.T) {
	const room = 60000
	one, other := new(conversation), new(conversation)
	for name, c := range map[string]struct {
		r       run
		n, size int
		want    bool
	}{
		"the first":              {run{}, 100, 100, false},
		"an equal one":           {run{of: one, n: 100, size: 100}, 100, 100, true},
		"a shorter one":          {run{of: one, n: 200, size: 100}, 1, 1, true},
		"after a shorter one":    {run{of: one, n: 250, size: 100}, 100, 100, false},
		"as short as the last":   {run{of: one, n: 250, size: 100}, 50, 50, false},
		"a longer one":           {run{of: one, n: 100, size: 100}, 101, 101, false},
		"an empty one":           {run{of: one, n: 100, size: 100}, 0, 0, false},
		"after an empty one":     {run{of: one, n: 0, size: 0}, 0, 0, false},
		"several":                {run{of: one, n: 100, size: 100}, 250, 100, true},
		"several of other size":  {run{of: one, n: 100, size: 100}, 90, 50, false},
		"the 64th":               {run{of: one, n: 6300, size: 100}, 100, 100, true},
		"the 65th":               {run{of: one, n: 6400, size: 100}, 100, 100, false},
		"more than fits":         {run{of: one, n: 59000, size: 1000}, 1001, 1000, false},
		"as much as fits":        {run{of: one, n: 59000, size: 1000}, 1000, 1000, true},
		"several beyond the max": {run{of: one, n: 6000, size: 100}, 500, 100, false},
	} {
		if got := c.r.joins(&run{of: one, n: c.n, size: c.size}, room); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if r := (run{of: one, n: 100, size: 100}); r.joins(&run{of: other, n: 100, size: 100}, room) {
		t.Error("a datagram joined those of another conversation")
	} else if r.joins(&run{of: one, n: 100, size: 100, came: dgram.Head{Class: 3}}, room) {
		t.Error("a datagram that met congestion joined one that did not")
	}
}

// The table holds the same conversations as a map after the same changes.
func TestTableTwin(t *testing.T) {
	tab, twin := newTable(4), map[packet.Tuple]*conversation{} // small, so that chains are long
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		k := packet.Tuple{Proto: packet.UDP, SrcPort: uint16(rnd.IntN(40))}
		if tab.find(&k) != twin[k] {
			t.Fatalf("port %d: another conversation", k.SrcPort)
		}
		if c := twin[k]; c != nil {
			tab.remove(c)
			delete(twin, k)
		} else {
			c = &conversation{tuple: k}
			tab.add(c)
			twin[k] = c
		}
	}
	for k, c := range twin {
		if tab.find(&k) != c {
			t.Errorf("port %d is lost", k.SrcPort)
		}
	}
}

// oldest always returns the conversation whose last use is longest ago, although the heap is not told of uses.
func TestOldest(t *testing.T) {
	var o order
	all := map[*conversation]bool{}
	rnd := rand.New(rand.NewPCG(3, 4))
	for now := range int64(5000) {
		switch c := o.oldest(); {
		case len(all) < 50:
			c := &conversation{known: now}
			c.used.Store(now)
			heap.Push(&o, c)
			all[c] = true
		case rnd.IntN(4) == 0:
			for other := range all {
				if other.used.Load() < c.used.Load() {
					t.Fatalf("of %d, but there is one of %d", c.used.Load(), other.used.Load())
				}
			}
			heap.Remove(&o, c.place)
			delete(all, c)
		default:
			for c := range all {
				c.used.Store(now)
				break
			}
		}
	}
}

func TestHeader(t *testing.T) {
	for _, f := range families {
		out := packet.Tuple{Proto: packet.UDP, DstPort: 53}
		pod := netip.MustParseAddrPort(f.pod)
		out.Src, out.SrcPort, out.Dst = packet.AddrFrom(pod.Addr()), pod.Port(), packet.AddrFrom(netip.MustParseAddr(f.outside))
		h := newHeader(&out)
		for _, c := range []struct{ n, size int }{{0, 0}, {1, 1}, {1000, 1000}, {3500, 1000}, {maxIP - h.len(), 1400}} {
			ip := make([]byte, h.len()+c.n)
			for i := range ip {
				ip[i] = 0xa5 // leftovers of earlier packets
			}
			vnet := h.put(ip, c.size, dgram.Head{})
			var p packet.Packet
			fault := p.ParseFrame(asFrame(ip, vnet))
			if fault != packet.Good || p.Tuple != out.Reverse() || len(payload(&p)) != c.n || p.VNet != vnet {
				t.Fatalf("%s, %+v: fault %d, %+v, %+v; put said %+v", f.name, c, fault, p.Tuple, p.VNet, vnet)
			}
			if super := c.n > c.size; super != (p.VNet.GSOType == packet.GSOUDPL4) || super && int(p.VNet.GSOSize) != c.size {
				t.Errorf("%s, %+v: %+v", f.name, c, p.VNet)
			}
			var cut packet.Segmenter
			cut.Reset(&p, nil)
			for b := make([]byte, cut.Size()); ; {
				n := cut.Next(b)
				if n == 0 {
					break
				}
				var one packet.Packet
				if one.ParseIP(b[:n]) != packet.Good || !one.ChecksumOK() {
					t.Fatalf("%s, %+v: a segment's checksum is wrong", f.name, c)
				}
			}
		}
		var p packet.Packet
		if p.ParseIP(h.quote()) != packet.Good || p.Tuple != out {
			t.Errorf("%s: the quote is of %+v", f.name, p.Tuple)
		}
	}
}
