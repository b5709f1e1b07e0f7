package netstack

import (
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// sink is a Device that accepts all frames and keeps none.
type sink struct{ frames int }

func (s *sink) Run(func([]byte) []byte, func()) error { return nil }
func (s *sink) Write([]byte) error                    { s.frames++; return nil }
func (s *sink) Writev([][]byte) error                 { s.frames++; return nil }
func (s *sink) Offloads() tap.Offloads                { return tap.AllOffloads }
func (s *sink) Close() error                          { return nil }

// null is a Link that accepts all packets and keeps none.
type null struct{ sent int }

func (l *null) Send(*packet.Packet, uint64, *packet.Encap) { l.sent++ }
func (l *null) MTU(uint64) int                             { return 1440 }

// hotNode returns a node with pods a and b on sinks, and a worker that reads for a.
func hotNode(t testing.TB) (*worker, *sink) { return hotNodeOf(t, 1024) }

// hotNodeOf is hotNode with room for that many flows.
func hotNodeOf(t testing.TB, capacity int) (*worker, *sink) {
	t.Helper()
	flows, err := flow.Open(make([]byte, flow.Size(capacity)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path, err := New(Options{Flows: flows, Link: &null{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = path.Close() })
	b := &sink{}
	for name, dev := range map[string]*sink{"10.244.1.10": {}, "10.244.1.11": b} {
		if err := path.Attach(AttachmentConfig{Name: name, MAC: packet.MAC{2, 1}, Addrs: addresstest.Addrs(name)}, dev); err != nil {
			t.Fatal(err)
		}
	}
	err = path.Set(Config{
		PodCIDRs: addresstest.Prefixes("10.244.1.0/24"), ClusterCIDRs: addresstest.Prefixes("10.244.0.0/16"), ServiceCIDRs: addresstest.Prefixes("10.96.0.0/16"), MTU: 1420,
		NodeAddrs: addresstest.Addrs("172.31.0.11"), Peers: []PeerRoute{{ID: node2, PodCIDRs: addresstest.Prefixes("10.244.2.0/24"), Encap: true, SendsPartial: true}},
	}, &balancer{picks: nil}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := path.workers.get()
	w.from = path.attachments.table.Load().byName["10.244.1.10"]
	return w, b
}

// paths lists packets of established flows that the hot path must carry without an allocation.
var paths = []struct {
	name string
	spec netstacktest.Spec
}{
	{"to a pod here", segment("10.244.1.10:1000", "10.244.1.11:80", packet.ACK)},
	{"to a ClusterIP", segment("10.244.1.10:1001", "10.96.0.1:80", packet.ACK)},
	{"to a pod on another node", datagram("10.244.1.10:1002", "10.244.2.11:80")},
}

func established(t testing.TB, spec netstacktest.Spec) (*worker, []byte, func()) {
	w, _ := hotNode(t)
	s := w.path.snapshot.Load()
	s.balancer = &hotBalancer{}
	spec.Payload = make([]byte, 1200)
	frame := spec.Frame(w.from.MAC, tap.RouterMAC)
	buf := make([]byte, packet.MaxFrame)
	return w, buf, func() {
		n := copy(buf[:cap(buf)], frame)
		buf = w.fromTAP(buf[:n])
	}
}

// hotBalancer leads one address to pod b, and knows another one that has no ports.
type hotBalancer struct{}

var hotVIP, closedVIP = packet.AddrFrom(addresstest.Addrs("10.96.0.1")[0]), packet.AddrFrom(addresstest.Addrs("10.96.0.2")[0])

func (hotBalancer) Pick(t *packet.Tuple) packet.Choice {
	switch t.Dst {
	case hotVIP:
		return packet.Choice{Kind: packet.Picked, Backend: 1, To: packet.EndpointFrom(ap("10.244.1.11:8080"))}
	case closedVIP:
		return packet.Choice{Kind: packet.UnknownPort}
	}
	return packet.Choice{}
}

func (hotBalancer) Backend(uint64, packet.Addr) packet.BackendState { return packet.BackendReady }
func (hotBalancer) Leads(*packet.Tuple, uint64, uint16) bool        { return true }
func (hotBalancer) IsEndpoint(packet.Endpoint, packet.Proto) bool   { return true }
func (hotBalancer) Exposed(packet.Addr) bool                        { return false }

func TestHotPathAllocatesNothing(t *testing.T) {
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			w, _, send := established(t, p.spec)
			send()
			if n := testing.AllocsPerRun(200, send); n != 0 {
				t.Errorf("%v allocations per packet", n)
			}
			if d := w.verdicts[Dropped].Load(); d != 0 {
				t.Errorf("%d packets were dropped: %v", d, w.path.Stats())
			}
		})
	}
}

// FuzzFromTAP gives the pipeline whatever a pod may write into its TAP. The pipeline must survive, count every frame
// under exactly one verdict, and let no packet through that claims another's address.
func FuzzFromTAP(f *testing.F) {
	for _, p := range paths {
		f.Add(p.spec.Frame(packet.MAC{2, 1}, tap.RouterMAC))
	}
	f.Add(segment("10.244.1.10:1", "10.244.1.11:2", packet.SYN).Frame(packet.MAC{2, 1}, tap.RouterMAC)[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > packet.MaxFrame {
			return
		}
		w, b := hotNode(t)
		buf := make([]byte, packet.MaxFrame)
		w.fromTAP(buf[:copy(buf, frame)])
		total := uint64(0)
		for v := range w.verdicts {
			total += w.verdicts[v].Load()
		}
		if total != 1 {
			t.Fatalf("one frame got %d verdicts: %v", total, w.path.Stats())
		}
		var p packet.Packet
		if p.ParseFrame(buf[:copy(buf, frame)]) == packet.Good && p.Tuple.Src != packet.AddrFrom(addresstest.Addrs("10.244.1.10")[0]) && b.frames > 0 {
			t.Fatalf("a packet from %s got through", p.Tuple.Src)
		}
	})
}
