package node_test

import (
	"context"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// recorded gives a node a flow log, and returns who reads it.
func recorded(m *nodetest.Member) *flowlog.Reader {
	log := flowlog.New(0)
	m.RestartWith(func(h *node.Held) { h.FlowLog = log })
	return log.Read(0)
}

// find waits for the record of an event at a port.
func find(t *testing.T, reader *flowlog.Reader, event flowlog.Event, port uint16) flowlog.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	var r flowlog.Record
	for reader.Wait(ctx, &r) {
		if r.Event == event && r.Dst.Port == port {
			return r
		}
	}
	t.Fatalf("there is no record that a flow to port %d %s", port, event)
	return r
}

// TestFlowLog: both nodes record a connection through a Service, each as it sees it, and the one that a policy refuses
// with the rule.
func TestFlowLog(t *testing.T) {
	c := nodetest.New(t, 2)
	n1, n2 := c.Members[0], c.Members[1]
	here, there := recorded(n1), recorded(n2)
	a, b, far := n1.Pod(3), n1.Pod(4), n2.Pod(3)
	serve(t, far, 8080)
	c.Policies = []*policy.Policy{only(far, []*nodetest.Pod{a})}
	c.Serve(web(0, far))
	service := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.80"), 80)
	backend := packet.EndpointFrom(netip.AddrPortFrom(far.Addrs[0], 8080))
	once(t, a, "tcp", service)
	r := find(t, here, flowlog.Begun, 80)
	if r.Src.Addr.Netip() != a.Addrs[0] || r.Dst != packet.EndpointFrom(service) || r.ToDst != backend || r.From != flowlog.Pod || r.Toward != flowlog.OtherNode {
		t.Errorf("the client's node recorded %+v", r)
	}
	r = find(t, there, flowlog.Begun, 8080)
	if r.Src.Addr.Netip() != a.Addrs[0] || r.Translated() || r.From != flowlog.OtherNode || r.Toward != flowlog.Pod || n2.Rule(r.Rule) != "NetworkPolicy default/only ingress[0]" {
		t.Errorf("the server's node recorded %+v by %q", r, n2.Rule(r.Rule))
	}
	refused(t, b, service)
	r = find(t, there, flowlog.Refused, 8080)
	if r.Src.Addr.Netip() != b.Addrs[0] || netstack.DropReason(r.Reason) != netstack.Denied || n2.Rule(r.Rule) != "NetworkPolicy default/only ingress" {
		t.Errorf("the server's node recorded %+v by %q", r, n2.Rule(r.Rule))
	}
	if n := n2.Counters().Get("tapestry_flow_records_total"); n < 2 {
		t.Errorf("%v records are counted", n)
	}
}
