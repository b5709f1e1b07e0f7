package netstack

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/knock"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/quota"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// newRefusing is a world in which connections that backends refuse go on to the next of these, whose ids begin at 51.
func newRefusing(t *testing.T, next ...string) *world {
	w := newWorld(t)
	w.addLoadBalancers()
	w.retry(next...)
	return w
}

// retry makes connections that backends refuse go on to the next of these, whose ids begin at 51.
func (w *world) retry(next ...string) {
	for i := range next {
		w.balancer.states[51+uint64(i)] = packet.BackendReady
	}
	w.path.another = func(_ *packet.Tuple, refused []uint64) packet.Choice {
		for i, to := range next {
			if id := 51 + uint64(i); !slices.Contains(refused, id) {
				return picked(id, to)
			}
		}
		return packet.Choice{}
	}
}

// refuses is how a kernel without a socket answers a SYN with sequence number 6.
func refuses(src, dst string) netstacktest.Spec {
	s := segment(src, dst, packet.RST|packet.ACK)
	s.Ack = 7
	return s
}

func synSpec(src, dst string) netstacktest.Spec {
	s := segment(src, dst, packet.SYN)
	s.Seq, s.Options = 6, []byte{2, 4, 5, 0x64, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}
	return s
}

// hop is a packet of somebody, and what becomes of it where.
type hop struct {
	from     string
	spec     netstacktest.Spec
	to, want string
}

