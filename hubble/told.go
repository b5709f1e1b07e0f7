package hubble

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tapestry.dev/tapestry/localapi"
)

// Log is a Source that reads what an agent tells of flows.
type Log struct {
	// Query reads events; Counts returns how many there have been, and how many are kept at most. Both are required.
	Query  func(localapi.FlowQuery) localapi.FlowReader
	Counts func() (seen, most uint64)
}

// Stats implements Source.
func (l *Log) Stats() (seen, most uint64) { return l.Counts() }

// Read implements Source.
func (l *Log) Read(past bool) Reader {
	q := localapi.FlowQuery{Follow: true}
	if past {
		_, most := l.Counts()
		q.Last = int(most)
	}
	return told{l.Query(q)}
}

type told struct{ localapi.FlowReader }

func (t told) Next() (Flow, bool) { return of(t.FlowReader.Next()) }

func (t told) Wait(ctx context.Context) (Flow, bool) { return of(t.FlowReader.Wait(ctx)) }

func of(f localapi.Flow, ok bool) (Flow, bool) {
	if !ok {
		return Flow{}, false
	}
	return Of(&f), true
}

// Of says of an event what Hubble would. It is pure.
//
// Hubble sees packets, so a flow that began is its first packet, and one that ended its last. An answer of DNS comes
// from the server, so its ends are the other way round.
func Of(f *localapi.Flow) Flow {
	h := Flow{
		Time: f.Time, Node: f.Node, Verdict: verdicts[f.Verdict], Reply: Request,
		Source: endOf(&f.Source, f.Node), Destination: endOf(&f.Destination, f.Node), Translated: f.As.Addr(),
		Protocol: protocolOf(f), Summary: summaryOf(f),
	}
	h.Destination.Service.Namespace, h.Destination.Service.Name, _ = strings.Cut(f.Service, "/")
	var rule string
	if f.Policy != "" {
		var p Policy
		p, rule = policyOf(f.Policy)
		h.Policies = []Policy{p}
	}
	h.Direction = directionOf(f, rule)
	h.Type, h.Point = Trace, pointOf(f)
	switch f.Event {
	case "begun":
		h.Flags = SYN
		if f.Policy != "" {
			h.Type, h.Point = PolicyVerdict, 0
		}
	case "ended":
		h.Flags = flagsOf[f.State]
	case "refused", "dropped":
		h.Reason = reasonOf(f.Reason)
		h.Type, h.Point = Drop, int32(h.Reason)
		if f.Event == "dropped" {
			h.Reply = ReplyUnknown // a packet of either direction
		}
	case "resolved", "served":
		h.Type, h.Point, h.Latency = AccessLog, 0, f.AnswerTime
		h.Source, h.Destination, h.Reply = h.Destination, h.Source, Answer
		if f.DNS != nil {
			h.DNS = dnsOf(f.DNS)
		}
	}
	if h.Protocol != TCP {
		h.Flags = 0
	}
	return h
}

var verdicts = map[localapi.Verdict]Verdict{localapi.Forwarded: Forwarded, localapi.Lost: Dropped, localapi.Audited: Audited}

// flagsOf are the flags of the last packet by the states of flow.State.
var flagsOf = map[string]TCPFlags{"TIME_WAIT": FIN | ACK, "FIN_ORIGINAL": FIN | ACK, "FIN_REPLY": FIN | ACK, "RESET": RST}

// reasons are Hubble's for those of netstack.DropReason. What has no counterpart is Unroutable or InvalidPacket,
// whichever is nearer; the Summary has our own.
var reasons = map[string]Reason{
	"malformed": InvalidPacket, "bad-offload": InvalidPacket, "not-ip": UnsupportedL3, "multicast": MulticastHandled, "spoofed": InvalidSourceIP, "spoofed-peer": InvalidSourceIP,
	"bad-encap": ProhibitedEncap, "not-ready": NoConfiguration, "no-endpoints": NoBackend, "unknown-port": NoBackend, "local-policy": NoBackend,
	"source-range": OutsideSourceRange, "backend-gone": NoBackend, "no-route": Unroutable, "too-big": NoFragments, "flows-full": NoConnectionEntry,
	"no-source-port": NoPortForNAT, "lost-fragment": NoFirstFragment, "tap-down": EndpointNotReady, "host-busy": RateLimited, "over-limit": RateLimited,
	"denied": PolicyDenied, "link-only": ForbiddenICMPv6, "stray-error": InvalidPacket, "egress-denied": PolicyDeny, "not-exposed": Unroutable,
	"over-packets": RateLimited, "over-flows": RateLimited, "no-exit": NoEgressGateway, "retried": NoBackend, "moving": NoBackend,
}

