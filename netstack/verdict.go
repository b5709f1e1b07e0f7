package netstack

// Verdict is what the pipeline did with a packet. Every packet gets exactly one. A fragment that was Held gets another
// one when it waits no longer. Of the pieces of a packet that another node cut, all but the last are Held and get no
// other; the last one gets the packet's. A SYN that goes to another backend, since one refused it, gets another one
// each time.
type Verdict uint8

// The verdicts.
const (
	Dropped  Verdict = iota // see DropReason
	ToTAP                   // written to a pod's TAP, or the host's
	ToLink                  // handed to the Link for another node
	ToStack                 // ends in this node's stack
	Answered                // consumed, and answered by the pipeline itself (ARP, refusals, resets)
	Held                    // waits for the first fragment of its datagram, or for the other pieces of its packet
	Noted                   // a notice, by which a pod's node tells its egress gateway of a flow
	numVerdicts
)

func (v Verdict) String() string {
	return [...]string{"dropped", "to-tap", "to-link", "to-stack", "answered", "held", "noted"}[v]
}

// DropReason says why a packet was dropped. The text is the log key and metric label.
type DropReason uint8

// The reasons.
const (
	NotDropped   DropReason = iota
	Malformed               // truncated or inconsistent headers, or a source route
	BadOffload              // the virtio-net header disagrees with the packet
	NotIP                   // neither IP nor ARP, or ARP that wants no answer
	Multicast               // multicast and broadcast are not forwarded
	Spoofed                 // source MAC or address is not the attachment's own
	SpoofedPeer             // source is outside the peer's prefixes
	BadEncap                // encapsulated packet that decapsulation rules refuse
	NotReady                // no Config yet
	NoEndpoints             // Service without endpoints; refused
	UnknownPort             // Service address without such a port; refused
	LocalPolicy             // traffic policy Local and no local endpoint
	SourceRange             // the Service's loadBalancerSourceRanges exclude the client
	BackendGone             // connection whose backend is gone; reset
	NoRoute                 // nobody owns the destination, or the sender may not reach it
	TooBig                  // larger than the path, must not be fragmented; answered with ICMP
	FlowsFull               // no room in the flow table
	NoSourcePort            // no free port to tell two flows apart; refused
	LostFragment            // later fragment whose first did not come in time, or for which there was no room
	TAPDown                 // the TAP did not take the packet
	HostBusy                // the host's socket had no room, or no socket was to be had
	OverLimit               // the attachment is sent more than its limit allows
	Denied                  // the Policy does not permit the flow
	LinkOnly                // meant for one link only: neighbour discovery, router discovery, redirects
	StrayError              // an ICMP error about a packet that its sender did not get
	EgressDenied            // the node lets no pod go there (Config.DenyEgress)
	NotExposed              // a client outside may use addresses of load balancers only, and this is none
	OverPackets             // the pod sends more packets in a second than its quota allows
	OverFlows               // the pod begins more flows in a second than its quota allows
	NoExit                  // the way by which the pod's packets are to leave is not there, or another one now
	Retried                 // a backend refused the connection or gave it up, and the client's SYN goes to another one
	Moving                  // came while a connection is taken over by another backend; who sent it will send it again
	numDropReasons
)

var dropReasonText = [numDropReasons]string{
	"", "malformed", "bad-offload", "not-ip", "multicast", "spoofed", "spoofed-peer", "bad-encap", "not-ready",
	"no-endpoints", "unknown-port", "local-policy", "source-range", "backend-gone", "no-route", "too-big", "flows-full", "no-source-port",
	"lost-fragment", "tap-down", "host-busy", "over-limit",
	"denied", "link-only", "stray-error", "egress-denied", "not-exposed", "over-packets", "over-flows", "no-exit", "retried", "moving",
}

func (r DropReason) String() string { return dropReasonText[r] }

// refusesFlow reports whether the reason is one for which a flow may not be, and not only the packet.
func (r DropReason) refusesFlow() bool {
	switch r {
	case NoEndpoints, UnknownPort, LocalPolicy, SourceRange, BackendGone, NoRoute, FlowsFull, NoSourcePort, Denied, EgressDenied, NotExposed, OverFlows, NoExit:
		return true
	}
	return false
}
