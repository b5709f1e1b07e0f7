package cluster

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policyapi"
)

const (
	// policiesWait limits how long new policies wait for the pods and namespaces that they name. After that they
	// are in force without: whom they name by labels is denied until it is known.
	policiesWait = 10 * time.Second
	// policiesRest is how long pods and namespaces are followed after the last policy has gone: another may come.
	policiesRest = 10 * time.Minute
	// All agents see a policy at the same moment, and each asks for all pods. So they do that within pausePerNode for
	// each node, and within pauseMost.
	pausePerNode = 5 * time.Millisecond
	pauseMost    = policiesWait / 2
)

// policies has what only policies need read while there are some: the pods of all nodes above all. Policies come into
// force when that has been read, since those that came before would cut what they permit. Only the goroutine of Run
// uses it, but for the gate.
type policies struct {
	*gate
	touch      func()
	wait, rest time.Duration
	until      time.Time // how long they may wait
	idle       time.Time // since when there are none; zero while there are some
	// withheld says what some of them wait for, and without what has not been read although they are in force.
	withheld, without []string
}

func newPolicies(touch func(), wait, rest time.Duration) policies {
	return policies{gate: newGate(), touch: touch, wait: wait, rest: rest}
}

// admit takes the policies out of objs that wait for what is unread. The first snapshot waits with them, if one of them
// is enforced: then admit returns what is missing.
func (p *policies) admit(objs *kube.Objects, unread []string, delivered bool) (missing []string) {
	p.withheld, p.without = nil, nil
	if len(objs.NetworkPolicies)+len(objs.ClusterNetworkPolicies) == 0 {
		p.expire()
		return nil
	}
	p.idle = time.Time{}
	pause := time.Duration(0)
	if most := min(pausePerNode*time.Duration(len(objs.Nodes)), pauseMost); delivered && most > 0 {
		pause = rand.N(most)
	}
	if p.open(pause) {
		p.until = time.Now().Add(p.wait)
		time.AfterFunc(p.wait, p.touch)
	}
	waiting := namePods(objs.NetworkPolicies)
	switch {
	case len(unread) == 0:
	case !time.Now().Before(p.until):
		p.without = unread
	case len(waiting)+len(objs.ClusterNetworkPolicies) == 0:
	case !delivered && enforces(objs, waiting):
		return slices.Clone(unread)
	default:
		p.withheld = unread
		objs.ClusterNetworkPolicies = nil // each is for pods of namespaces that it selects
		objs.NetworkPolicies = slices.DeleteFunc(slices.Clone(objs.NetworkPolicies), func(obj *networkingv1.NetworkPolicy) bool { return waiting[obj.Namespace] })
	}
	return nil
}

// expire closes the gate when there have been no policies for long enough.
func (p *policies) expire() {
	_, open := p.isOpen()
	switch {
	case !open:
	case p.idle.IsZero():
		p.idle = time.Now()
		time.AfterFunc(p.rest, p.touch)
	case time.Since(p.idle) >= p.rest:
		p.close()
		p.idle = time.Time{}
	}
}

// namePods returns the namespaces in which rules name pods. All policies of such a namespace wait together, since each
// permits what others do not.
func namePods(list []*networkingv1.NetworkPolicy) map[string]bool {
	namespaces := map[string]bool{}
	pods := func(p networkingv1.NetworkPolicyPeer) bool { return p.PodSelector != nil || p.NamespaceSelector != nil }
	for _, obj := range list {
		if slices.ContainsFunc(obj.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return slices.ContainsFunc(r.From, pods) }) ||
			slices.ContainsFunc(obj.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return slices.ContainsFunc(r.To, pods) }) {
			namespaces[obj.Namespace] = true
		}
	}
	return namespaces
}

// enforces reports whether one of the policies that wait is enforced. waiting are the namespaces whose policies do.
func enforces(objs *kube.Objects, waiting map[string]bool) bool {
	for _, obj := range objs.NetworkPolicies {
		if staged, _ := kube.Staged(obj); waiting[obj.Namespace] && !staged {
			return true
		}
	}
	return slices.ContainsFunc(objs.ClusterNetworkPolicies, func(obj *policyapi.ClusterNetworkPolicy) bool {
		staged, _ := kube.Staged(obj)
		return !staged
	})
}

// problem returns what is wrong with policies on this node, "" for nothing.
func (p *policies) problem() string {
	switch {
	case len(p.withheld) > 0:
		return "ClusterNetworkPolicies are not in force yet, nor NetworkPolicies where rules of their namespace name pods: the API server has not told " + strings.Join(p.withheld, " and ")
	case len(p.without) > 0:
		return "policies are in force, but whom they name by labels is denied as far as it is not known: the API server does not tell " + strings.Join(p.without, " and ")
	}
	return ""
}

// later returns the source of a kind that is read for policies alone, and nil for another kind.
func (c *Cluster) later(k *kube.Kind) *source {
	i := slices.IndexFunc(c.sources, func(s *source) bool { return s.kind == k && s.later })
	if i < 0 {
		return nil
	}
	return c.sources[i]
}
