package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// twin does the same as Leases, but slowly, with only the history of each address.
type twin struct {
	world  *world
	owner  map[netip.Addr]string
	left   map[netip.Addr]time.Time // when the address was released last
	leaver map[netip.Addr]string    // who released it last
	last   map[bool]netip.Addr      // by family
}

func (w *twin) pool(r netip.Prefix) (list []netip.Addr) {
	for a := r.Addr(); r.Contains(a); a = a.Next() {
		list = append(list, a)
	}
	list = list[3:]
	if r.Addr().Is4() {
		list = list[:len(list)-1]
	}
	return list
}

func (w *twin) has(container string) (list []netip.Addr) {
	for _, r := range w.world.ranges {
		for _, a := range w.pool(r) {
			if w.owner[a] == container {
				list = append(list, a)
			}
		}
	}
	return list
}

func (w *twin) acquire(container string, want netip.Addr) []netip.Addr {
	if list := w.has(container); list != nil {
		return list
	}
	var list []netip.Addr
	for _, r := range w.world.ranges {
		pool := w.pool(r)
		at := 0 // the index of the first one behind the last
		for i, a := range pool {
			if a == w.last[a.Is4()] {
				at = i + 1
			}
		}
		found := netip.Addr{}
		for i := range pool {
			a := pool[(at+i)%len(pool)]
			since, rested := w.left[a]
			if w.owner[a] == "" && !w.world.inUse[a] && (!rested || w.world.now.Sub(since) >= w.world.rest) {
				found = a
				break
			}
		}
		if r.Contains(want) {
			found = netip.Addr{}
			for _, a := range pool {
				since, rested := w.left[a]
				rests := rested && w.world.now.Sub(since) < w.world.rest && w.leaver[a] != container
				if a == want && w.owner[a] == "" && !w.world.inUse[a] && !rests {
					found = a
				}
			}
		}
		if !found.IsValid() {
			return nil
		}
		list = append(list, found)
	}
	for _, a := range list {
		w.owner[a], w.last[a.Is4()] = container, a
	}
	return list
}

func (w *twin) release(container string) {
	for a, c := range w.owner {
		if c == container {
			delete(w.owner, a)
			w.left[a], w.leaver[a] = w.world.now, container
		}
	}
}

// FuzzTwin runs the same operations on both and compares them, with restarts of one of the two.
func FuzzTwin(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 128, 129, 4, 5, 250, 6, 128, 7})
	f.Add([]byte{0, 128, 0, 128, 0, 240, 240, 240, 255, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14})
	f.Add([]byte{70, 80, 90, 198, 70, 80, 251, 1, 2, 3, 252, 4, 253, 198, 5})
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 200 {
			return
		}
		w := newWorld(t, "10.1.0.0/28", "fd00:1::/124")
		slow := &twin{world: w, owner: map[netip.Addr]string{}, left: map[netip.Addr]time.Time{}, leaver: map[netip.Addr]string{}, last: map[bool]netip.Addr{}}
		for i, op := range ops {
			container := fmt.Sprint("c", op%16)
			want := netip.Addr{}
			switch {
			case op >= 252: // something without a lease takes or leaves an address
				a := netip.AddrFrom4([4]byte{10, 1, 0, 4 + op%4})
				if slow.owner[a] == "" {
					w.inUse[a] = !w.inUse[a]
				}
			case op >= 248:
				w.now = w.now.Add(time.Hour)
			case op >= 232:
				w.now = w.now.Add(time.Duration(op-231) * 7 * time.Second)
			case op >= 224:
				w.open("")
			case op >= 128:
				w.release(container)
				slow.release(container)
			default:
				if op >= 64 {
					want = netip.AddrFrom4([4]byte{10, 1, 0, op / 4 % 16})
				}
				l := Lease{Key: key(container), Namespace: "ns", Name: container}
				if want.IsValid() {
					l.Addrs = []netip.Addr{want}
				}
				got, err := w.Acquire(l)
				expected := slow.acquire(container, want)
				var full *FullError
				if text(got.Addrs) != text(expected) || (err == nil) != (expected != nil) {
					t.Fatalf("operation %d of %v: %s, %v; want %s", i, ops, text(got.Addrs), err, text(expected))
				}
				if err != nil && !want.IsValid() && !errors.As(err, &full) {
					t.Fatalf("operation %d: %v", i, err)
				}
			}
			if held, owned := len(w.Held()), len(slow.owner); 2*held != owned {
				t.Fatalf("operation %d of %v: %d leases are held, %d addresses owned", i, ops, held, owned)
			}
		}
	})
}
