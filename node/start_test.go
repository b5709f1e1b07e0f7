package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/overlay/overlaytest"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// held returns a Held for one node.
func held(t *testing.T) Held {
	t.Helper()
	u := overlaytest.New(1)
	t.Cleanup(u.Close)
	flows, err := flow.Open(make([]byte, flow.Size(64)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	poller, err := poll.New(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = poller.Close() })
	return Held{
		Flows: flows, Key: overlay.NewPrivateKey(), Bind: u.Bind(netip.MustParseAddrPort("192.0.2.1:51820")), Poller: poller,
		Upstreams: func() ([]netip.AddrPort, error) { return nil, nil },
	}
}

func config() Config {
	return Config{Netstack: netstack.Config{Node: "n1", PodCIDRs: addresstest.Prefixes("10.244.1.0/24"), LocalAddrs: addresstest.Addrs("10.96.0.10"), MTU: 1420}}
}

// with replaces the parts for one test.
func with(t *testing.T, list []maker) {
	before := parts
	parts = list
	t.Cleanup(func() { parts = before })
}

// If any part cannot be made, nothing of the node is left, and the next attempt has all that it needs. The leak check
// at the end of the tests finds goroutines that stay.
func TestStartFails(t *testing.T) {
	whole := parts
	h := held(t)
	for i := range len(whole) + 1 {
		before := goleak.IgnoreCurrent()
		broken := maker{"broken", func(*Node) (part, error) { return quiet, errors.New("no such luck") }}
		with(t, slices.Insert(slices.Clone(whole), i, broken))
		n, err := Start(h, config())
		if n != nil || err == nil || !strings.Contains(err.Error(), "no such luck") {
			t.Errorf("part %d fails: %v, %v", i, n, err)
		}
		if err := goleak.Find(before); err != nil {
			t.Errorf("part %d fails: %v", i, err)
		}
	}
	with(t, whole)
	n, err := Start(h, config())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Set(config()); err != nil {
		t.Error(err)
	}
	if err := n.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStartRefuses(t *testing.T) {
	h, c := held(t), config()
	c.Netstack.PodCIDRs = nil
	if n, err := Start(h, c); n != nil || err == nil || !strings.Contains(err.Error(), "n1 has no podCIDR") {
		t.Errorf("no pod ranges: %v, %v", n, err)
	}
	h.Flows = nil
	if n, err := Start(h, config()); n != nil || err == nil {
		t.Errorf("no flows: %v, %v", n, err)
	}
}

// Parts are set in order, all of them even if one fails. All are drained at the same time, then all that come last,
// before one is closed. They are closed once, in reverse order.
func TestOrder(t *testing.T) {
	var log []string
	var drained, last sync.WaitGroup
	drained.Add(3)
	last.Add(3)
	var list []maker
	for _, name := range []string{"a", "b", "c"} {
		list = append(list, maker{name, func(*Node) (part, error) {
			log = append(log, "make "+name)
			return part{
				set: func(*Config) error { log = append(log, "set "+name); return fmt.Errorf("%s is stuck", name) },
				problems: func() []Problem {
					return []Problem{{Warning: name == "b"}}
				},
				drain:     func(context.Context) { drained.Done(); drained.Wait() },
				drainLast: func(context.Context) { drained.Wait(); last.Done(); last.Wait() },
				close:     func() { last.Wait(); log = append(log, "close "+name) },
			}, nil
		}})
	}
	with(t, list)
	n, err := Start(held(t), config())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Set(config()); err == nil || err.Error() != "a is stuck\nb is stuck\nc is stuck" {
		t.Errorf("set: %v", err)
	}
	if got := n.Problems(); len(got) != 3 || !got[1].Warning {
		t.Errorf("problems: %v", got)
	}
	n.Close()
	n.Close()
	if err := n.Set(config()); !errors.Is(err, errClosed) {
		t.Errorf("set after close: %v", err)
	}
	if got := strings.Join(log, ", "); got != "make a, make b, make c, set a, set b, set c, close c, close b, close a" {
		t.Error(got)
	}
}

// While parts are drained the node is set all the same. It is drained once, and Close waits for that.
func TestSetWhileDrained(t *testing.T) {
	begun, set := make(chan struct{}), make(chan struct{})
	drained := false
	with(t, []maker{{"a", func(*Node) (part, error) {
		p := quiet
		p.set = func(*Config) error { close(set); return nil }
		p.drain = func(context.Context) { close(begun); <-set; drained = true }
		p.close = func() {
			if !drained {
				t.Error("it is closed before it is drained")
			}
		}
		return p, nil
	}}})
	n, err := Start(held(t), config())
	if err != nil {
		t.Fatal(err)
	}
	go n.Drain()
	<-begun
	if err := n.Set(config()); err != nil {
		t.Error(err)
	}
	n.Close()
}

// A node whose ranges change stays as it is.
func TestStartAnew(t *testing.T) {
	n, err := Start(held(t), config())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Set(config()); err != nil {
		t.Fatal(err)
	}
	was := n.Config()
	c := config()
	c.Netstack.PodCIDRs = addresstest.Prefixes("10.244.9.0/24")
	if err := n.Set(c); !errors.Is(err, ErrStartAnew) || !strings.Contains(err.Error(), "[10.244.9.0/24] and were [10.244.1.0/24]") || n.Config() != was {
		t.Errorf("got %v; the node has %v", err, n.Config().Netstack.PodCIDRs)
	}
}

// Nothing is read from an attachment before the first Set.
func TestHoldsStill(t *testing.T) {
	n, err := Start(held(t), config())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	dev, mac := netstacktest.NewDevice(), packet.MAC{2, 0, 0, 0, 0, 1}
	if err := n.Attach(netstack.AttachmentConfig{Name: "d/p", MAC: mac, Addrs: addresstest.Addrs("10.244.1.3")}, dev); err != nil {
		t.Fatal(err)
	}
	read := func() uint64 { return n.Attachments()[0].FromPackets }
	ping := netstacktest.Spec{
		Src: netip.MustParseAddrPort("10.244.1.3:7"), Dst: netip.MustParseAddrPort("10.244.1.1:0"), Proto: packet.ICMPv4, ICMPType: 8,
	}.Frame(mac, tap.RouterMAC)
	dev.Send(ping)
	if got := read(); got != 0 {
		t.Errorf("%d packets were read before there was anything to do with them", got)
	}
	if err := n.Set(config()); err != nil {
		t.Fatal(err)
	}
	<-dev.Frames()                                                              // the answer
	await.Until(t, "one packet is counted", func() bool { return read() == 1 }) // after it is answered
}

// A pod that asks before every part is set, or while parts are closed, is not refused: its packets wait for who
// answers.
func TestNobodyIsRefused(t *testing.T) {
	dev, mac := netstacktest.NewDevice(), packet.MAC{2, 0, 0, 0, 0, 1}
	question := netstacktest.Spec{
		Src: netip.MustParseAddrPort("10.244.1.3:7"), Dst: netip.MustParseAddrPort("10.244.1.1:53"), Proto: packet.UDP, Payload: []byte("none"),
	}.Frame(mac, tap.RouterMAC)
	var n *Node
	last := maker{"last", func(*Node) (part, error) { // closed first
		p := quiet
		p.close = func() {
			if n.ctx.Err() != nil {
				t.Error("cluster DNS is gone while attachments are read")
			}
		}
		p.set = func(*Config) error {
			dev.Send(question)
			select {
			case <-n.begin:
				t.Error("attachments may be read before all parts are set")
			default:
			}
			return nil
		}
		return p, nil
	}}
	first := maker{"first", func(*Node) (part, error) { // closed last
		p := quiet
		p.close = func() {
			if n.ctx.Err() == nil {
				t.Error("cluster DNS goes on when the packet path is closed")
			}
		}
		return p, nil
	}}
	with(t, slices.Concat([]maker{first}, parts, []maker{last}))
	var err error
	if n, err = Start(held(t), config()); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Attach(netstack.AttachmentConfig{Name: "d/p", MAC: mac, Addrs: addresstest.Addrs("10.244.1.3")}, dev); err != nil {
		t.Fatal(err)
	}
	if err := n.Set(config()); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the question is read once there is who answers", func() bool { return n.Attachments()[0].FromPackets == 1 })
}

// Addresses of pods from before a change of the ranges are reported.
func TestStranded(t *testing.T) {
	n, err := Start(held(t), config())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for name, a := range map[string]string{"d/old": "10.244.7.3", "d/new": "10.244.1.3"} {
		if err := n.Attach(netstack.AttachmentConfig{Name: name, Addrs: addresstest.Addrs(a)}, netstacktest.NewDevice()); err != nil {
			t.Fatal(err)
		}
	}
	got := n.Problems()
	if len(got) != 1 || got[0].Object != "Pod d/old" || !got[0].Warning || got[0].Shared || !strings.Contains(got[0].Message, "10.244.7.3 is from before") {
		t.Errorf("got %+v", got)
	}
}

// Sessions of Services are charged to what nobody can have many of, whatever addresses it uses.
func TestChargedFor(t *testing.T) {
	c := config()
	c.Netstack.PodCIDRs = addresstest.Prefixes("10.244.1.0/24", "fd00:10:244:1::/64")
	c.Netstack.NodeAddrs = addresstest.Addrs("192.0.2.1", "2001:db8::1")
	c.Netstack.ClusterCIDRs = addresstest.Prefixes("10.244.0.0/16", "fd00:10:244::/56")
	c.Netstack.Peers = []netstack.PeerRoute{{
		ID: 2, Name: "n2", PodCIDRs: addresstest.Prefixes("10.244.2.0/24", "fd00:10:244:2::/64"), NodeAddrs: addresstest.Addrs("192.0.2.2", "2001:db8::2"),
	}}
	n, err := Start(held(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Set(c); err != nil {
		t.Fatal(err)
	}
	if err := n.Attach(netstack.AttachmentConfig{Name: "d/p", Addrs: addresstest.Addrs("10.244.1.3", "fd00:10:244:1::3")}, netstacktest.NewDevice()); err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]string{
		"10.244.1.3": "10.244.1.3/32", "fd00:10:244:1::3": "10.244.1.3/32", // a pod
		"10.244.2.7": "10.244.2.1/32", "fd00:10:244:2::99": "10.244.2.1/32", "192.0.2.2": "10.244.2.1/32", "2001:db8::2": "10.244.2.1/32", // another node
		"192.0.2.1": "192.0.2.1/32", "2001:db8::1": "2001:db8::1/128", // this node
		"203.0.113.9": "203.0.113.9/32", "2001:db8::77": "2001:db8::/64", "2001:db8:f:1:2:3:4:5": "2001:db8:f:1::/64", // outside
	} {
		if got := n.chargedFor(netip.MustParseAddr(client)); got.String() != want {
			t.Errorf("%s: %s is charged, want %s", client, got, want)
		}
	}
}
