package explain

import (
	"fmt"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
)

// Verdict says in a word what a verdict is.
func Verdict(v policy.Verdict) string {
	return [...]string{"permitted", "denied", "dropped", "not decided yet"}[v]
}

// Protocol returns the name of a protocol.
func Protocol(p packet.Proto) string {
	for name, proto := range protocols {
		if proto == p {
			return name
		}
	}
	if p == packet.ICMPv4 || p == packet.ICMPv6 {
		return "ICMP"
	}
	return fmt.Sprintf("protocol %d", p)
}

// Change says what would have to change for a direction to permit what is asked; "" if it does. rule describes the rule
// that decides.
func Change(d *policy.Direction, egress bool, q *Question, rule string) string {
	direction, other := "ingress", q.From
	if egress {
		direction, other = "egress", q.To
	}
	switch d.Verdict {
	case policy.Unknown:
		if d.Pod != nil && d.Pod.Vague {
			return "the pod has too many labels to be judged: remove some"
		}
		return "this node does not know yet who is at the other end, or the labels of its Namespace"
	case policy.Drop:
		return fmt.Sprintf("%s denies it: change that rule, or let a rule that comes before it Accept it, or Pass it", rule)
	case policy.Deny:
		var names []string
		for _, one := range d.Policies {
			if one.Network != nil {
				names = append(names, one.String())
			}
		}
		return fmt.Sprintf("no rule permits it: add one for %s, port %d/%s, to spec.%s of %s", other, q.Port, Protocol(q.Proto), direction, strings.Join(names, " or "))
	}
	return ""
}