// reasonOf returns the number for a reason; Unroutable for one that it does not know.
func reasonOf(text string) Reason {
	if r, ok := reasons[text]; ok {
		return r
	}
	return Unroutable
}

func protocolOf(f *localapi.Flow) Protocol {
	switch f.Protocol {
	case "tcp":
		return TCP
	case "udp":
		return UDP
	case "sctp":
		return SCTP
	case "icmp":
		return ICMPv4
	case "icmpv6":
		return ICMPv6
	}
	n, _ := strconv.ParseUint(f.Protocol, 10, 8)
	return Protocol(n)
}

// endOf says who was at an end, as seen from a node.
func endOf(e *localapi.FlowEnd, node string) End {
	end := End{Port: e.Port}
	if a := e.Address.Unmap(); a.IsValid() && !a.IsUnspecified() {
		end.Addr = a
	}
	if e.Pod != "" {
		end.Namespace, end.Pod = e.Namespace, e.Pod
		for k, v := range e.Labels {
			end.Labels = append(end.Labels, "k8s:"+k+"="+v)
		}
		end.Labels = append(end.Labels, "k8s:io.kubernetes.pod.namespace="+e.Namespace)
		slices.Sort(end.Labels)
		return end
	}
	switch e.Kind {
	case "node":
		end.Labels = []string{"reserved:host"}
		if e.Node != "" && e.Node != node {
			end.Labels = []string{"reserved:remote-node"}
		}
	case "agent":
		end.Labels = []string{"reserved:host"}
	case "outside":
		end.Labels = []string{"reserved:world"}
	default:
		end.Labels = []string{"reserved:unknown"}
	}
	return end
}

// own reports whether an end is a pod of the node that tells.
func own(f *localapi.Flow, e *localapi.FlowEnd) bool { return e.Kind == "pod" && e.Node == f.Node }

// directionOf is that of the rule that decided, else as seen from the pod of this node, the source before the
// destination.
func directionOf(f *localapi.Flow, rule string) Direction {
	switch {
	case strings.HasPrefix(rule, "ingress"):
		return Ingress
	case strings.HasPrefix(rule, "egress"), own(f, &f.Source):
		return Egress
	case own(f, &f.Destination):
		return Ingress
	}
	return 0
}

// pointOf says where a packet went.
func pointOf(f *localapi.Flow) int32 {
	switch d := &f.Destination; {
	case own(f, d):
		return ToEndpoint
	case d.Kind == "agent":
		return ToProxy
	case d.Kind == "node" && (d.Node == "" || d.Node == f.Node):
		return ToHost
	case d.Kind == "pod" || d.Kind == "node":
		return ToOverlay
	case d.Kind == "outside":
		return ToNetwork
	}
	return ToStack
}

// policyOf reads "NetworkPolicy shop/web ingress[0]", as policy.Table.Describe writes it.
func policyOf(text string) (p Policy, rule string) {
	kind, rest, _ := strings.Cut(text, " ")
	name, rule, _ := strings.Cut(rest, " ")
	p = Policy{Kind: kind, Name: name}
	if namespace, name, ok := strings.Cut(name, "/"); ok {
		p.Namespace, p.Name = namespace, name
	}
	return p, rule
}

var codes = map[string]uint32{"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5}

func dnsOf(d *localapi.FlowDNS) *DNS {
	code, ok := codes[d.Code]
	if !ok {
		n, _ := strconv.ParseUint(d.Code, 10, 16)
		code = uint32(n)
	}
	return &DNS{Query: d.Name, Types: []string{d.Type}, Code: code}
}

// summaryOf is what people are shown. It begins as Hubble's do, and has what Hubble has no field for.
func summaryOf(f *localapi.Flow) string {
	text := strings.ToUpper(f.Protocol)
	switch f.Event {
	case "begun":
		if f.Protocol == "tcp" {
			text = "TCP Flags: SYN"
		}
	case "ended":
		text += fmt.Sprintf(" ended after %s; %d bytes sent, %d received", f.Duration.Round(time.Millisecond), f.SentBytes, f.ReceivedBytes)
		if f.State != "" {
			text += "; " + f.State
		}
		if f.Retransmits > 0 {
			text += fmt.Sprintf("; %d retransmissions", f.Retransmits)
		}
	case "refused", "dropped":
		text += " " + f.Event + ": " + f.Reason
	case "resolved":
		if d := f.DNS; d != nil {
			text = fmt.Sprintf("DNS Answer %s (%s %s), %d records", d.Code, d.Name, d.Type, d.Answers)
		}
	}
	if f.Policy != "" {
		text += ", by " + f.Policy
	}
	return text
}
