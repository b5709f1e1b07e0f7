package recall

import (
	"strconv"
	"time"

	"tapestry.dev/tapestry/kube/whois"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services/dns"
)

// resolve says of a record what was with whom.
func (s *Source) resolve(r *flowlog.Record) localapi.Flow {
	at, book := s.o.Log.At(r), s.names()
	f := localapi.Flow{
		Time: at, Node: s.o.Node, Event: r.Event.String(), Verdict: verdict(r), Reason: netstack.DropReason(r.Reason).String(), Protocol: protocol(r.Proto),
		Source: endOf(r.Src, r.From, book, at), Destination: endOf(r.ToDst, r.Toward, book, at),
		Frontend: addrPort(r.Dst, r.ToDst), As: addrPort(r.ToSrc, r.Src),
		SentBytes: r.Bytes[flow.Original], SentPackets: r.Packets[flow.Original], ReceivedBytes: r.Bytes[flow.Reply], ReceivedPackets: r.Packets[flow.Reply],
		Duration: r.Duration, AnswerTime: time.Duration(r.Wait) * time.Microsecond, Retransmits: r.Retransmits,
		Relayed: r.Flags&flowlog.Relayed != 0, Earlier: r.Flags&flowlog.Earlier != 0,
	}
	if n := s.o.Network(); n != nil {
		f.Policy, f.Via = n.Rule(r.Rule), n.Peer(r.Peer)
		f.Service = n.Service(r.Dst, r.Proto, r.Flags&flowlog.Relayed == 0)
	}
	switch r.Event {
	case flowlog.Ended:
		f.State = r.State.String()
	case flowlog.Resolved:
		f.DNS = &localapi.FlowDNS{Name: r.NameText(), Type: dns.TypeName(r.Question), Code: dns.CodeName(r.Code), Answers: r.Answers}
	}
	return f
}

func verdict(r *flowlog.Record) localapi.Verdict {
	switch {
	case r.Event == flowlog.Refused || r.Event == flowlog.Dropped:
		return localapi.Lost
	case r.Flags&flowlog.Audited != 0:
		return localapi.Audited
	}
	return localapi.Forwarded
}

func protocol(p packet.Proto) string {
	switch p {
	case packet.TCP:
		return "tcp"
	case packet.UDP:
		return "udp"
	case packet.SCTP:
		return "sctp"
	case packet.ICMPv4:
		return "icmp"
	case packet.ICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}

// endOf says who was at an end of a flow. What the node saw then counts more than what the cluster's objects say now.
func endOf(e packet.Endpoint, seen flowlog.End, book *whois.Book, at time.Time) localapi.FlowEnd {
	end := localapi.FlowEnd{Address: e.Addr.Netip(), Port: e.Port}
	switch seen {
	case flowlog.Agent:
		end.Kind = "agent"
		return end
	case flowlog.Nobody:
		end.Kind = "nobody"
		return end
	case flowlog.Outside:
		end.Kind = "outside"
	case flowlog.Pod:
		end.Kind = "pod"
	case flowlog.Host:
		end.Kind = "node"
	}
	w := book.At(end.Address, at)
	if w == nil {
		return end
	}
	end.Namespace, end.Pod, end.Node, end.Labels = w.Namespace, w.Pod, w.Node, w.Labels
	if end.Kind = "node"; w.Pod != "" {
		end.Kind = "pod"
	}
	return end
}
