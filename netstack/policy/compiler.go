package policy

import (
	"hash/maphash"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// Compiler compiles successive Configs. Each Table equals that of a new Compiler, but what follows from parts that are
// the same as in the Config before is not made again. The zero value is ready. It is not safe for concurrent use.
type Compiler struct {
	config Config
	table  *Table // nil: there was none, or nothing is to be judged
	groups *law.Groups
	seed   maphash.Seed
}

// Compile returns the Table of a Config: the same one as before if that judges the same. It returns nil when there are
// no policies: then everything is permitted.
func (c *Compiler) Compile(config Config) *Table {
	before, old := c.config, c.table
	if len(config.Policies)+len(config.Cluster) == 0 {
		*c = Compiler{}
		return nil
	}
	c.config = config
	t := &Table{}
	if old == nil || c.groups.Stale(len(config.Own)+len(config.Nodes)) {
		c.groups, c.seed = law.NewGroups(), maphash.MakeSeed()
		t.seed, t.known = c.seed, c.everybody()
		t.policies = c.policiesOf(&policies{next: 1}, false)
		t.tiers = tiers.Of(config.Cluster, c.world(t), nil)
		t.own, _ = c.subjects(t)
		t.nodes = c.nodesOf(t)
	} else {
		*t = *old
		changed := false
		note := func(differs bool) bool {
			changed = changed || differs
			return differs
		}
		var differs bool
		t.known, differs = c.follow(&before, old.known)
		note(differs)
		sameNames := sameElements(before.Namespaces, config.Namespaces)
		if note(!sameNames || !sameElements(before.Policies, config.Policies)) {
			t.policies = c.policiesOf(old.policies, sameNames)
		}
		if note(!sameNames || !sameElements(before.Cluster, config.Cluster)) {
			t.tiers = tiers.Of(config.Cluster, c.world(t), old.tiers)
		}
		t.own, differs = c.subjects(t)
		note(differs)
		if note(!sameList(before.Nodes, config.Nodes)) || old.tiers.NameNodes() != t.tiers.NameNodes() {
			t.nodes = c.nodesOf(t)
		}
		if !changed {
			return old
		}
	}
	c.table = t
	c.prepare(t)
	return t
}

// prepare looks at new groups of pods for the realms that have pods on this node, and for those that were asked before.
func (c *Compiler) prepare(t *Table) {
	c.groups.Publish()
	judged := false // by policies of the cluster
	for _, s := range t.own {
		if s.egress.side != nil || s.ingress.side != nil {
			s.realm.reading.Learn()
		}
		judged = judged || s.egress.cluster != nil || s.ingress.cluster != nil
	}
	if t.tiers != nil {
		t.tiers.Learn(judged)
	}
	for _, r := range t.policies.of {
		if r.reading.Asked() {
			r.reading.Learn()
		}
	}
}

// policiesOf returns the policies of the Config. Those that go on keep their numbers, and namespaces where all go on
// what has been compiled of them. sameNames says that the namespaces are those of before.
func (c *Compiler) policiesOf(before *policies, sameNames bool) *policies {
	p := &policies{list: c.config.Policies, of: map[string]*realm{}, serials: make(map[*Policy]uint32, len(c.config.Policies)), next: before.next, spaces: before.spaces}
	if !sameNames {
		p.spaces = spacesOf(c.config.Namespaces)
	}
	lists := map[string][]*Policy{}
	for _, one := range p.list {
		lists[one.Namespace] = append(lists[one.Namespace], one)
		for _, egress := range directions {
			p.about[which(egress)] = p.about[which(egress)] || one.rules(egress).Isolates
		}
		serial, goesOn := before.serials[one]
		if !goesOn {
			serial = p.next
			p.next++
		}
		p.serials[one] = serial
	}
	for namespace, list := range lists {
		r := before.of[namespace]
		switch {
		case r == nil || !slices.Equal(r.list, list):
			r = newRealm(namespace, list, p.serialsOf(list)).among(p.spaces, c.groups)
		case !sameNames:
			r = r.among(p.spaces, c.groups)
		}
		p.of[namespace] = r
	}
	return p
}

// everybody returns all pods by their addresses.
func (c *Compiler) everybody() roll.Map[packet.Addr, *person] {
	edit := roll.Map[packet.Addr, *person]{}.Edit()
	for _, p := range c.config.Own {
		c.add(edit, p)
	}
	for _, p := range c.config.Others.All() {
		c.add(edit, p)
	}
	return edit.Done()
}

// follow returns all pods by their addresses, from those before, and whether they differ. Pods without addresses are
// nobody.
func (c *Compiler) follow(before *Config, known roll.Map[packet.Addr, *person]) (all roll.Map[packet.Addr, *person], differs bool) {
	gone, come := roll.Difference(before.Others, c.config.Others, (*Pod).compare)
	roll.Walk(before.Own, c.config.Own, (*Pod).compare, func(i, j, _ int) {
		if j < 0 {
			gone = append(gone, before.Own[i])
		} else if i < 0 {
			come = append(come, c.config.Own[j])
		}
	})
	addressless := func(p *Pod) bool { return len(p.Addrs) == 0 }
	gone, come = slices.DeleteFunc(gone, addressless), slices.DeleteFunc(come, addressless)
	if len(gone) == 0 && len(come) == 0 {
		return known, false
	}
	edit := known.Edit()
	for _, p := range gone {
		c.remove(edit, p)
	}
	for _, p := range come {
		c.add(edit, p)
	}
	return edit.Done(), true
}

// groupOf returns the number of a pod's group.
func (c *Compiler) groupOf(p *Pod) int {
	if p.Vague {
		return law.Nobody
	}
	return c.groups.Of(p.Namespace, p.Labels)
}

func (c *Compiler) add(edit *roll.Editor[packet.Addr, *person], p *Pod) {
	for _, addr := range p.Addrs {
		a := packet.AddrFrom(addr)
		hash := maphash.Bytes(c.seed, a[:])
		also, _ := edit.Get(hash, a)
		group := c.groupOf(p)
		c.groups.Count(group, 1)
		edit.Set(hash, a, &person{pod: p, group: group, also: also})
	}
}

func (c *Compiler) remove(edit *roll.Editor[packet.Addr, *person], p *Pod) {
	for _, addr := range p.Addrs {
		a := packet.AddrFrom(addr)
		hash := maphash.Bytes(c.seed, a[:])
		list, _ := edit.Get(hash, a)
		var left *person
		for ; list != nil; list = list.also {
			if list.pod == p {
				c.groups.Count(list.group, -1)
			} else {
				left = &person{pod: list.pod, group: list.group, also: left}
			}
		}
		if left == nil {
			edit.Delete(hash, a)
		} else {
			edit.Set(hash, a, left)
		}
	}
}

// subjects returns the pods of this node for t, which has those of before, and whether they differ.
func (c *Compiler) subjects(t *Table) (own map[string]*subject, differ bool) {
	own = make(map[string]*subject, len(c.config.Own))
	for _, pod := range c.config.Own {
		name, r := pod.Namespace+"/"+pod.Name, t.policies.of[pod.Namespace]
		s := t.own[name]
		if s == nil || s.pod != pod || s.realm != r || s.tiers != t.tiers {
			differ = true
			s = &subject{
				person: person{pod: pod, group: c.groupOf(pod)}, realm: r, tiers: t.tiers,
				egress: t.standingOf(pod, r, true), ingress: t.standingOf(pod, r, false),
			}
		}
		own[name] = s
	}
	if !differ && len(own) == len(t.own) {
		return t.own, false
	}
	return own, true
}

// world returns what the policies of the cluster are among.
func (c *Compiler) world(t *Table) tiers.World {
	return tiers.World{Spaces: t.policies.spaces, Groups: c.groups}
}

func (c *Compiler) nodesOf(t *Table) *nodes {
	list := c.config.Nodes
	n := &nodes{groups: map[packet.Addr]int{}, taps: map[packet.Addr]packet.Addr{}, all: map[packet.Addr]packet.Addr{}, agents: map[packet.Addr]bool{}, pods: make(map[string][]netip.Prefix, len(list))}
	for _, one := range list {
		n.pods[one.Name] = one.Pods
		if t.tiers.NameNodes() {
			group := c.groups.OfNode(one.Labels)
			for _, a := range slices.Concat(one.Addrs, one.Host) {
				n.groups[packet.AddrFrom(a)] = group
			}
		}
		for _, a := range one.Agent {
			n.agents[packet.AddrFrom(a)] = true
		}
		first := func(like netip.Addr) packet.Addr {
			if i := slices.IndexFunc(one.Addrs, func(a netip.Addr) bool { return a.Is4() == like.Is4() }); i >= 0 {
				return packet.AddrFrom(one.Addrs[i])
			}
			return packet.AddrFrom(like)
		}
		for _, a := range one.Addrs {
			n.all[packet.AddrFrom(a)] = first(a)
		}
		for _, a := range one.Host {
			n.taps[packet.AddrFrom(a)], n.all[packet.AddrFrom(a)] = first(a), first(a)
		}
	}
	return n
}

// sameElements reports whether two lists have the same elements, without looking at equal memory.
func sameElements[T comparable](a, b []T) bool { return sameList(a, b) || slices.Equal(a, b) }

// sameList reports whether two lists are the same memory.
func sameList[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
