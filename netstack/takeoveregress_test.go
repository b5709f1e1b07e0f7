package netstack

import (
	"testing"

	"tapestry.dev/tapestry/netstack/exit"
	"tapestry.dev/tapestry/netstack/packet"
)

// Connections of pod a, which has an egress address, to a Service whose endpoints are outside.
const (
	leadsOut            = "203.0.113.10:80"
	seenAs              = egress + ":4000"
	outFirst, outSecond = "198.51.100.99:8080", "198.51.100.98:8080"
)

// openOutside opens a connection to outFirst, which that gives up.
func (w *world) openOutside() {
	w.t.Helper()
	w.retry(outSecond)
	w.tell(
		told{"a", synSpec(asking, leadsOut), "host", "tcp " + seenAs + " > " + outFirst + " S 6 0 16909060 0"},
		told{"host", accepting(outFirst, seenAs, 1000, 500), "a", "tcp " + leadsOut + " > " + asking + " SA 1000 7 500 16909060"},
		told{"a", numbered(asking, leadsOut, packet.ACK, 7, 1001, clock+1, 500), "host", "tcp " + seenAs + " > " + outFirst + " A 7 1001 16909061 500"},
		told{"host", abandons(outFirst, seenAs, 1001), "host", "tcp " + seenAs + " > " + outSecond + " S 6 0 16909060 0"},
	)
}

// A connection to a server outside that another one has taken over keeps its numbers when the gateway of its egress
// address changes, whether its pod says something next or only waits.
func TestTakenOverMovesGateway(t *testing.T) {
	here, there := exit.Gateway{Here: true}, exit.Gateway{Peer: node2}
	for name, waits := range map[string]bool{"its pod speaks": false, "its pod waits": true} {
		t.Run(name, func(t *testing.T) {
			w := newEgressWorld(t)
			w.openOutside()
			w.tell(
				told{"host", accepting(outSecond, seenAs, 90000, 70), "a", "tcp " + leadsOut + " > " + asking + " SA 1000 7 500 16909060"},
				told{"a", numbered(asking, leadsOut, packet.ACK, 7, 1001, clock+2, 500), "host", "tcp " + seenAs + " > " + outSecond + " A 7 90001 16909062 70"},
			)
			for _, c := range []struct {
				gateway  exit.Gateway
				by, back string
				sent     string
			}{{there, "link", "node-2 encap", encapOut}, {here, "host", "host", ""}} {
				w.path.SetExits(exit.New(egressConfig(c.gateway, there)))
				if waits {
					if told := w.path.handOver(tupleOf(asking, leadsOut)); told != (c.by == "link") {
						t.Errorf("told is %v", told)
					}
					if c.by == "link" {
						w.hears("link", encapOut+"tcp "+seenAs+" > "+outSecond+"  0 0")
					}
				} else {
					w.tell(told{"a", numbered(asking, leadsOut, packet.ACK|packet.PSH, 7, 1001, clock+3, 501), c.by, c.sent + "tcp " + seenAs + " > " + outSecond + " PA 7 90001 16909063 71"})
				}
				w.tell(
					told{c.back, numbered(outSecond, seenAs, packet.ACK|packet.PSH, 90001, 7, 80, clock+3), "a", "tcp " + leadsOut + " > " + asking + " PA 1001 7 510 16909063"},
					told{"a", numbered(asking, leadsOut, packet.ACK, 7, 1001, clock+4, 510), c.by, c.sent + "tcp " + seenAs + " > " + outSecond + " A 7 90001 16909064 80"},
				)
			}
			w.silent()
		})
	}
}

// The gateway changes while the server that is to take a connection over is asked. It is asked again by the next one.
func TestTakingMovesGateway(t *testing.T) {
	there := exit.Gateway{Peer: node2}
	w := newEgressWorld(t)
	w.openOutside()
	w.path.SetExits(exit.New(egressConfig(there, there)))
	w.tell(
		told{"a", numbered(asking, leadsOut, packet.ACK|packet.PSH, 7, 1001, clock+1, 500), "link", encapOut + "tcp " + seenAs + " > " + outSecond + " S 6 0 16909060 0"},
		told{"node-2 encap", accepting(outSecond, seenAs, 90000, 70), "a", "tcp " + leadsOut + " > " + asking + " SA 1000 7 500 16909060"},
		told{"a", numbered(asking, leadsOut, packet.ACK, 7, 1001, clock+2, 500), "link", encapOut + "tcp " + seenAs + " > " + outSecond + " A 7 90001 16909062 70"},
	)
	w.silent()
}
