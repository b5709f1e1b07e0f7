package policies

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// parser reads one policy.
type parser struct {
	ref kube.Ref
	say *kube.Report
}

func (p *parser) fault(field, format string, args ...any) {
	p.say.Errorf(p.ref, field, format, args...)
}

// parse reads a NetworkPolicy.
func parse(obj *networkingv1.NetworkPolicy, say *kube.Report) *policy.Policy {
	p := parser{kube.RefOf(obj), say}
	out := &policy.Policy{Namespace: obj.Namespace, Name: obj.Name, Staged: p.staged(obj)}
	out.Ingress.Isolates, out.Egress.Isolates = p.directions(&obj.Spec)
	var ok bool
	if out.Pods, ok = p.selector(&obj.Spec.PodSelector, "spec.podSelector", "the policy is for all pods of its namespace, and permits nobody"); !ok {
		return out // with its rules it would permit what others of its namespace do not
	}
	for i := range obj.Spec.Ingress {
		r := &obj.Spec.Ingress[i]
		out.Ingress.List = append(out.Ingress.List, p.rule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports))
	}
	for i := range obj.Spec.Egress {
		r := &obj.Spec.Egress[i]
		out.Egress.List = append(out.Egress.List, p.rule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports))
	}
	return out
}

// staged reports whether a policy is only watched.
func (p *parser) staged(obj kube.Object) bool {
	staged, ok := kube.Staged(obj)
	if !ok {
		p.fault("metadata.annotations."+kube.PolicyModeAnnotation, "%.40q is unknown, so the policy is enforced: expected audit or enforce", obj.GetAnnotations()[kube.PolicyModeAnnotation])
	}
	return staged
}

// directions returns for which directions the policy is. Without policyTypes it is for ingress, and for egress if it
// has rules for that, as the API server would write.
func (p *parser) directions(spec *networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(spec.PolicyTypes) == 0 {
		return true, len(spec.Egress) > 0
	}
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ingress = true
		case networkingv1.PolicyTypeEgress:
			egress = true
		default:
			p.fault(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is no direction, so the policy is for both: expected Ingress or Egress", t)
			ingress, egress = true, true
		}
	}
	if len(spec.Ingress) > 0 && !ingress {
		p.say.Warnf(p.ref, "spec.ingress", "its rules mean nothing, since spec.policyTypes has no Ingress: add it there, or remove the rules")
	}
	if len(spec.Egress) > 0 && !egress {
		p.say.Warnf(p.ref, "spec.egress", "its rules mean nothing, since spec.policyTypes has no Egress: add it there, or remove the rules")
	}
	return ingress, egress
}

func (p *parser) rule(field, peersField string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) law.Rule {
	r := law.Rule{Everybody: len(peers) == 0, AnyPort: len(ports) == 0}
	for i := range peers {
		if party, ok := p.party(fmt.Sprintf("%s.%s[%d]", field, peersField, i), &peers[i]); ok {
			r.Parties = append(r.Parties, party)
		}
	}
	for i := range ports {
		if one, ok := p.ports(fmt.Sprintf("%s.ports[%d]", field, i), &ports[i]); ok {
			r.Ports = append(r.Ports, one)
		}
	}
	return r
}

func (p *parser) party(field string, peer *networkingv1.NetworkPolicyPeer) (party law.Party, ok bool) {
	const nobody = "it names nobody"
	switch {
	case peer.IPBlock != nil && (peer.PodSelector != nil || peer.NamespaceSelector != nil):
		p.fault(field, "it has an ipBlock and selectors, so %s: have two of them", nobody)
		return party, false
	case peer.IPBlock != nil:
		return p.block(field+".ipBlock", peer.IPBlock)
	case peer.PodSelector == nil && peer.NamespaceSelector == nil:
		p.fault(field, "it is empty, so %s: expected an ipBlock, a podSelector or a namespaceSelector", nobody)
		return party, false
	}
	if ok = true; peer.PodSelector != nil {
		party.Pods, ok = p.selector(peer.PodSelector, field+".podSelector", nobody)
	}
	if ok && peer.NamespaceSelector != nil {
		var namespaces law.Selector
		namespaces, ok = p.selector(peer.NamespaceSelector, field+".namespaceSelector", nobody)
		party.Namespaces = &namespaces
	}
	return party, ok
}

