package handover

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

var (
	ours, theirs = netip.MustParseAddr("203.0.113.50"), netip.MustParseAddr("203.0.113.51")
	here, there  = exit.Gateway{Here: true}, exit.Gateway{Peer: 7}
)

// table returns a table in which ours leaves by g, and theirs by another node.
func table(g exit.Gateway) *exit.Table {
	return exit.New(exit.Config{
		Pods:     exit.Pods{Addresses: []netip.Addr{ours, theirs}},
		Gateways: map[netip.Addr]exit.Gateway{ours: g, theirs: there},
	})
}

// flows is a flow table, and what a Handover over it tells.
type flows struct {
	t     *testing.T
	table *flow.Table

	mu    sync.Mutex // guards what follows
	exits *exit.Table
	told  []uint16 // source ports
	at    []time.Time
}

// take returns what was told and when, and forgets it; from now on the table is exits.
func (f *flows) take(exits *exit.Table) (told []uint16, at []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	told, at = f.told, f.at
	f.told, f.at, f.exits = nil, nil, exits
	return told, at
}

func newFlows(t *testing.T) *flows {
	f := &flows{t: t, exits: table(here)}
	var err error
	if f.table, err = flow.Open(make([]byte, flow.Size(1<<14)), flow.Options{Clock: func() uint32 { return 1000 }}); err != nil {
		t.Fatal(err)
	}
	return f
}

// add adds a flow from a port that leaves from src, in a state, and begins in a space. It is one of TCP unless the
// state is Other.
func (f *flows) add(port uint16, owner uint64, src netip.Addr, state flow.State, space uint32) {
	f.t.Helper()
	orig := packet.Tuple{
		Src: packet.AddrFrom(netip.MustParseAddr("10.244.1.10")), Dst: packet.AddrFrom(netip.MustParseAddr("198.51.100.1")),
		SrcPort: port, DstPort: 443, Proto: packet.TCP, Space: space,
	}
	if state == flow.Other {
		orig.Proto = 253 // for experiments (RFC 3692)
	}
	reply := orig.Reverse()
	reply.Dst, reply.Space = packet.AddrFrom(src), 1
	if _, res := f.table.Insert(&flow.Entry{Orig: orig, Reply: reply, Owner: owner, Begins: state}); res != flow.Inserted {
		f.t.Fatal(res)
	}
}

func (f *flows) run(ctx context.Context) *Handover {
	h := New(Options{
		Flows: f.table, Now: time.Now,
		Exits: func() *exit.Table {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.exits
		},
		Tell: func(orig *packet.Tuple) bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.told, f.at = append(f.told, orig.SrcPort), append(f.at, time.Now())
			return orig.Proto == packet.TCP
		},
	})
	go h.Run(ctx)
	return h
}

// What is told is told again for two seconds, and when the gateway changes. The flows of other addresses, those of
// other nodes, those that nobody has answered and closed ones are not.
func TestRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlows(t)
		f.add(1, 3, ours, flow.Established, 0)
		f.add(2, 3, theirs, flow.Established, 0)
		f.add(3, 3, ours, flow.SynSent, 0)
		f.add(4, 3, ours, flow.TimeWait, 0)
		f.add(5, 3, ours, flow.Reset, 0)
		f.add(6, 3, ours, flow.Established, 9)
		f.add(7, 3, ours, flow.FinOriginal, 0)
		ctx, cancel := context.WithCancel(t.Context())
		h := f.run(ctx)
		time.Sleep(time.Minute)
		synctest.Wait()
		told, at := f.take(table(there))
		if want := []uint16{1, 2, 7}; len(told) != 9*3 || !slices.Equal(told[:3], want) || !slices.Equal(told[24:], want) || at[26].Sub(at[0]) != settled {
			t.Errorf("the first table: told %v in %s, want nine times %v in %s", told, at[len(at)-1].Sub(at[0]), want, settled)
		}
		for _, c := range []struct {
			want []uint16
			next *exit.Table
		}{{[]uint16{1, 7}, table(there)}, {nil, table(exit.Gateway{})}, {nil, nil}, {nil, table(here)}, {[]uint16{1, 2, 7}, nil}} {
			h.Changed()
			time.Sleep(time.Minute)
			synctest.Wait()
			if told, _ := f.take(c.next); len(told) != 9*len(c.want) || !slices.Equal(told[:len(c.want)], c.want) {
				t.Errorf("told %v, want nine times %v", told, c.want)
			}
		}
		cancel()
		synctest.Wait()
	})
}

// A pod with a thousand flows is told at its pace, and does not keep those of others waiting.
func TestShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlows(t)
		for port := range uint16(1000) {
			f.add(port, 3, ours, flow.Established, 0)
		}
		f.add(2000, 4, ours, flow.Established, 0)
		f.add(2001, 4, ours, flow.Established, 0)
		ctx, cancel := context.WithCancel(t.Context())
		f.run(ctx)
		time.Sleep(time.Minute)
		synctest.Wait()
		told, at := f.take(nil)
		if i := slices.Index(told, 2001); i != 3 {
			t.Errorf("the second flow of the pod with two is told as number %d, want 3", i)
		}
		if took := at[1001].Sub(at[0]); took != 10*pause {
			t.Errorf("1002 flows were told in %s, want %s", took, 10*pause)
		}
		cancel()
		synctest.Wait()
	})
}

