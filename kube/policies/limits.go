package policies

import (
	"cmp"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// limits has others in place of policies that are too large together, since whoever may write policies has the agents
// of all nodes work for them. O are their objects, and P what these say. The zero value with a bound is ready.
type limits[O kube.Object, P comparable] struct {
	bound[P]
	objs     []O
	read     []P
	sizes    map[P]law.Size
	closed   map[P]P // what stands for those that exceed
	list     []P
	problems []kube.Problem
}

// bound says how large policies may be.
type bound[P comparable] struct {
	most law.Size
	// of returns what is counted together. Those that are staged come after all that are not: they take nobody's place.
	of     func(P) string
	staged func(P) bool
	size   func(P) law.Size
	// close returns what stands for a policy that exceeds, and closed says in words what that does.
	close  func(P) P
	closed string
}

// ofNamespaces bounds the NetworkPolicies of each namespace. What exceeds isolates the same pods, and permits nobody.
var ofNamespaces = bound[*policy.Policy]{
	most: policy.Most, of: func(p *policy.Policy) string { return p.Namespace }, staged: func(p *policy.Policy) bool { return p.Staged }, size: (*policy.Policy).Size,
	close: func(p *policy.Policy) *policy.Policy {
		return &policy.Policy{
			Namespace: p.Namespace, Name: p.Name, Pods: p.Pods, Staged: p.Staged,
			Ingress: policy.Rules{Isolates: p.Ingress.Isolates}, Egress: policy.Rules{Isolates: p.Egress.Isolates},
		}
	},
	closed: "with it the NetworkPolicies of its namespace have %d %s, more than the %d that are compiled, so it isolates its pods and permits nobody: give the namespace fewer, or divide it",
}

// ofCluster bounds all ClusterNetworkPolicies.
var ofCluster = bound[*tiers.Policy]{
	most: tiers.Most, of: func(*tiers.Policy) string { return "" }, staged: func(p *tiers.Policy) bool { return p.Staged }, size: (*tiers.Policy).Size, close: closeCluster,
	closed: "with it the ClusterNetworkPolicies have %d %s, more than the %d that are compiled, so it denies its pods everything where it has rules: have fewer",
}

// within returns policies, of which read[i] is what objs[i] says, with others in place of those that exceed. The oldest
// that fit are in force, or staged.
func (l *limits[O, P]) within(objs []O, read []P, say *kube.Report) []P {
	if !kube.Same(l.objs, objs) || !kube.Same(l.read, read) {
		l.judge(objs, read)
	}
	say.Problems = append(say.Problems, l.problems...)
	return l.list
}

func (l *limits[O, P]) judge(objs []O, read []P) {
	sizes, totals := make(map[P]law.Size, len(read)), map[string]law.Size{}
	for _, p := range read {
		size, known := l.sizes[p]
		if !known {
			size = l.size(p)
		}
		sizes[p] = size
		totals[l.of(p)] = totals[l.of(p)].Plus(size)
	}
	tooMuch := map[string][]int{}
	for i, p := range read {
		if what, _, _ := exceeds(totals[l.of(p)], l.most); what != "" {
			tooMuch[l.of(p)] = append(tooMuch[l.of(p)], i)
		}
	}
	var told kube.Report
	list, closed := read, map[P]P{}
	for _, indices := range tooMuch {
		byAge(objs, indices)
		slices.SortStableFunc(indices, func(i, j int) int { return which(l.staged(read[i])) - which(l.staged(read[j])) })
		var sum law.Size
		for _, i := range indices {
			p := read[i]
			with := sum.Plus(sizes[p])
			what, n, most := exceeds(with, l.most)
			if what == "" {
				sum = with
				continue
			}
			told.Errorf(kube.RefOf(objs[i]), "spec", l.bound.closed, n, what, most)
			var before bool
			if closed[p], before = l.closed[p]; !before {
				closed[p] = l.close(p)
			}
		}
	}
	if len(closed) > 0 {
		list = slices.Clone(read)
		for i, p := range list {
			if stands, exceeds := closed[p]; exceeds {
				list[i] = stands
			}
		}
	}
	kube.SortProblems(told.Problems)
	if len(list) == 0 {
		l.list = nil
	} else if !slices.Equal(list, l.list) {
		l.list = list
	}
	l.objs, l.read, l.sizes, l.closed, l.problems = objs, read, sizes, closed, told.Problems
}

// byAge sorts indices of objects: the oldest first, and of one age by name.
func byAge[O metav1.Object](objs []O, indices []int) {
	slices.SortStableFunc(indices, func(i, j int) int {
		a, b := objs[i], objs[j]
		then := a.GetCreationTimestamp()
		return cmp.Or(then.Compare(b.GetCreationTimestamp().Time), cmp.Compare(a.GetName(), b.GetName()))
	})
}

// exceeds says what there is too much of, how much there is, and how much may be by m; "" if nothing.
func exceeds(s, m law.Size) (what string, n, most int) {
	switch {
	case s.Rules > m.Rules:
		return "rules", s.Rules, m.Rules
	case s.Selectors > m.Selectors:
		return "selectors in rules, and requirements and values of these", s.Selectors, m.Selectors
	case s.Ranges > m.Ranges:
		return "ranges, and exceptions of these", s.Ranges, m.Ranges
	case s.Ports > m.Ports:
		return "ports in rules", s.Ports, m.Ports
	}
	return "", 0, 0
}
