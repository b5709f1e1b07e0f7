package policies

import (
	"fmt"
	"strings"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// A rule that is not understood fails closed, as the API says: with Accept it is for nobody, with Deny and Pass it
// denies everybody. Of a policy that is not understood besides, each rule with Pass denies whom it names.
const (
	closesRule   = "so the rule is for nobody if its action is Accept, and else denies everything"
	closesPolicy = "so its rules with Accept are for nobody, and those with Pass deny"
)

// maxPriority is the largest priority that the API allows.
const maxPriority = 1000

// parseCluster reads a ClusterNetworkPolicy.
func parseCluster(obj *policyapi.ClusterNetworkPolicy, say *kube.Report) *tiers.Policy {
	p, s := parser{kube.RefOf(obj), say}, &obj.Spec
	out := &tiers.Policy{Name: obj.Name, Priority: s.Priority, Staged: p.staged(obj)}
	ok := p.isRead("spec", s.Unread, closesPolicy)
	switch s.Tier {
	case policyapi.Admin:
	case policyapi.Baseline:
		out.Tier = tiers.Baseline
	default:
		p.fault("spec.tier", "%q is unknown, and taken for Admin, %s: expected Admin or Baseline", s.Tier, closesPolicy)
		ok = false
	}
	if s.Priority < 0 || s.Priority > maxPriority {
		p.say.Warnf(p.ref, "spec.priority", "%d is not from 0 to %d", s.Priority, maxPriority)
	}
	if namespaces, pods, known := p.subject(&s.Subject); known {
		out.Namespaces, out.Pods = namespaces, pods
	} else {
		ok = false // and it is for all pods
	}
	for i := range s.Ingress {
		r := &s.Ingress[i]
		out.Ingress = append(out.Ingress, p.clusterRule(fmt.Sprintf("spec.ingress[%d]", i), r, peers{"from", r.From, "to", r.To}, ok))
	}
	for i := range s.Egress {
		r := &s.Egress[i]
		out.Egress = append(out.Egress, p.clusterRule(fmt.Sprintf("spec.egress[%d]", i), r, peers{"to", r.To, "from", r.From}, ok))
	}
	return out
}

// isRead tells of what was not understood when an object was decoded.
func (p *parser) isRead(field string, unread []string, otherwise string) bool {
	if len(unread) == 0 {
		return true
	}
	p.fault(field, "%s is not understood, %s: remove it, or upgrade Tapestry", strings.Join(unread[:min(len(unread), 4)], ", "), otherwise)
	return false
}

func (p *parser) subject(s *policyapi.Subject) (namespaces, pods law.Selector, ok bool) {
	const otherwise = "so the policy is for all pods, and its rules with Accept are for nobody, and those with Pass deny"
	switch {
	case (s.Namespaces == nil) == (s.Pods == nil):
		p.fault("spec.subject", "it has neither namespaces nor pods, or both, %s: expected one of them", otherwise)
		return nil, nil, false
	case s.Namespaces != nil:
		namespaces, ok = p.selector(s.Namespaces, "spec.subject.namespaces", otherwise)
		return namespaces, nil, ok
	}
	return p.namespaced(s.Pods, "spec.subject.pods", otherwise)
}

func (p *parser) namespaced(s *policyapi.NamespacedPod, field, otherwise string) (namespaces, pods law.Selector, ok bool) {
	if namespaces, ok = p.selector(&s.NamespaceSelector, field+".namespaceSelector", otherwise); ok {
		pods, ok = p.selector(&s.PodSelector, field+".podSelector", otherwise)
	}
	return namespaces, pods, ok
}

// peers are the other ends of a rule, and where there must not be any.
type peers struct {
	field      string
	list       []policyapi.Peer
	otherField string
	other      []policyapi.Peer
}

var actions = map[string]tiers.Action{policyapi.ActionAccept: tiers.Permit, policyapi.ActionDeny: tiers.Deny, policyapi.ActionPass: tiers.Pass}

// clusterRule reads a rule of a policy, of which the rest is understood or not.
func (p *parser) clusterRule(field string, r *policyapi.Rule, who peers, understood bool) tiers.Rule {
	out := tiers.Rule{Rule: law.Rule{AnyPort: len(r.Protocols) == 0}}
	ok := p.isRead(field, r.Unread, closesRule)
	var known bool
	if out.Action, known = actions[r.Action]; !known {
		p.fault(field+".action", "%q is unknown, so it is taken for Deny: expected Accept, Deny or Pass", r.Action)
		out.Action = tiers.Deny
	}
	if len(who.list) == 0 || len(who.other) > 0 {
		p.fault(field, "it must have %s, and no %s, %s", who.field, who.otherField, closesRule)
		ok = false
	}
	for i := range who.list {
		parties, known := p.peer(fmt.Sprintf("%s.%s[%d]", field, who.field, i), &who.list[i], who.field == "to")
		out.Parties, ok = append(out.Parties, parties...), ok && known
	}
	for i := range r.Protocols {
		ports, known := p.protocol(fmt.Sprintf("%s.protocols[%d]", field, i), &r.Protocols[i])
		out.Ports, ok = append(out.Ports, ports...), ok && known
	}
	switch {
	case ok && understood:
		return out
	case out.Action == tiers.Permit:
		return tiers.Rule{Action: tiers.Permit}
	case ok:
		out.Action = tiers.Deny
		return out
	}
	return denyAll
}

var denyAll = tiers.Rule{Action: tiers.Deny, Rule: law.Rule{Everybody: true, AnyPort: true}}

// peer reads a peer, which must have one field. Rules of ingress name pods alone.
func (p *parser) peer(field string, peer *policyapi.Peer, egress bool) (parties []law.Party, ok bool) {
	fields := []bool{peer.Namespaces != nil, peer.Pods != nil, peer.Nodes != nil, len(peer.Networks) > 0, len(peer.DomainNames) > 0}
	n := 0
	for _, set := range fields {
		n += which(set)
	}
	var party law.Party
	switch {
	case n != 1:
		p.fault(field, "it has %d of the fields that Tapestry knows of a peer, %s: expected one", n, closesRule)
		return nil, false
	case len(peer.DomainNames) > 0:
		p.fault(field+".domainNames", "names of domains are not served yet, %s: name networks", closesRule)
		return nil, false
	case !egress && (peer.Nodes != nil || len(peer.Networks) > 0):
		p.fault(field, "rules of ingress name namespaces or pods, %s", closesRule)
		return nil, false
	case peer.Namespaces != nil:
		var namespaces law.Selector
		namespaces, ok = p.selector(peer.Namespaces, field+".namespaces", closesRule)
		party.Namespaces = &namespaces
	case peer.Pods != nil:
		var namespaces law.Selector
		namespaces, party.Pods, ok = p.namespaced(peer.Pods, field+".pods", closesRule)
		party.Namespaces = &namespaces
	case peer.Nodes != nil:
		party.Nodes = true
		party.Pods, ok = p.selector(peer.Nodes, field+".nodes", closesRule)
	default:
		return p.networks(field+".networks", peer.Networks)
	}
	return []law.Party{party}, ok
}

// which returns 1 for true.
func which(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *parser) networks(field string, list []string) (parties []law.Party, ok bool) {
	ok = true
	for i, text := range list {
		r, known := p.prefix(fmt.Sprintf("%s[%d]", field, i), text, closesRule)
		parties, ok = append(parties, law.Party{Range: r}), ok && known
	}
	return parties, ok
}

// protocol reads a protocol with its ports. A port's name may be that of a port of any protocol.
func (p *parser) protocol(field string, obj *policyapi.Protocol) (ports []law.Ports, ok bool) {
	n := which(obj.DestinationNamedPort != "")
	proto, at := packet.Proto(0), (*policyapi.Ports)(nil)
	for _, one := range [...]struct {
		proto packet.Proto
		ports *policyapi.Ports
	}{{packet.TCP, obj.TCP}, {packet.UDP, obj.UDP}, {packet.SCTP, obj.SCTP}} {
		if one.ports != nil {
			proto, at = one.proto, one.ports
			n++
		}
	}
	switch {
	case n != 1:
		p.fault(field, "it has %d of the fields that Tapestry knows of a protocol, %s: expected one", n, closesRule)
		return nil, false
	case at == nil:
		for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.SCTP} {
			ports = append(ports, law.Ports{Proto: proto, Name: obj.DestinationNamedPort})
		}
		return ports, true
	case at.DestinationPort == nil:
		return []law.Ports{{Proto: proto, Last: 1<<16 - 1}}, true
	}
	d := at.DestinationPort
	first, last := d.Number, d.Number
	if d.Range != nil {
		first, last = d.Range.Start, d.Range.End
	}
	if (d.Range != nil) == (d.Number != 0) || first < 1 || last > 1<<16-1 || last < first {
		p.fault(field+".destinationPort", "%d to %d is no port, %s: expected a number or a range, from 1 to 65535", first, last, closesRule)
		return nil, false
	}
	return []law.Ports{{Proto: proto, First: uint16(first), Last: uint16(last)}}, true
}

// closeCluster returns what stands for a policy that exceeds tiers.Most: where it has rules it denies its pods
// everything.
func closeCluster(p *tiers.Policy) *tiers.Policy {
	out := *p
	for _, rules := range []*[]tiers.Rule{&out.Egress, &out.Ingress} {
		if len(*rules) > 0 {
			*rules = []tiers.Rule{denyAll}
		}
	}
	return &out
}
