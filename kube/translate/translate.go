package translate

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/advertise"
	"tapestry.dev/tapestry/kube/egress"
	"tapestry.dev/tapestry/kube/policies"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// Translator translates successive snapshots of a cluster. Every Result equals that of the function Translate, but
// what follows from objects that were in the last snapshot too (the same pointers) is not computed again. It remembers
// one thing besides: which pods of the node have terminated, whose EndpointSlices may not say so yet. The zero value is
// ready. It is not safe for concurrent use.
type Translator struct {
	options  Options      // those of the last Result
	begun    bool         // there was a Result
	objs     kube.Objects // the last snapshot, sorted
	triggers []time.Time

	nodes    nodeStage
	ranges   rangeStage
	services serviceStage
	pods     podStage
	ingress  ingressStage
	egress   egress.Stage
	policies policies.Stage
	announce advertise.Stage
	watched  watchStage
}

// Translate returns the configurations that follow from objs for the node of o.
func Translate(objs kube.Objects, o Options) Result { return new(Translator).Translate(objs, o) }

// Translate returns the configurations that follow from objs for the node of o. Each stage takes what it needs from
// the stages before it.
func (t *Translator) Translate(objs kube.Objects, o Options) Result {
	if t.options != o {
		leaving := t.services.leaving
		*t = Translator{options: o}
		t.services.leaving = leaving
	}
	objs = objs.Sorted(&t.objs)
	say := new(kube.Report)
	announced := t.ranges.of(objs.ServiceCIDRs, say)
	nodes := t.nodes.of(objs.Nodes, o, say)
	ranges := t.ranges.with(announced, nodes.services, say)
	leave := t.egress.Of(o.Node, &objs, ranges, say)
	served := t.services.of(&objs, around{site{o, nodes.self.topologyZone}, announced, ranges, nodes, leave.Pods.Addresses}, say)
	pods := t.pods.of(objs.Pods, o, say)
	routes := t.ingress.of(&objs, say)
	plan := t.announce.Of(o.Node, &objs, served.list, leave.Links, say)
	dnsAddrs := dnsAddrs(served.names, announced)

	r := Result{Netstack: nodes.netstack, Overlay: t.watched.of(nodes.overlay, plan), Ingress: routes, Announce: plan, Leaving: nodes.self.leaving}
	r.Netstack.ServiceCIDRs, r.Netstack.LocalAddrs = ranges, dnsAddrs
	r.Services = services.Config{
		Node: o.Node, NodeAddrs: nodes.addrs, NodeNames: nodes.names, NoNodePorts: nodes.portless, OwnAddrs: nodes.self.addrs,
		ServiceCIDRs: ranges, ClusterCIDRs: nodes.netstack.ClusterCIDRs, DNSAddrs: dnsAddrs,
		Services: served.list, Pods: pods.alive, HostPorts: pods.hostPorts,
	}
	r.Quotas, r.Exits = pods.quotas, leave.Pods
	r.Policy = t.policies.Of(&objs, policies.Around{Node: o.Node, Net: &nodes.netstack, DNS: dnsAddrs}, say)
	r.DNS = dns.Config{Addrs: dnsAddrs, Services: served.names, Pods: pods.named}
	r.Problems = say.Sorted(objs.Origin)
	t.triggers = t.since(&objs)
	t.objs, t.begun = objs, true
	return r
}

// Check returns the problems of objs that do not depend on the node, including those of TLS Secrets that nobody uses.
func Check(objs kube.Objects) []kube.Problem {
	say := &kube.Report{Problems: Translate(objs, Options{}).Problems}
	for _, s := range objs.Secrets {
		if s.Type == corev1.SecretTypeTLS {
			keyPair(s, say)
		}
	}
	return say.Sorted(objs.Origin)
}
