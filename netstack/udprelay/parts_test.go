package udprelay

import (
	"container/heap"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

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
