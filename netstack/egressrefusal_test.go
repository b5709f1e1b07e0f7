package netstack

import (
	"fmt"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
)

// What a gateway refuses a pod of another node is told to the pod's node, as an answer from outside, and that tells the
// pod.
func TestEgressRefusals(t *testing.T) {
	const S, RA = packet.SYN, packet.RST | packet.ACK
	const server, forbidden, forbidden6 = "198.51.100.1:443", "192.0.2.66:443", "[2001:db8:d::66]:443"
	for name, c := range map[string]struct {
		noHost bool // the gateway has no host TAP
		steps  []step
	}{
		"where pods may not dial": {false, []step{
			{"node-2 encap", segment("203.0.113.50:1000", forbidden, S), "link", encapOut + "tcp 192.0.2.66:443 > 203.0.113.50:1000 RA", EgressDenied},
			{"node-2 encap", datagram("203.0.113.50:1000", forbidden), "link", encapOut + "icmp 3/13 192.0.2.66 > 203.0.113.50 about 203.0.113.50:1000 > 192.0.2.66:443", EgressDenied},
			{"node-2 encap", datagram("[2001:db8:1b::50]:1000", forbidden6), "link", encapOut + "icmp 1/1 2001:db8:d::66 > 2001:db8:1b::50 about [2001:db8:1b::50]:1000 > [2001:db8:d::66]:443", EgressDenied},
		}},
		"a gateway without a host TAP": {true, []step{
			{"node-2 encap", segment("203.0.113.50:1000", server, S), "link", encapOut + "icmp 3/13 198.51.100.1 > 203.0.113.50 about 203.0.113.50:1000 > 198.51.100.1:443", NoExit},
			{"node-2 encap", datagram("203.0.113.50:1000", server), "link", encapOut + "icmp 3/13 198.51.100.1 > 203.0.113.50 about 203.0.113.50:1000 > 198.51.100.1:443", NoExit},
		}},
		"the pod hears it": {false, []step{
			{"b", segment("10.244.1.11:1000", server, S), "link", encapOut + "tcp 203.0.113.51:1000 > 198.51.100.1:443 S", 0},
			{"node-2 encap", icmp("198.51.100.1", "203.0.113.51", 3, 13, segment("203.0.113.51:1000", server, S).IP()), "b", "icmp 3/13 198.51.100.1 > 10.244.1.11 about 10.244.1.11:1000 > 198.51.100.1:443", 0},
			{"node-2 encap", segment(server, "203.0.113.51:1000", RA), "b", "tcp 198.51.100.1:443 > 10.244.1.11:1000 RA", 0},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			w.config.DenyEgress = append(w.config.DenyEgress, Destination{Range: addresstest.Prefixes("2001:db8:d::66/128")[0]})
			w.set()
			if c.noHost {
				w.path.Detach("host")
				delete(w.devices, "host")
			}
			w.take(c.steps)
		})
	}
}

// Who gets no port towards a server, since others have as many as he has, is refused at once.
func TestEgressWithoutPorts(t *testing.T) {
	const server = "198.51.100.1:443"
	for name, c := range map[string]struct {
		of    func(src, dst string) netstacktest.Spec
		from  string // who gets none
		src   string
		where string
		want  string
	}{
		"a pod":                {synOf, "c", "10.244.1.12", "c", "tcp 198.51.100.1:443 > 10.244.1.12:512 RA"},
		"a pod, of UDP":        {datagram, "c", "10.244.1.12", "c", "icmp 3/13 10.244.1.1 > 10.244.1.12 about 10.244.1.12:512 > 198.51.100.1:443"},
		"another node":         {synOf, "node-2 encap", egress, "link", encapOut + "tcp 198.51.100.1:443 > 203.0.113.50:512 RA"},
		"another node, of UDP": {datagram, "node-2 encap", egress, "link", encapOut + "icmp 3/13 198.51.100.1 > 203.0.113.50 about 203.0.113.50:512 > 198.51.100.1:443"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			conf := egressConfig(exit.Gateway{Here: true}, exit.Gateway{})
			conf.Pods.Addrs["c"] = addresstest.Addrs(egress)
			w.attach("c", PodTAP, "10.244.1.12")
			w.path.SetExits(exit.New(conf))
			heard := map[string]func(){"a": func() { <-w.devices["a"].Frames() }, "c": func() { <-w.devices["c"].Frames() }, "link": func() { <-w.link.Sent() }}
			for port := 512; port < 1024; port++ { // a privileged port is replaced by another one only
				from, src, back := "a", fmt.Sprint("10.244.1.10:", port), "a"
				if port >= 768 {
					from, src, back = c.from, fmt.Sprintf("%s:%d", c.src, port), c.where
				}
				w.from(from, c.of(src, server))
				if got := w.portTo("host", server); int(got) != port {
					t.Fatalf("the port is %d, want %d", got, port)
				}
				question := c.of(server, fmt.Sprintf("%s:%d", egress, port))
				question.TCPFlags |= packet.ACK
				w.from("host", question)
				heard[back]()
				if question.Proto == packet.TCP {
					answer := c.of(src, server)
					answer.TCPFlags = packet.ACK
					w.from(from, answer)
					w.portTo("host", server)
				}
			}
			w.from(c.from, c.of(fmt.Sprintf("%s:%d", c.src, 512), server))
			w.expect(c.where, c.want)
			w.counted(NoSourcePort, 1)
			w.silent()
		})
	}
}

func synOf(src, dst string) netstacktest.Spec { return segment(src, dst, packet.SYN) }
