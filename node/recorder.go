package node

import (
	"math"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/observe"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/dns"
)

// recorder has the node's parts write into the flow log. The zero value records nothing.
type recorder struct {
	log  *flowlog.Log
	path *observe.Path
}

func (n *Node) newRecorder() recorder {
	if n.held.FlowLog == nil {
		return recorder{}
	}
	return recorder{n.held.FlowLog, observe.New(n.held.FlowLog, n.held.Flows.Stats().Capacity)}
}

// observer is netstack.Options.Observer.
func (r *recorder) observer() netstack.Observer {
	if r.path == nil {
		return nil
	}
	return r.path
}

// answered is dns.Options.Answered.
func (r *recorder) answered() func(*dns.Answered) {
	if r.log == nil {
		return nil
	}
	log := r.log
	return func(a *dns.Answered) {
		rec := flowlog.Record{
			Event: flowlog.Resolved, Proto: packet.UDP, Src: packet.EndpointFrom(a.Client), Toward: flowlog.Agent,
			Code: uint16(a.Rcode), Question: a.Type, Answers: uint16(min(a.Records, math.MaxUint16)),
			Wait: uint32(min(a.Took.Microseconds(), math.MaxUint32)),
		}
		if a.TCP {
			rec.Proto = packet.TCP
		}
		rec.ToSrc, rec.Dst.Port, rec.ToDst.Port = rec.Src, dnsPort, dnsPort
		rec.SetName(a.Name)
		log.Write(&rec)
	}
}

func (r *recorder) counters() counter.List {
	if r.log == nil {
		return nil
	}
	s := r.log.Stats()
	return counter.List{
		counter.One(counter.Total, "tapestry_flow_records_total", "Events of flows that were recorded; the node keeps the last of them.", s.Written),
		counter.By(counter.Total, "tapestry_flow_records_missed_total",
			"Events of flows that were not recorded, as two writers met (collided) or one sender's packets were refused or dropped too often (spared).",
			"why", map[string]uint64{"collided": s.Missed, "spared": r.path.Spared()}),
	}
}

// Rule says which rule of a policy decided, by the number that a record of the flow log has; "" if there is no such
// rule any more.
func (n *Node) Rule(rule uint64) string {
	if t := n.policy.Load(); t != nil && rule != 0 {
		return t.Describe(rule)
	}
	return ""
}

// Peer returns the name of another node, by the ID that a record of the flow log has; "" if there is none.
func (n *Node) Peer(id uint64) string {
	for i, peers := 0, n.Config().Netstack.Peers; i < len(peers); i++ {
		if peers[i].ID == id {
			return peers[i].Name
		}
	}
	return ""
}

// Service returns the Service, as "namespace/name", that clients reach at an address and port: pods and processes of
// nodes if inside is set, else those that come by a host socket. "" for none.
func (n *Node) Service(at packet.Endpoint, proto packet.Proto, inside bool) string {
	t, find := packet.Tuple{Dst: at.Addr, DstPort: at.Port, Proto: proto}, n.Table().ServiceAt
	if !inside {
		find = n.Table().ServiceOnHost
	}
	if s := find(&t); s != nil {
		return s.Namespace + "/" + s.Name
	}
	return ""
}
