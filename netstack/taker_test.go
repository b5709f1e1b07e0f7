package netstack

import (
	"encoding/binary"
	"testing"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// TestTakerGoes: who is asked to take a connection over is gone before it has accepted. Another one is asked when the
// client sends something next, and when there is none, the client hears of it.
func TestTakerGoes(t *testing.T) {
	next := "node-2 tcp " + asking + " > " + third + " S 6 0 16909060 0"
	for name, c := range map[string]struct {
		next     []string
		state    packet.BackendState
		to, want string
	}{
		"it is gone":                        {[]string{second, third}, packet.BackendGone, "link", next},
		"it ends":                           {[]string{second, third}, packet.BackendDraining, "link", next},
		"it ends and serves":                {[]string{second, third}, packet.BackendServing, "link", givenUp.want},
		"it is gone, and there is no other": {[]string{second}, packet.BackendGone, "a", "tcp " + asked + " > " + asking + " R 1001 0"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRefusing(t, c.next...)
			w.open()
			w.tell(givenUp)
			w.balancer.states[51] = c.state
			w.set()
			w.tell(told{"a", numbered(asking, asked, packet.ACK|packet.PSH, 7, 1001, clock+1, 500), c.to, c.want})
			if c.want == next {
				w.tell(
					told{"node-2", accepting(third, asking, 90000, 70), "a", "tcp " + asked + " > " + asking + " SA 1000 7 500 16909060"},
					told{"a", numbered(asking, asked, packet.ACK, 7, 1001, clock+2, 500), "link", "node-2 tcp " + asking + " > " + third + " A 7 90001 16909062 70"},
				)
			}
			w.silent()
		})
	}
}

// TestTakenOverMeanwhile: the other backend has accepted between two looks of who asks it once more. The connection
// goes on.
func TestTakenOverMeanwhile(t *testing.T) {
	w := newRefusing(t, second)
	w.open()
	w.tell(givenUp)
	var hit flow.Hit
	orig := tupleOf(asking, asked)
	if !w.path.flows.Peek(orig, &hit) || hit.Kind&TakenOver == 0 {
		t.Fatalf("the flow is %+v", hit)
	}
	by := viaOf(packet.Shift{Seq: 89000, Clock: 1})
	if _, ok := w.path.flows.SetVia(hit.Ref, orig, by); !ok { // the SYN is not noted as accepted yet
		t.Fatal("the flow is gone")
	}
	other := w.path.workers.get()
	defer w.path.workers.put(other)
	j := journey{packet: &other.latePacket, orig: *orig, takes: true}
	other.other = picked(51, second)
	if done, ok := other.enterAnew(w.path.snapshot.Load(), &j, w.path.attachments.table.Load().byName["a"]); done || ok {
		t.Errorf("it is asked once more: done %v, ok %v", done, ok)
	}
	if !w.path.flows.Peek(orig, &hit) || hit.Via != by {
		t.Errorf("the flow is %+v", hit)
	}
}

// TestTakenOverAtItsAddress: a process of another node that a Service leads to at the very address and port that the
// client asks takes a connection over. Its packets keep their addresses, and their numbers are shifted all the same,
// but for those that their sender gets back.
func TestTakenOverAtItsAddress(t *testing.T) {
	const node = "172.31.0.12:8080"
	w := newRefusing(t, node)
	w.balancer.picks[ap(node)] = picked(1, first)
	w.tell(
		told{"a", synSpec(asking, node), "b", "tcp " + asking + " > " + first + " S 6 0 16909060 0"},
		told{"b", accepting(first, asking, 1000, 500), "a", "tcp " + node + " > " + asking + " SA 1000 7 500 16909060"},
		told{"a", numbered(asking, node, packet.ACK, 7, 1001, clock+1, 500), "b", "tcp " + asking + " > " + first + " A 7 1001 16909061 500"},
		told{"b", abandons(first, asking, 1001), "link", "node-2 tcp " + asking + " > " + node + " S 6 0 16909060 0"},
		told{"node-2", accepting(node, asking, 90000, 70), "a", "tcp " + node + " > " + asking + " SA 1000 7 500 16909060"},
		told{"a", numbered(asking, node, packet.ACK, 7, 1001, clock+2, 500), "link", "node-2 tcp " + asking + " > " + node + " A 7 90001 16909062 70"},
		told{"node-2", numbered(node, asking, packet.ACK|packet.PSH, 90001, 7, 80, clock+2), "a", "tcp " + node + " > " + asking + " PA 1001 7 510 16909062"},
	)
	large := numbered(asking, node, packet.ACK, 7, 1011, clock+3, 510)
	large.Payload = make([]byte, 1500)
	w.from("a", large)
	var p packet.Packet
	w.parsed("a", &p)
	quoted := p.IP[p.L4+8:]
	if ack := binary.BigEndian.Uint32(quoted[20+8:]); !isICMPError(&p) || ack != 1011 {
		t.Errorf("the client is told of a packet that acknowledges %d, want 1011", ack)
	}
	w.silent()
}