// timesOf returns when a port was told, since the first of all.
func timesOf(port uint16, told []uint16, at []time.Time) (list []time.Duration) {
	for i, p := range told {
		if p == port {
			list = append(list, at[i].Sub(at[0]))
		}
	}
	return list
}

// A pod with very many flows does not take the repetitions from others, nor the first word when another address moves
// meanwhile, and all of its own are told, too.
func TestHog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, one, other = 15000, 40000, 40001
		f := newFlows(t)
		for port := range uint16(many) {
			f.add(port, 3, ours, flow.Established, 0)
		}
		f.add(one, 4, ours, flow.Established, 0)
		f.add(other, 5, theirs, flow.Established, 0)
		f.exits = exit.New(exit.Config{Pods: exit.Pods{Addresses: []netip.Addr{ours, theirs}}, Gateways: map[netip.Addr]exit.Gateway{ours: there}})
		ctx, cancel := context.WithCancel(t.Context())
		h := f.run(ctx)
		time.Sleep(1105 * time.Millisecond)
		synctest.Wait()
		f.mu.Lock()
		f.exits = table(there)
		f.mu.Unlock()
		h.Changed()
		time.Sleep(time.Minute)
		synctest.Wait()
		told, at := f.take(nil)
		if first := timesOf(other, told, at); len(first) < 9 || first[0] != 1105*time.Millisecond {
			t.Errorf("the flow of the address that moves later is told after %v", first)
		}
		times := timesOf(one, told, at)
		for i, at := range times[:min(9, len(times))] {
			if late := at - time.Duration(i)*again; late > pause {
				t.Errorf("repetition %d of the flow of the pod with one comes after %s", i, at)
			}
		}
		if last := times[len(times)-1]; len(times) < 10 || last < 1105*time.Millisecond+settled {
			t.Errorf("the flow of the pod with one is told after %v", times)
		}
		count := map[uint16]int{}
		for _, port := range told {
			count[port]++
		}
		for port := range uint16(many) {
			if count[port] == 0 {
				t.Fatalf("flow %d of the pod with many is not told", port)
			}
		}
		if rate := float64(len(told)) / at[len(at)-1].Sub(at[0]).Seconds(); rate > 10500 {
			t.Errorf("%.0f flows are told in a second", rate)
		}
		cancel()
		synctest.Wait()
	})
}

// While the gateway of another address changes without a pause, each flow of a pod with very many is told, and the one
// of another pod is repeated.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, one, flaps = 5000, 40000, 12
		f := newFlows(t)
		for port := range uint16(many) {
			f.add(port, 3, ours, flow.Established, 0)
		}
		f.add(one, 4, ours, flow.Established, 0)
		f.add(one+1, 5, theirs, flow.Established, 0)
		ctx, cancel := context.WithCancel(t.Context())
		h := f.run(ctx)
		count := map[uint16]int{}
		for i := range flaps {
			time.Sleep(200 * time.Millisecond)
			synctest.Wait()
			next := exit.New(exit.Config{
				Pods:     exit.Pods{Addresses: []netip.Addr{ours, theirs}},
				Gateways: map[netip.Addr]exit.Gateway{ours: here, theirs: {Peer: uint64(8 + i%2)}},
			})
			told, _ := f.take(next)
			for _, port := range told {
				count[port]++
			}
			h.Changed()
		}
		for port := range uint16(many) {
			if n := count[port]; n < 3 {
				t.Fatalf("flow %d of the pod with many is told %d times", port, n)
			}
		}
		if count[one] < flaps || count[one+1] < flaps {
			t.Errorf("the flows of the pods with one are told %d and %d times, want %d", count[one], count[one+1], flaps)
		}
		cancel()
		synctest.Wait()
	})
}

// However often gateways change, a Handover looks for the flows in a quarter of its time, and tells them in the rest.
func TestRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const took, changes = 40 * time.Millisecond, 1000
		f := newFlows(t)
		f.add(1, 3, ours, flow.Established, 0)
		ctx, cancel := context.WithCancel(t.Context())
		looked := 0 // the Handover's alone
		h := New(Options{
			Flows: f.table, Now: time.Now, Tell: func(orig *packet.Tuple) bool { f.told = append(f.told, orig.SrcPort); return true },
			Exits: func() *exit.Table {
				looked++
				time.Sleep(took)
				return table(exit.Gateway{Peer: uint64(10 + looked)})
			},
		})
		ended := make(chan struct{})
		go func() { defer close(ended); h.Run(ctx) }()
		for range changes {
			h.Changed()
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		cancel()
		<-ended
		if most := int(changes * time.Millisecond / ((1 + restFactor) * took)); looked < most || looked > most+1 || len(f.told) < looked-1 {
			t.Errorf("looked %d times, want %d, and told %d times", looked, most, len(f.told))
		}
	})
}

// Flows of which there is nothing to tell are moved ten times as fast.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlows(t)
		for port := range uint16(15000) {
			f.add(port, 3, ours, flow.Other, 0)
		}
		ctx, cancel := context.WithCancel(t.Context())
		f.run(ctx)
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, at := f.take(nil); at[14999].Sub(at[0]) > 150*time.Millisecond {
			t.Errorf("15,000 flows are moved in %s", at[14999].Sub(at[0]))
		}
		cancel()
		synctest.Wait()
	})
}
