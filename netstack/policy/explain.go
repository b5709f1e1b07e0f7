package policy

// Explanation is how a Table comes to a Ruling.
type Explanation struct {
	Ruling
	// Egress is what is said of the end that begins the flow, Ingress of the other one. The first that does not permit
	// decides.
	Egress, Ingress Direction
}

// Direction is how a Table judges one direction of a flow, for the pod at one of its ends.
type Direction struct {
	Ruling
	// Pod is that pod; nil if none is at the end, or none that is known, or its own node judges it.
	Pod *Pod
	// Policies are those that select the pod for the direction. Those of the cluster are the last.
	Policies []One
}

// Explain judges a flow as Judge does, with the same code, and says how. f is borrowed.
func (t *Table) Explain(f *Flow) Explanation {
	e := Explanation{Ruling: t.Judge(f)}
	if f.toItself() {
		return e
	}
	sender, receiver := t.sender(f), t.receiver(f)
	e.Egress = Direction{t.judgeEgress(f), sender, t.selecting(sender, true)}
	e.Ingress = Direction{t.JudgeIngress(f), receiver, t.selecting(receiver, false)}
	return e
}

// sender returns the pod whose egress is judged, nil for none that is known.
func (t *Table) sender(f *Flow) *Pod {
	switch {
	case f.From.Kind == OwnPod:
		if s := t.ownPod(&f.From); s != nil {
			return s.pod
		}
	case f.Steered && f.From.byAddress() && !t.nodes.agents[f.Src]:
		if p := t.at(&f.Src); p != nil {
			return p.pod
		}
	}
	return nil
}

// receiver returns the pod whose ingress is judged, nil for none that is known.
func (t *Table) receiver(f *Flow) *Pod {
	switch {
	case f.Toward.Kind == OwnPod:
		if s := t.ownPod(&f.Toward); s != nil {
			return s.pod
		}
	case f.Both && f.Toward.byAddress() && !t.nodes.have(&f.Dst):
		if p := t.at(&f.Dst); p != nil {
			return p.pod
		}
	}
	return nil
}

// selecting returns the policies that select a pod, if there is one, for a direction.
func (t *Table) selecting(p *Pod, egress bool) (list []One) {
	if p == nil || p.Vague {
		return nil
	}
	for _, one := range t.Policies() {
		if t.selects(one, p, egress) {
			list = append(list, one)
		}
	}
	return list
}

// selects reports whether a policy selects a pod for a direction, be it that this is not certain yet.
func (t *Table) selects(one One, p *Pod, egress bool) bool {
	if one.Network != nil {
		return one.Network.Namespace == p.Namespace && one.Network.selects(p, egress)
	}
	selects, _ := t.tiers.Selects(one.Cluster, p.subject(), egress)
	return selects
}

// Selected returns how many pods of this node a policy selects.
func (t *Table) Selected(one One) (n int) {
	for _, s := range t.own {
		if p := s.pod; p.Node != "" && !p.Vague && (t.selects(one, p, true) || t.selects(one, p, false)) {
			n++
		}
	}
	return n
}
