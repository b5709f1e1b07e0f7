package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

func slowRules(p *tiers.Policy, egress bool) []tiers.Rule {
	if egress {
		return p.Egress
	}
	return p.Ingress
}

// slowSelects reports whether a selector selects a namespace, and whether it does whatever labels of it are not known.
func slowSelects(c *Config, s law.Selector, namespace string) (selects, certain bool) {
	labels, known := map[string]string{law.NameLabel: namespace}, false
	for _, ns := range c.Namespaces {
		if ns.Name == namespace {
			known = true
			for _, l := range ns.Labels {
				labels[l.Key] = l.Value
			}
		}
	}
	selects, certain = true, true
	for _, r := range s {
		if known || r.Key == law.NameLabel {
			selects = selects && law.Selector{r}.Matches(law.LabelsOf(labels))
		} else {
			certain = false
		}
	}
	return selects, certain || !selects
}

// slowSubject reports whether a policy of the cluster is for a pod in one direction.
func slowSubject(c *Config, p *tiers.Policy, egress bool, subject *Pod) (selects, certain bool) {
	if len(slowRules(p, egress)) == 0 || !p.Pods.Matches(subject.Labels) {
		return false, true
	}
	return slowSelects(c, p.Namespaces, subject.Namespace)
}

// slowTier asks the policies of one tier, one after the other.
func slowTier(c *Config, f *Flow, tier tiers.Tier, egress bool, subject *Pod) (v Verdict, decided bool) {
	for _, p := range c.Cluster {
		if selects, certain := slowSubject(c, p, egress, subject); selects && !certain {
			return Unknown, true
		}
	}
	list := slices.Clone(c.Cluster)
	slices.SortFunc(list, func(a, b *tiers.Policy) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range list {
		if selects, _ := slowSubject(c, p, egress, subject); !selects || p.Tier != tier {
			continue
		}
		rules := slowRules(p, egress)
		for i := range rules {
			switch r := &rules[i]; {
			case slowRule(c, f, &Policy{}, &r.Rule, egress, subject):
				switch r.Action {
				case tiers.Permit:
					return Permit, true
				case tiers.Deny:
					return Drop, true
				}
				return Permit, false
			case slowMaybe(c, f, &r.Rule, egress, subject):
				return Unknown, true
			}
		}
	}
	return Permit, false
}

// slowMaybe reports whether a rule may be for a flow, since not all is known of its other end.
func slowMaybe(c *Config, f *Flow, r *law.Rule, egress bool, subject *Pod) bool {
	end, addr := f.From, f.Src.Netip()
	if egress {
		end, addr = f.Toward, f.Dst.Netip()
	}
	var pod *Pod
	node := false
	for _, n := range c.Nodes {
		node = node || slices.Contains(n.Host, addr) || !egress && slices.Contains(n.Addrs, addr)
	}
	vague := false
	switch {
	case end.Kind == OwnPod:
		pod = slowOwn(c, &end)
		vague = pod == nil
	case !node:
		if pod = slowAt(c, addr); pod == nil && end.Kind == InCluster {
			vague = true
			for _, n := range c.Nodes {
				vague = vague && !slices.Contains(slices.Concat(n.Addrs, n.Host, n.Agent), addr)
			}
		}
	}
	if pod != nil {
		vague = pod.Vague
	}
	if !vague { // only the labels of its namespace may be unknown: take all that may be for those that are wanted
		known := pod == nil || slices.ContainsFunc(c.Namespaces, func(ns *Namespace) bool { return ns.Name == pod.Namespace })
		possible := *r
		possible.Parties = slices.Clone(r.Parties)
		for i := range possible.Parties {
			if q := &possible.Parties[i]; q.Namespaces != nil {
				byName := slices.DeleteFunc(slices.Clone(*q.Namespaces), func(r law.Requirement) bool { return r.Key != law.NameLabel })
				q.Namespaces = &byName
			}
		}
		return !known && slowRule(c, f, &Policy{}, &possible, egress, subject)
	}
	ports := r.AnyPort
	for _, q := range r.Ports {
		ports = ports || q.Proto == f.Proto && (q.Name != "" || q.First <= f.Port && f.Port <= q.Last)
	}
	ends := r.Everybody
	for _, q := range r.Parties {
		except := slices.ContainsFunc(q.Except, func(e netip.Prefix) bool { return e.Contains(addr) })
		ends = ends || q.Range.IsValid() && q.Range.Contains(addr) && !except || !q.Range.IsValid() && !q.Nodes
	}
	return vague && ports && ends
}

// nextCluster changes the policies of the cluster.
func (m maker) nextCluster(c *Config) {
	c.Cluster = slices.Clone(c.Cluster)
	if i := m.IntN(len(c.Cluster) + 1); i < len(c.Cluster) && m.IntN(2) == 0 {
		c.Cluster = slices.Delete(c.Cluster, i, i+1)
		return
	}
	if len(c.Cluster) < 4 {
		c.Cluster = append(c.Cluster, &tiers.Policy{
			Name: fmt.Sprint(m.IntN(1000)), Tier: pick(m, tiers.Admin, tiers.Baseline), Priority: int32(m.IntN(3)),
			Namespaces: m.selector(), Pods: m.selector(), Egress: m.tierRules(), Ingress: m.tierRules(), Staged: m.IntN(3) == 0,
		})
	}
}

func (m maker) tierRules() (list []tiers.Rule) {
	for _, r := range m.rules().List {
		for i := range r.Parties {
			switch p := &r.Parties[i]; {
			case p.Range.IsValid() || p.Namespaces != nil:
			case m.IntN(2) == 0:
				p.Nodes = true
			default:
				p.Namespaces = &law.Selector{}
			}
		}
		list = append(list, tiers.Rule{Action: pick(m, tiers.Pass, tiers.Permit, tiers.Deny), Rule: r})
	}
	return list
}
