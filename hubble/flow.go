package hubble

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

// Flow is one event of a flow, as Hubble sees such events. Fields that say nothing of it are zero.
type Flow struct {
	Time time.Time
	Node string
	// Verdict is what happened to the packet. Reason says why it was Dropped.
	Verdict   Verdict
	Reason    Reason
	Direction Direction
	// Source sent the packet, Destination is for whom it is, after translation. For an answer (Reply is Answer) that is
	// the other way round than for the flow.
	Source, Destination End
	// Translated is the source's address after translation.
	Translated netip.Addr
	Protocol   Protocol
	Flags      TCPFlags
	// Type is the kind of event, and Point says more: where a packet was on its way (Trace), or the Reason (Drop).
	Type    EventType
	Point   int32
	Reply   Reply
	DNS     *DNS
	HTTP    *HTTP
	Latency time.Duration // to the answer, with DNS and HTTP
	// Policies decided, in the Direction.
	Policies []Policy
	// Summary is what people are shown.
	Summary string
}

// End is who was at an end of a flow.
type End struct {
	Addr netip.Addr
	Port uint16
	// Namespace, Pod and Workload are those of a pod.
	Namespace, Pod string
	Workload       Workload
	// Labels are "k8s:key=value" of a pod, and "reserved:..." of what is none; sorted.
	Labels []string
	// Service is the one whose address or backend this is.
	Service Name
	// Names are those by which the address was asked for.
	Names []string
}

// Name is that of an object in a namespace.
type Name struct{ Namespace, Name string }

// Workload is what a pod belongs to.
type Workload struct{ Kind, Name string }

// Policy is a policy that has decided.
type Policy struct{ Kind, Namespace, Name string }

// DNS is an answer of DNS.
type DNS struct {
	Query string // the name asked for
	Types []string
	Code  uint32 // RCODE
	IPs   []string
}

// HTTP is an answer of HTTP.
type HTTP struct {
	Code              uint32
	Method, URL, Form string // Form is "HTTP/1.1" and the like
}

// Protocol is a number of IANA.
type Protocol uint8

// The protocols that Hubble can show.
const (
	ICMPv4 Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

// TCPFlags are flags of a segment, by the numbers of their fields in the message.
type TCPFlags uint16

// The flags.
const (
	FIN TCPFlags = 1 << (1 + iota)
	SYN
	RST
	PSH
	ACK
)

// Verdict is a flow.Verdict.
type Verdict uint32

// The verdicts.
const (
	Forwarded Verdict = 1
	Dropped   Verdict = 2
	Audited   Verdict = 4
)

// Direction is a flow.TrafficDirection, as seen from the pod at which the event was seen.
type Direction uint32

// The directions.
const (
	Ingress Direction = 1
	Egress  Direction = 2
)

// EventType is the type of a flow.CiliumEventType.
type EventType int32

// The types of events.
const (
	Drop          EventType = 1
	Trace         EventType = 4
	PolicyVerdict EventType = 5
	AccessLog     EventType = 129
)

// The points of a Trace.
const (
	ToEndpoint int32 = 0
	ToProxy    int32 = 1
	ToHost     int32 = 2
	ToStack    int32 = 3
	ToOverlay  int32 = 4
	ToNetwork  int32 = 11
)

// Reply says whether a packet is an answer.
type Reply uint8

// The values.
const (
	ReplyUnknown Reply = iota
	Request
	Answer
)

// Reason is a flow.DropReason. Its numbers are fixed; reasons has ours.
type Reason uint32

// The reasons that have a counterpart here.
const (
	NoReason           Reason = 0
	InvalidSourceIP    Reason = 132
	PolicyDenied       Reason = 133
	InvalidPacket      Reason = 134
	UnsupportedL3      Reason = 139
	Unroutable         Reason = 151
	NoConnectionEntry  Reason = 155
	NoFragments        Reason = 157
	NoBackend          Reason = 158
	NoConfiguration    Reason = 165
	NoPortForNAT       Reason = 167
	ProhibitedEncap    Reason = 170
	NoFirstFragment    Reason = 175
	ForbiddenICMPv6    Reason = 176
	OutsideSourceRange Reason = 177
	PolicyDeny         Reason = 181
	NoEgressGateway    Reason = 194
	RateLimited        Reason = 198
	MulticastHandled   Reason = 201
	EndpointNotReady   Reason = 203
)

// The identities that Hubble knows by number (reserved).
const (
	hostIdentity   = 1
	worldIdentity  = 2
	remoteIdentity = 6
	firstIdentity  = 1 << 16 // pods have numbers from here on
)

// identity returns a number for all that have the same labels: the reserved ones, and for pods a hash of 24 bits, which
// is the same on all nodes and is good for telling pods apart at a glance, and for nothing else.
func (e *End) identity() uint32 {
	if e.Pod == "" {
		switch {
		case slices.Contains(e.Labels, "reserved:host"):
			return hostIdentity
		case slices.Contains(e.Labels, "reserved:remote-node"):
			return remoteIdentity
		case slices.Contains(e.Labels, "reserved:world"):
			return worldIdentity
		}
		return 0
	}
	h := fnv.New32a()
	for _, l := range e.Labels {
		h.Write([]byte(l))
		h.Write([]byte{0})
	}
	return firstIdentity + h.Sum32()%(1<<24-firstIdentity)
}