// TestAnother: a backend that refuses a connection is replaced by another one, and the client hears of nothing.
func TestAnother(t *testing.T) {
	const S, A, SA = packet.SYN, packet.ACK, packet.SYN | packet.ACK
	const client = "198.51.100.7:4000"
	for name, c := range map[string]struct {
		next  []string
		steps []hop
	}{
		"a pod here, then another node's": {[]string{"10.244.2.10:8080"}, []hop{
			{"a", synSpec("10.244.1.10:4000", "10.96.0.1:80"), "b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S"},
			{"b", refuses("10.244.1.11:8080", "10.244.1.10:4000"), "link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 S"},
			{"node-2", segment("10.244.2.10:8080", "10.244.1.10:4000", SA), "a", "tcp 10.96.0.1:80 > 10.244.1.10:4000 SA"},
			{"a", segment("10.244.1.10:4000", "10.96.0.1:80", A), "link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 A"},
		}},
		"another node's, then a pod here": {[]string{"10.244.1.11:8080"}, []hop{
			{"a", synSpec("10.244.1.10:4000", "10.96.0.2:80"), "link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 S"},
			{"node-2", refuses("10.244.2.10:8080", "10.244.1.10:4000"), "b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S"},
			{"b", segment("10.244.1.11:8080", "10.244.1.10:4000", SA), "a", "tcp 10.96.0.2:80 > 10.244.1.10:4000 SA"},
			{"a", segment("10.244.1.10:4000", "10.96.0.2:80", A), "b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 A"},
		}},
		"the client itself": {[]string{"10.244.1.10:8080"}, []hop{
			{"a", synSpec("10.244.1.10:4000", "10.96.0.1:80"), "b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S"},
			{"b", refuses("10.244.1.11:8080", "10.244.1.10:4000"), "a", "tcp 10.244.1.1:4000 > 10.244.1.10:8080 S"},
			{"a", segment("10.244.1.10:8080", "10.244.1.1:4000", SA), "a", "tcp 10.96.0.1:80 > 10.244.1.10:4000 SA"},
		}},
		"IPv6": {[]string{"[fd00:10:244:2::10]:8080"}, []hop{
			{"a", synSpec("[fd00:10:244:1::10]:4000", "[fd00:10:96::1]:80"), "b", "tcp [fd00:10:244:1::10]:4000 > [fd00:10:244:1::11]:8080 S"},
			{"b", refuses("[fd00:10:244:1::11]:8080", "[fd00:10:244:1::10]:4000"), "link", "node-2 tcp [fd00:10:244:1::10]:4000 > [fd00:10:244:2::10]:8080 S"},
		}},
		"a process of the host": {[]string{"10.244.2.10:8080"}, []hop{
			{"host", synSpec("10.244.1.2:4000", "10.96.0.1:80"), "b", "tcp 10.244.1.2:4000 > 10.244.1.11:8080 S"},
			{"b", refuses("10.244.1.11:8080", "10.244.1.2:4000"), "link", "node-2 tcp 10.244.1.2:4000 > 10.244.2.10:8080 S"},
			{"node-2", segment("10.244.2.10:8080", "10.244.1.2:4000", SA), "host", "tcp 10.96.0.1:80 > 10.244.1.2:4000 SA"},
		}},
		"a routed client": {[]string{"10.244.2.10:8080"}, []hop{
			{"host", synSpec(client, "203.0.113.1:80"), "b", "tcp " + client + " > 10.244.1.11:8080 S"},
			{"b", refuses("10.244.1.11:8080", client), "link", encapOut + "tcp " + client + " > 10.244.2.10:8080 S"},
			{"node-2 encap", segment("10.244.2.10:8080", client, SA), "host", "tcp 203.0.113.1:80 > " + client + " SA"},
		}},
		"there is no other": {nil, []hop{
			{"a", synSpec("10.244.1.10:4000", "10.96.0.1:80"), "b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S"},
			{"b", refuses("10.244.1.11:8080", "10.244.1.10:4000"), "a", "tcp 10.96.0.1:80 > 10.244.1.10:4000 RA"},
		}},
		"a pod that is gone": {[]string{"10.244.1.78:8080", "10.244.2.10:8080"}, []hop{
			{"a", synSpec("10.244.1.10:4000", "10.96.0.9:80"), "link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 S"},
			{"node-2", segment("10.244.2.10:8080", "10.244.1.10:4000", SA), "a", "tcp 10.96.0.9:80 > 10.244.1.10:4000 SA"},
			{"a", segment("10.244.1.10:4000", "10.96.0.9:80", A), "link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 A"},
		}},
		"a routed client's pod that is gone": {[]string{"10.244.1.11:8080"}, []hop{
			{"host", synSpec(client, "203.0.113.9:80"), "b", "tcp " + client + " > 10.244.1.11:8080 S"},
		}},
		"the other's address is vacant": {[]string{"10.244.1.77:8080"}, []hop{
			{"a", synSpec("10.244.1.10:4000", "10.96.0.1:80"), "b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S"},
			{"b", refuses("10.244.1.11:8080", "10.244.1.10:4000"), "a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:4000 > 10.96.0.1:80"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRefusing(t, c.next...)
			for _, s := range c.steps {
				w.from(s.from, s.spec)
				w.expect(s.to, s.want)
			}
			w.silent()
		})
	}
}

// TestMostRefuse: the client hears of the refusal when as many as may have refused, however many others there are.
func TestMostRefuse(t *testing.T) {
	var next []string
	for i := range knock.Most + 2 {
		next = append(next, fmt.Sprintf("10.244.2.%d:8080", 20+i))
	}
	w := newRefusing(t, next...)
	for range 2 { // the client may try once more
		w.from("a", synSpec("10.244.1.10:4000", "10.96.0.1:80"))
		w.expect("b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S")
		w.from("b", refuses("10.244.1.11:8080", "10.244.1.10:4000"))
		for _, to := range next[:knock.Most] {
			w.expect("link", "node-2 tcp 10.244.1.10:4000 > "+to+" S")
			w.from("node-2", refuses(to, "10.244.1.10:4000"))
		}
		w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:4000 RA")
		w.silent()
	}
}

// TestSameSYN: the other backend gets the very SYN of the client, with its options, as the first one did, also when the
// client left its checksum to others.
func TestSameSYN(t *testing.T) {
	for _, partial := range []bool{false, true} {
		w := newRefusing(t, "10.244.1.11:8081")
		spec := synSpec("10.244.1.10:4000", "10.96.0.1:80")
		frame := spec.Frame(w.macs["a"], tap.RouterMAC)
		if spec.Partial = partial; partial {
			frame = spec.Frame(w.macs["a"], tap.RouterMAC)
			frame[0], frame[6], frame[8] = packet.NeedsCsum, packet.EthLen+20, 16
		}
		w.devices["a"].Send(frame)
		var first, second packet.Packet
		w.parsed("b", &first)
		one, vnet := bytes.Clone(first.IP), first.VNet
		w.from("b", refuses("10.244.1.11:8080", "10.244.1.10:4000"))
		w.parsed("b", &second)
		for _, ip := range [][]byte{one, second.IP} {
			clear(ip[22:24]) // the port
			clear(ip[36:38]) // the checksum, which describe has looked at
		}
		if !bytes.Equal(one, second.IP) || vnet != second.VNet {
			t.Errorf("the second gets\n%x %+v, the first got\n%x %+v", second.IP, second.VNet, one, vnet)
		}
	}
}

// TestRefusalsThatAreHeard: whoever asked no Service is refused, and so is a connection that was open.
func TestRefusalsThatAreHeard(t *testing.T) {
	w := newRefusing(t, "10.244.2.10:8080")
	w.from("a", synSpec("10.244.1.10:4000", "10.244.1.11:8080"))
	w.expect("b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S")
	w.from("b", refuses("10.244.1.11:8080", "10.244.1.10:4000"))
	w.expect("a", "tcp 10.244.1.11:8080 > 10.244.1.10:4000 RA")

	w.from("a", synSpec("10.244.1.10:4001", "10.96.0.1:80"))
	w.expect("b", "tcp 10.244.1.10:4001 > 10.244.1.11:8080 S")
	w.from("b", segment("10.244.1.11:8080", "10.244.1.10:4001", packet.SYN|packet.ACK))
	w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:4001 SA")
	w.from("b", refuses("10.244.1.11:8080", "10.244.1.10:4001"))
	w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:4001 RA")

	// A reset that does not acknowledge this SYN is passed on: the client ignores it.
	w.from("a", synSpec("10.244.1.10:4002", "10.96.0.1:80"))
	w.expect("b", "tcp 10.244.1.10:4002 > 10.244.1.11:8080 S")
	old := refuses("10.244.1.11:8080", "10.244.1.10:4002")
	old.Ack = 5
	w.from("b", old)
	w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:4002 RA")

	// What a Service of another node led here is for that node.
	w.path.FromLink(node2, [][]byte{marked(t, synSpec("10.244.2.20:4000", "10.244.1.11:8080"))})
	w.expect("b", "tcp 10.244.2.20:4000 > 10.244.1.11:8080 S")
	w.from("b", refuses("10.244.1.11:8080", "10.244.2.20:4000"))
	w.expect("link", "node-2 tcp 10.244.1.11:8080 > 10.244.2.20:4000 RA")
	w.silent()
}

// TestRetriedIsCounted: each packet has its verdict, and the flow that was refused is gone.
func TestRetriedIsCounted(t *testing.T) {
	w := newRefusing(t, "10.244.2.10:8080")
	w.from("a", synSpec("10.244.1.10:4000", "10.96.0.1:80"))
	w.expect("b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S")
	w.from("b", refuses("10.244.1.11:8080", "10.244.1.10:4000"))
	w.expect("link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 S")
	await.Until(t, "each packet is counted once", func() bool {
		s := w.path.Stats() // counted once the packet is written
		return s.Drops[Retried.String()] == 1 && s.Verdicts[ToTAP.String()] == 1 && s.Verdicts[ToLink.String()] == 1 && s.Verdicts[Dropped.String()] == 1
	})
	if n := w.path.flows.Stats().Len; n != 1 {
		t.Errorf("%d flows", n)
	}
}

// TestRetriesAreCharged: a pod whose connections are refused begins no more flows than its quota says, and what is
// beyond that is refused at once.
func TestRetriesAreCharged(t *testing.T) {
	w := newRefusing(t, "10.244.2.10:8080", "10.244.2.11:8080")
	now := time.Now()
	w.path.now = func() time.Time { return now }
	w.path.SetQuotas(map[string]quota.Quota{"a": {Flows: 2}})
	w.from("a", synSpec("10.244.1.10:4000", "10.96.0.1:80"))
	w.expect("b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S")
	w.from("b", refuses("10.244.1.11:8080", "10.244.1.10:4000"))
	w.expect("link", "node-2 tcp 10.244.1.10:4000 > 10.244.2.10:8080 S")
	w.from("node-2", refuses("10.244.2.10:8080", "10.244.1.10:4000"))
	w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:4000 RA")
	w.silent()
}

// TestAnotherIsAskedLater: when the stack itself sends a refusal, and the other backend is the stack again, that gets
// the SYN in another goroutine, since it may hold locks in this one.
func TestAnotherIsAskedLater(t *testing.T) {
	w := newRefusing(t)
	sent := make(chan struct{})
	w.path.another = func(_ *packet.Tuple, refused []uint64) packet.Choice {
		if len(refused) == 1 {
			return picked(51, "10.96.0.10:81") // the stack refuses it
		}
		select {
		case <-sent:
		case <-time.After(await.Patience):
			t.Error("the stack has the SYN while it sends")
		}
		return packet.Choice{}
	}
	w.from("a", synSpec("10.244.1.10:4000", "10.96.0.1:80"))
	w.expect("b", "tcp 10.244.1.10:4000 > 10.244.1.11:8080 S")
	w.path.fromRelay(refuses("10.244.1.11:8080", "10.244.1.10:4000").IP(), packet.VNetHdr{})
	close(sent)
	w.expect("a", "tcp 10.96.0.1:80 > 10.244.1.10:4000 RA")
	w.silent()
}

func TestAnotherAllocatesNothing(t *testing.T) {
	w, _ := hotNode(t)
	w.path.snapshot.Load().balancer = &hotBalancer{}
	w.path.another = func(_ *packet.Tuple, refused []uint64) packet.Choice {
		if len(refused) == knock.Most {
			return packet.Choice{}
		}
		return picked(uint64(len(refused))+5, "10.244.2.10:8080")
	}
	syn := synSpec("10.244.1.10:4000", "10.96.0.1:80").Frame(w.from.MAC, tap.RouterMAC)
	here, there := refuses("10.244.1.11:8080", "10.244.1.10:4000").IP(), refuses("10.244.2.10:8080", "10.244.1.10:4000").IP()
	buf := make([]byte, packet.MaxFrame)
	batch := [][]byte{make([]byte, len(there))}
	from := w.from
	if n := testing.AllocsPerRun(100, func() {
		w.from = from
		buf = w.fromTAP(buf[:copy(buf[:cap(buf)], syn)])
		w.fromRelay(here, packet.VNetHdr{})
		for range knock.Most {
			copy(batch[0], there)
			w.fromLink(node2, batch)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := w.drops[Retried].Load(); n < 100 {
		t.Errorf("%d were asked again: %v", n, w.path.Stats())
	}
}
