package node

import (
	"bytes"
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
	bytesHeard := 0
	e := early{to: func(_ uint64, packets [][]byte) {
		for _, p := range packets {
			bytesHeard += len(p)
		}
	}}
	packet := bytes.Repeat([]byte{1}, 1400)
	for range mostEarly/len(packet) + 100 {
		e.take(1, [][]byte{packet})
	}
	e.end()
	if want := mostEarly / len(packet) * len(packet); bytesHeard != want {
		t.Errorf("%d bytes are delivered, want %d", bytesHeard, want)
	}
	e.take(1, [][]byte{packet})
	if want := (mostEarly/len(packet) + 1) * len(packet); bytesHeard != want {
		t.Errorf("%d bytes are delivered in the end, want %d", bytesHeard, want)
	}
}
