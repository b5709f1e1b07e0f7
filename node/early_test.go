package node

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
)

// What peers send while the node starts is delivered at its end, in order, before what they send later.
func TestEarly(t *testing.T) {
	var mu sync.Mutex
	heard := map[uint64][]string{}
	e := early{to: func(peer uint64, packets [][]byte) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range packets {
			heard[peer] = append(heard[peer], string(p))
		}
	}}
	const peers, each = 3, 1000
	var half, all sync.WaitGroup
	for peer := range uint64(peers) {
		half.Add(1)
		all.Go(func() {
			buf := make([]byte, 0, 16) // borrowed, and used again
			for i := range each {
				buf = fmt.Appendf(buf[:0], "%d", i)
				e.take(peer, [][]byte{buf})
				if i == each/2 {
					half.Done()
				}
			}
		})
	}
	half.Wait()
	e.end()
	all.Wait()
	for peer := range uint64(peers) {
		if len(heard[peer]) != each {
			t.Errorf("%d packets of peer %d, want %d", len(heard[peer]), peer, each)
		}
		for i, s := range heard[peer] {
			if s != fmt.Sprint(i) {
				t.Fatalf("packet %d of peer %d is %s", i, peer, s)
			}
		}
	}
	if e.kept != nil {
		t.Error("something is kept still")
	}
}

// What does not fit is lost, and the rest is whole.
func TestEarlyIsBounded(t *testing.T) {
	for _, size := range []int{1, 1400} {
		n := 0
		e := early{to: func(_ uint64, packets [][]byte) {
			for _, p := range packets {
				if n += len(p); len(p) != size {
					t.Fatalf("a packet of %d bytes", len(p))
				}
			}
		}}
		packet := bytes.Repeat([]byte{1}, size)
		fit := mostEarly / (size + earlyCost)
		for range fit + 100 {
			e.take(1, [][]byte{packet})
		}
		e.end()
		if n != fit*size {
			t.Errorf("%d bytes are delivered, want %d", n, fit*size)
		}
		e.take(1, [][]byte{packet})
		if n != (fit+1)*size {
			t.Errorf("%d bytes are delivered in the end, want %d", n, (fit+1)*size)
		}
	}
}

// Peers that say more than there is room for leave others room, and each is heard from its beginning.
func TestEarlyIsSharedOut(t *testing.T) {
	heard := map[uint64][]int{}
	e := early{to: func(peer uint64, packets [][]byte) {
		for _, p := range packets {
			heard[peer] = append(heard[peer], int(binary.BigEndian.Uint32(p)))
		}
	}}
	say := func(peer uint64, from, to, size int) {
		for i := from; i < to; i++ {
			p := make([]byte, size)
			binary.BigEndian.PutUint32(p, uint32(i))
			e.take(peer, [][]byte{p})
		}
	}
	fit := mostEarly / (1400 + earlyCost)
	say(1, 0, 2*fit, 1400)
	say(2, 0, fit/10, 1400)
	say(3, 0, 2*fit, 1400)
	say(1, 2*fit, 3*fit, 1400)
	say(4, 0, 5, 40)
	if e.bytes > mostEarly {
		t.Errorf("%d bytes are kept", e.bytes)
	}
	e.end()
	for peer, want := range map[uint64]int{1: fit * 45 / 100, 2: fit / 10, 3: fit * 45 / 100, 4: 5} {
		for i, number := range heard[peer] {
			if number != i {
				t.Fatalf("packet %d of peer %d is %d", i, peer, number)
			}
		}
		if n := len(heard[peer]); n < want-2 || n > want+2 {
			t.Errorf("%d packets of peer %d are heard, want %d", n, peer, want)
		}
	}
}
