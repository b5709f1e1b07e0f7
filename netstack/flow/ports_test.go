package flow

import (
	"fmt"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestPortsUsedUp has clients share the ports of one address towards one backend, as those do whose address the backend
// does not see. One of them, or many of them, use up all.
func TestPortsUsedUp(t *testing.T) {
	const capacity = 80000
	reply := tuple(packet.TCP, "172.31.0.11:8080", "10.244.1.1:0")
	begin := func(client string, port int) *Entry {
		e := &Entry{Orig: tuple(packet.TCP, fmt.Sprintf("%s:%d", client, port), "203.0.113.6:80"), Reply: reply, Owner: OwnerOutside, Segment: tcp(packet.SYN)}
		e.Reply.DstPort = uint16(port)
		return e
	}
	answer := func(t *testing.T, table *Table, e *Entry) {
		t.Helper()
		var hit Hit
		table.Lookup(&e.Reply, tcp(packet.SYN|packet.ACK), &hit)
		if !table.Lookup(&e.Orig, tcp(packet.ACK), &hit) || hit.State != Established {
			t.Fatalf("the connection is %v", hit.State)
		}
	}
	for name, c := range map[string]struct {
		attacker func(port int) string
		answered bool // the attackers complete their connections
		want     bool // somebody else gets a port
	}{
		"one client's attempts":       {func(int) string { return "192.0.2.66" }, false, true},
		"one client's connections":    {func(int) string { return "192.0.2.66" }, true, true},
		"attempts from everywhere":    {func(port int) string { return fmt.Sprintf("198.18.%d.%d", port>>8, port&255) }, false, true},
		"connections from everywhere": {func(port int) string { return fmt.Sprintf("198.18.%d.%d", port>>8, port&255) }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			table, _, _ := newTable(t, capacity)
			// Somebody has a connection before.
			friend := begin("198.51.100.7", 40000)
			mustInsert(t, table, friend)
			answer(t, table, friend)
			for port := 512; port <= 65535; port++ {
				if port == 40000 {
					continue
				}
				e := begin(c.attacker(port), port)
				mustInsert(t, table, e)
				if c.answered {
					answer(t, table, e)
				}
			}
			got := 0
			var mine []*Entry
			for i := range 50 {
				e := begin(fmt.Sprintf("198.51.100.%d", 100+i), 33333)
				if _, res := table.Insert(e); res == Inserted {
					got++
					answer(t, table, e)
					mine = append(mine, e)
				}
			}
			if want := map[bool]int{true: 50}[c.want]; got != want {
				t.Errorf("%d of 50 new clients got a port, want %d; %+v", got, want, table.Stats())
			}
			if st := table.Stats(); c.want && st.Evicted.ForPort != 50 {
				t.Errorf("%+v", st)
			}
			// The attackers go on, and take nobody's connection.
			for port := 512; port < 20000; port++ {
				table.Insert(begin(c.attacker(port), port))
			}
			var hit Hit
			for _, e := range append(mine, friend) {
				if !table.Peek(&e.Orig, &hit) || hit.State != Established {
					t.Fatalf("the connection of %v is gone, %+v", e.Orig.Src, table.Stats())
				}
			}
		})
	}
}

// Pods of one node that leave from one egress address are in one /64, and so one client. One of them uses up the ports
// towards a server, and the others get some all the same.
func TestPortsUsedUpByPod(t *testing.T) {
	table, _, _ := newTable(t, 4096)
	begin := func(pod, port int) *Entry {
		e := &Entry{
			Orig: tuple(packet.TCP, fmt.Sprintf("[fd00:10:244:1::%x]:%d", pod, port), "[2001:db8:c::1]:443"), Reply: tuple(packet.TCP, "[2001:db8:c::1]:443", "[2001:db8:1b::50]:0"),
			Owner: uint64(100 + pod), Segment: tcp(packet.SYN),
		}
		e.Reply.DstPort = uint16(port)
		return e
	}
	answer := func(e *Entry) {
		t.Helper()
		var hit Hit
		table.Lookup(&e.Reply, tcp(packet.SYN|packet.ACK), &hit)
		if !table.Lookup(&e.Orig, tcp(packet.ACK), &hit) || hit.State != Established {
			t.Fatalf("the connection is %v", hit.State)
		}
	}
	// Another of these replaces such a port, and no other does.
	for port := firstPrivileged; port <= lastPrivileged; port++ {
		e := begin(1, port)
		mustInsert(t, table, e)
		answer(e)
	}
	for pod := 2; pod < 10; pod++ {
		e := begin(pod, 700)
		mustInsert(t, table, e)
		answer(e)
	}
	if _, res := table.Insert(begin(1, 700)); res != Exists && res != NoPort {
		t.Errorf("the pod with the most takes a port from another: %v", res)
	}
}