func (p *parser) block(field string, b *networkingv1.IPBlock) (party law.Party, ok bool) {
	if party.Range, ok = p.prefix(field+".cidr", b.CIDR, "so it names nobody"); !ok {
		return party, false
	}
	for i, text := range b.Except {
		at := fmt.Sprintf("%s.except[%d]", field, i)
		e, ok := p.prefix(at, text, "so it names nobody")
		if !ok {
			return party, false // who knows whom it was to exclude
		}
		if !party.Range.Overlaps(e) || e.Bits() < party.Range.Bits() {
			p.say.Warnf(p.ref, at, "%s does not lie in %s", e, party.Range)
		}
		party.Except = append(party.Except, e)
	}
	return party, true
}

// prefix reads a range. otherwise says what follows if it is none.
func (p *parser) prefix(field, text, otherwise string) (netip.Prefix, bool) {
	r, err := netip.ParsePrefix(text)
	if err != nil || r.Addr().Is4In6() {
		p.fault(field, "%q is no range, %s: expected one like 192.0.2.0/24", text, otherwise)
		return netip.Prefix{}, false
	}
	return r.Masked(), true
}

var protocols = map[corev1.Protocol]packet.Proto{corev1.ProtocolTCP: packet.TCP, corev1.ProtocolUDP: packet.UDP, corev1.ProtocolSCTP: packet.SCTP}

func (p *parser) ports(field string, obj *networkingv1.NetworkPolicyPort) (out law.Ports, ok bool) {
	name := corev1.ProtocolTCP
	if obj.Protocol != nil {
		name = *obj.Protocol
	}
	if out.Proto, ok = protocols[name]; !ok {
		p.fault(field+".protocol", "%q is no protocol with ports, so it permits none: expected TCP, UDP or SCTP", name)
		return out, false
	}
	port, last := obj.Port, obj.EndPort
	switch {
	case port == nil && last == nil:
		out.First, out.Last = 0, 1<<16-1
	case port == nil:
		p.fault(field+".endPort", "there is no port that it goes with, so it permits none: set port")
		return out, false
	case port.Type == intstr.String && last != nil:
		p.fault(field+".endPort", "a named port has no end, so it permits none: remove endPort, or write port as a number")
		return out, false
	case port.Type == intstr.String && port.StrVal == "":
		p.fault(field+".port", "the name is empty, so it permits none")
		return out, false
	case port.Type == intstr.String:
		out.Name = port.StrVal
	default:
		end := port.IntVal
		if last != nil {
			end = *last
		}
		if port.IntVal < 1 || end > 1<<16-1 || end < port.IntVal {
			p.fault(field+".port", "%d to %d is no range of ports, so it permits none: expected numbers from 1 to 65535, the smaller one first", port.IntVal, end)
			return out, false
		}
		out.First, out.Last = uint16(port.IntVal), uint16(end)
	}
	return out, true
}

var operators = map[metav1.LabelSelectorOperator]law.Op{
	metav1.LabelSelectorOpIn: law.In, metav1.LabelSelectorOpNotIn: law.NotIn,
	metav1.LabelSelectorOpExists: law.Exists, metav1.LabelSelectorOpDoesNotExist: law.DoesNotExist,
}

// selector reads a selector. otherwise says what follows if it cannot be understood.
func (p *parser) selector(s *metav1.LabelSelector, field, otherwise string) (out law.Selector, ok bool) {
	for k, v := range s.MatchLabels {
		out = append(out, law.Requirement{Key: k, Op: law.In, Values: []string{v}})
	}
	for i := range s.MatchExpressions {
		e := &s.MatchExpressions[i]
		op, known := operators[e.Operator]
		values := op == law.In || op == law.NotIn
		switch {
		case !known:
			p.fault(fmt.Sprintf("%s.matchExpressions[%d].operator", field, i), "%q is unknown, so %s: expected In, NotIn, Exists or DoesNotExist", e.Operator, otherwise)
			return nil, false
		case values != (len(e.Values) > 0):
			p.fault(fmt.Sprintf("%s.matchExpressions[%d].values", field, i), "%s does not go with %d values, so %s: In and NotIn need some, the others have none", e.Operator, len(e.Values), otherwise)
			return nil, false
		}
		out = append(out, law.Requirement{Key: e.Key, Op: op, Values: e.Values})
	}
	slices.SortStableFunc(out, func(a, b law.Requirement) int { return cmp.Compare(a.Key, b.Key) })
	return out, true
}
