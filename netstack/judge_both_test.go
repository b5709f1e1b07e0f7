package netstack

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestPolicyKnowsClients: a connection of which nothing is known is judged one way if it goes to a Service, or comes
// from another node's host socket: then it is known who has begun it.
func TestPolicyKnowsClients(t *testing.T) {
	for name, c := range map[string]struct{ from, src, dst, at, wants, denied string }{
		"to a Service":               {"a", "10.244.1.10:1000", "10.96.0.1:80", "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 A", "10.244.1.10"},
		"from a socket elsewhere":    {"node-2 encap", "198.51.100.7:4000", "10.244.1.11:8080", "b", "tcp 198.51.100.7:4000 > 10.244.1.11:8080 A", "198.51.100.7"},
		"against its client's right": {"a", "10.244.1.10:1000", "10.96.0.1:80", "", "", "10.244.1.11"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy = &rules{Ruling: Ruling{Refuse, 1}, to: c.denied}
			w.set()
			w.from(c.from, segment(c.src, c.dst, packet.ACK))
			if c.at == "" {
				w.dropped(Denied)
			} else {
				w.expect(c.at, c.wants)
			}
		})
	}
}

// TestPolicyJudgesBothWays: a connection of which nothing is known goes on only if either end may have begun it.
func TestPolicyJudgesBothWays(t *testing.T) {
	for name, c := range map[string]struct {
		flags uint8
		to    string // the end that gets no connections
		stays bool
	}{
		"an opening, against nobody":          {packet.SYN, "", true},
		"an opening, its sender gets none":    {packet.SYN, "10.244.1.10", true},
		"in the middle, its sender gets none": {packet.ACK, "10.244.1.10", false},
		"in the middle, its target gets none": {packet.ACK, "10.244.1.11", false},
		"in the middle, against nobody":       {packet.ACK, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy = policyFunc(func(f *Flow) Ruling {
				if f.To.Dst.String() == c.to {
					return Ruling{Refuse, 1}
				}
				return Ruling{}
			})
			w.set()
			w.from("a", segment("10.244.1.10:1000", "10.244.1.11:80", c.flags))
			if c.stays {
				w.expect("b", "tcp 10.244.1.10:1000 > 10.244.1.11:80 "+map[uint8]string{packet.SYN: "S", packet.ACK: "A"}[c.flags])
			} else {
				w.dropped(Denied)
			}
		})
	}
}
