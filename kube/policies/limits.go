package policies

import (
	"cmp"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// limits leaves out what exceeds policy.Most in a namespace, since whoever may write NetworkPolicies has the agents of
// all nodes work for them. The zero value is ready.
type limits struct {
	objs     []*networkingv1.NetworkPolicy
	read     []*policy.Policy
	sizes    map[*policy.Policy]law.Size
	closed   map[*policy.Policy]*policy.Policy // what stands for those that exceed
	list     []*policy.Policy
	problems []kube.Problem
}

// within returns policies, of which read[i] is what objs[i] says, with others in place of those that exceed: these
// isolate the same pods, and permit nobody. The oldest of a namespace that fit are in force.
func (l *limits) within(objs []*networkingv1.NetworkPolicy, read []*policy.Policy, say *kube.Report) []*policy.Policy {
	if !kube.Same(l.objs, objs) || !kube.Same(l.read, read) {
		l.judge(objs, read)
	}
	say.Problems = append(say.Problems, l.problems...)
	return l.list
}

func (l *limits) judge(objs []*networkingv1.NetworkPolicy, read []*policy.Policy) {
	sizes, totals := make(map[*policy.Policy]law.Size, len(read)), map[string]law.Size{}
	for _, p := range read {
		size, known := l.sizes[p]
		if !known {
			size = p.Size()
		}
		sizes[p] = size
		totals[p.Namespace] = totals[p.Namespace].Plus(size)
	}
	byAge := map[string][]int{} // of the namespaces that have too much
	for i, p := range read {
		if what, _, _ := exceeds(totals[p.Namespace]); what != "" {
			byAge[p.Namespace] = append(byAge[p.Namespace], i)
		}
	}
	var told kube.Report
	list, closed := read, map[*policy.Policy]*policy.Policy{}
	for _, indices := range byAge {
		slices.SortStableFunc(indices, func(i, j int) int {
			a, b := objs[i], objs[j]
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		var sum law.Size
		for _, i := range indices {
			p := read[i]
			with := sum.Plus(sizes[p])
			what, n, most := exceeds(with)
			if what == "" {
				sum = with
				continue
			}
			told.Errorf(kube.RefOf(objs[i]), "spec", "with it the NetworkPolicies of its namespace have %d %s, more than the %d that are compiled, so it isolates its pods and permits nobody: give the namespace fewer, or divide it", n, what, most)
			if closed[p] = l.closed[p]; closed[p] == nil {
				closed[p] = &policy.Policy{
					Namespace: p.Namespace, Name: p.Name, Pods: p.Pods,
					Ingress: policy.Rules{Isolates: p.Ingress.Isolates}, Egress: policy.Rules{Isolates: p.Egress.Isolates},
				}
			}
		}
	}
	if len(closed) > 0 {
		list = slices.Clone(read)
		for i, p := range list {
			list[i] = cmp.Or(closed[p], p)
		}
	}
	kube.SortProblems(told.Problems)
	if !slices.Equal(list, l.list) {
		l.list = list
	}
	l.objs, l.read, l.sizes, l.closed, l.problems = objs, read, sizes, closed, told.Problems
}

// exceeds says what there is too much of, how much there is, and how much may be; "" if nothing.
func exceeds(s law.Size) (what string, n, most int) {
	m := policy.Most
	switch {
	case s.Rules > m.Rules:
		return "rules", s.Rules, m.Rules
	case s.Selectors > m.Selectors:
		return "selectors in rules, and requirements and values of these", s.Selectors, m.Selectors
	case s.Ranges > m.Ranges:
		return "ranges and exceptions of ipBlocks", s.Ranges, m.Ranges
	case s.Ports > m.Ports:
		return "ports in rules", s.Ports, m.Ports
	}
	return "", 0, 0
}
