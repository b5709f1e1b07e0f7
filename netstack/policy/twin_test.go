package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/netstack/policy/tiers"
	"tapestry.dev/tapestry/roll"
)

// slow judges a flow from a Config alone, as the API describes it, one step after the other.
func slow(c *Config, f *Flow) Verdict {
	if f.From.Kind == OwnPod && f.From == f.Toward {
		return Permit
	}
	if f.From.Kind == OwnPod {
		if v := slowSide(c, f, true, slowOwn(c, &f.From), f.From.Name); v != Permit {
			return v
		}
	}
	if f.Steered && f.From.byAddress() {
		if v := slowSteered(c, f); v != Permit {
			return v
		}
	}
	spoken := f.From.Kind == OwnNode || f.From.Kind == OwnAgent
	switch {
	case f.Toward.Kind == OwnPod:
		for _, n := range c.Nodes {
			spoken = spoken || f.From.byAddress() && slices.Contains(n.Agent, f.Src.Netip())
		}
		if spoken {
			return Permit
		}
		return slowSide(c, f, false, slowOwn(c, &f.Toward), f.Toward.Name)
	case f.Both && f.Toward.byAddress() && f.From.Kind != OwnAgent:
		for _, n := range c.Nodes {
			if slices.Contains(slices.Concat(n.Addrs, n.Host, n.Agent), f.Dst.Netip()) {
				return Permit
			}
		}
		if p := slowAt(c, f.Dst.Netip()); p != nil {
			return slowSide(c, f, false, p, p.Namespace+"/"+p.Name)
		}
		return slowStranger(c, &f.Toward, f.Dst, false)
	}
	return Permit
}

// slowStranger judges a direction of a flow for an address at which no pod is known.
func slowStranger(c *Config, e *End, a packet.Addr, egress bool) Verdict {
	for _, n := range c.Nodes {
		if slices.Contains(slices.Concat(n.Addrs, n.Host, n.Agent), a.Netip()) {
			return Permit
		}
	}
	for _, p := range c.Policies {
		if e.Kind == InCluster && (egress && p.Egress.Isolates || !egress && p.Ingress.Isolates) {
			return Unknown
		}
	}
	for _, p := range c.Cluster {
		if e.Kind == InCluster && len(slowRules(p, egress)) > 0 {
			return Unknown
		}
	}
	return Permit
}

// slowSteered judges what the node of the sender has judged for another destination.
func slowSteered(c *Config, f *Flow) Verdict {
	for _, n := range c.Nodes {
		if slices.Contains(n.Agent, f.Src.Netip()) { // for somebody whom only rules for everybody name
			closed := *c
			closed.Policies, closed.Cluster = nil, nil
			for _, p := range c.Policies {
				one := *p
				one.Ingress.List = nil
				closed.Policies = append(closed.Policies, &one)
			}
			from := *f
			from.From, from.Src, from.Both, from.Steered = End{}, packet.AddrFrom(netip.MustParseAddr("203.0.113.1")), true, false
			v, pod := slow(&closed, &from), (*Pod)(nil)
			switch {
			case f.Toward.Kind == OwnPod:
				pod = slowOwn(c, &f.Toward)
			case f.Toward.byAddress():
				pod = slowAt(c, f.Dst.Netip())
				for _, n := range c.Nodes {
					if slices.Contains(slices.Concat(n.Addrs, n.Host, n.Agent), f.Dst.Netip()) {
						return Permit
					}
				}
				if pod == nil {
					return slowStranger(c, &f.Toward, f.Dst, false)
				}
			default:
				return v
			}
			if len(c.Cluster) > 0 && (pod == nil || pod.Vague) {
				return Unknown
			}
			for _, p := range c.Cluster {
				if selects, _ := slowSubject(c, p, false, pod); selects && v == Permit {
					return Unknown
				}
			}
			return v
		}
	}
	if p := slowAt(c, f.Src.Netip()); p != nil {
		return slowSide(c, f, true, p, p.Namespace+"/"+p.Name)
	}
	return slowStranger(c, &f.From, f.Src, true)
}

func slowOwn(c *Config, e *End) *Pod {
	for _, p := range c.Own {
		if p.Namespace+"/"+p.Name == e.Name && (p.UID == "" || e.UID == "" || p.UID == e.UID) {
			return p
		}
	}
	return nil
}

func slowAt(c *Config, a netip.Addr) (found *Pod) {
	n := 0
	for _, p := range slices.Concat(c.Own, c.Others.Slice()) {
		if slices.Contains(p.Addrs, a) && slowBelieves(c, p, a) {
			found = p
			n++
		}
	}
	if n != 1 {
		return nil
	}
	return found
}

func slowBelieves(c *Config, p *Pod, a netip.Addr) bool {
	inside := p.Node == ""
	for _, n := range c.Nodes {
		if p.Node != "" && slices.Contains(n.Agent, a) {
			return false
		}
		inside = inside || n.Name == p.Node && slices.ContainsFunc(n.Pods, func(r netip.Prefix) bool { return r.Contains(a) })
	}
	return inside
}

// slowSide judges one direction for the pod of that name; subject is nil when it is not known.
func slowSide(c *Config, f *Flow, egress bool, subject *Pod, name string) Verdict {
	namespace := name[:1] // those of the test have one letter
	if len(c.Cluster) > 0 {
		if subject == nil || subject.Vague {
			return Unknown
		}
		if v, decided := slowTier(c, f, tiers.Admin, egress, subject); decided {
			return v
		}
	}
	isolated := false
	for _, p := range c.Policies {
		if p.Namespace != namespace {
			continue
		}
		if subject == nil || subject.Vague {
			return Unknown
		}
		rules := &p.Ingress
		if egress {
			rules = &p.Egress
		}
		if !rules.Isolates || !p.Pods.Matches(subject.Labels) {
			continue
		}
		isolated = true
		for i := range rules.List {
			if slowRule(c, f, p, &rules.List[i], egress, subject) {
				return Permit
			}
		}
	}
	if isolated {
		return Deny
	}
	if len(c.Cluster) > 0 {
		if v, decided := slowTier(c, f, tiers.Baseline, egress, subject); decided {
			return v
		}
	}
	return Permit
}

func slowRule(c *Config, f *Flow, p *Policy, r *law.Rule, egress bool, subject *Pod) bool {
	end, addr := f.From, f.Src.Netip()
	if egress {
		end, addr = f.Toward, f.Dst.Netip()
	}
	asked := addr
	var pod *Pod
	if end.Kind == OwnPod {
		pod = slowOwn(c, &end)
	} else {
		pod = slowAt(c, addr)
		for _, n := range c.Nodes {
			if slices.Contains(n.Host, addr) || !egress && slices.Contains(n.Addrs, addr) {
				pod = nil
				for _, a := range n.Addrs {
					if a.Is4() == addr.Is4() {
						addr = a
						break
					}
				}
				break
			}
		}
	}
	portOf := subject
	if egress {
		portOf = pod
	}
	ports := r.AnyPort
	for _, q := range r.Ports {
		switch {
		case q.Proto != f.Proto:
		case q.Name == "":
			ports = ports || q.First <= f.Port && f.Port <= q.Last
		case portOf != nil:
			ports = ports || slices.Contains(portOf.Ports, law.NamedPort{Name: q.Name, Proto: q.Proto, Port: f.Port})
		}
	}
	if !ports || r.Everybody {
		return ports
	}
	for _, q := range r.Parties {
		if q.Range.IsValid() {
			if q.Range.Contains(addr) && !slices.ContainsFunc(q.Except, func(e netip.Prefix) bool { return e.Contains(addr) }) {
				return true
			}
			continue
		}
		if q.Nodes {
			for _, n := range c.Nodes {
				if pod == nil && end.Kind != OwnPod && slices.Contains(slices.Concat(n.Addrs, n.Host), asked) && q.Pods.Matches(n.Labels) {
					return true
				}
			}
			continue
		}
		if pod == nil || pod.Vague || !q.Pods.Matches(pod.Labels) {
			continue
		}
		if q.Namespaces == nil && pod.Namespace == p.Namespace {
			return true
		}
		if q.Namespaces != nil {
			if selects, certain := slowSelects(c, *q.Namespaces, pod.Namespace); selects && certain {
				return true
			}
		}
	}
	return false
}

// maker makes random parts of a small world, in which things often meet.
type maker struct{ *rand.Rand }

func pick[T any](m maker, list ...T) T { return list[m.IntN(len(list))] }

func (m maker) labels() law.Labels {
	l := map[string]string{}
	for _, k := range []string{"x", "y", "z"} {
		if m.IntN(2) == 0 {
			l[k] = pick(m, "1", "2")
		}
	}
	return law.LabelsOf(l)
}

func (m maker) selector() law.Selector {
	var s law.Selector
	for range m.IntN(3) {
		s = append(s, law.Requirement{Key: pick(m, "x", "y"), Op: pick(m, law.In, law.NotIn, law.Exists, law.DoesNotExist), Values: pick(m, []string{"1"}, []string{"2", "1"}, []string{"2"})})
	}
	return s
}

var (
	addrs  = []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "fd00::1", "fd00::2", "fd00::1:1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "10.9.0.1", "10.9.0.2", "255.255.255.255"}
	ranges = []string{"10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "::/0", "fd00::/64", "fd00::1/128", "192.0.2.0/31", "::ffff:0:0/64", "128.0.0.0/1", "8000::/1"}
)

func podRanges(list ...string) (out []netip.Prefix) {
	for _, text := range list {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func (m maker) ranges() (list []netip.Prefix) {
	for range m.IntN(3) {
		list = append(list, netip.MustParsePrefix(pick(m, ranges...)))
	}
	return list
}

func (m maker) rules() (r Rules) {
	r.Isolates = m.IntN(3) > 0
	for range m.IntN(4) {
		rule := law.Rule{Everybody: m.IntN(6) == 0, AnyPort: m.IntN(3) == 0}
		for range m.IntN(3) {
			party := law.Party{Pods: m.selector()}
			switch m.IntN(3) {
			case 0:
				party = law.Party{Range: netip.MustParsePrefix(pick(m, ranges...)), Except: m.ranges()}
			case 1:
				s := m.selector()
				if m.IntN(3) == 0 {
					s = law.Selector{where(law.NameLabel, law.In, pick(m, "a", "b"))}
				}
				party.Namespaces = &s
			}
			rule.Parties = append(rule.Parties, party)
		}
		for range m.IntN(3) {
			ports := law.Ports{Proto: pick(m, packet.TCP, packet.UDP, packet.SCTP), First: pick[uint16](m, 0, 1, 80, 443, 65535)}
			ports.Last = max(ports.First, pick[uint16](m, 80, 90, 65535))
			if m.IntN(3) == 0 {
				ports = law.Ports{Proto: ports.Proto, Name: pick(m, "web", "dns")}
			}
			rule.Ports = append(rule.Ports, ports)
		}
		r.List = append(r.List, rule)
	}
	return r
}

func (m maker) pod(namespace, name string) *Pod {
	p := &Pod{Namespace: namespace, Name: name, UID: pick(m, "", "u", "v"), Node: pick(m, "", "n1", "n2", "n3"), Labels: m.labels(), Vague: m.IntN(12) == 0}
	for range m.IntN(3) {
		p.Addrs = append(p.Addrs, netip.MustParseAddr(pick(m, addrs...)))
	}
	slices.SortFunc(p.Addrs, netip.Addr.Compare)
	p.Addrs = slices.Compact(p.Addrs)
	for range m.IntN(3) {
		p.Ports = append(p.Ports, law.NamedPort{Name: pick(m, "web", "dns"), Proto: pick(m, packet.TCP, packet.UDP), Port: pick[uint16](m, 80, 81, 443)})
	}
	return p
}

// next returns a Config in which something differs from c.
func (m maker) next(c Config) Config {
	edit := func(list []*Pod, prefix string) []*Pod {
		list = slices.Clone(list)
		for range 1 + m.IntN(2) {
			if i := m.IntN(len(list) + 1); i < len(list) {
				if list[i] = m.pod(list[i].Namespace, list[i].Name); m.IntN(3) == 0 {
					list = slices.Delete(list, i, i+1)
				}
			}
			p := m.pod(pick(m, "a", "b"), fmt.Sprint(prefix, m.IntN(6)))
			if i, there := slices.BinarySearchFunc(list, p, (*Pod).compare); !there {
				list = slices.Insert(list, i, p)
			}
		}
		return list
	}
	switch m.IntN(7) {
	case 5, 6:
		m.nextCluster(&c)
	case 0:
		c.Own = edit(c.Own, "own")
	case 1:
		list := c.Others.Slice()
		if i := m.IntN(len(list) + 1); i < len(list) && m.IntN(2) == 0 {
			c.Others = c.Others.With(roll.Edit[*Pod]{At: i, To: m.pod(list[i].Namespace, list[i].Name)})
		} else {
			c.Others = roll.From(edit(list, "other"))
		}
	case 2:
		c.Policies = slices.Clone(c.Policies)
		if i := m.IntN(len(c.Policies) + 1); i < len(c.Policies) && m.IntN(2) == 0 {
			c.Policies = slices.Delete(c.Policies, i, i+1)
		} else if len(c.Policies) < 6 {
			c.Policies = append(c.Policies, &Policy{Namespace: pick(m, "a", "b"), Name: fmt.Sprint(m.IntN(100)), Pods: m.selector(), Egress: m.rules(), Ingress: m.rules(), Staged: m.IntN(3) == 0})
		}
	case 4:
		c.Nodes = slices.Clone(c.Nodes)
		c.Nodes[m.IntN(len(c.Nodes))].Pods = m.ranges()
		c.Nodes[m.IntN(len(c.Nodes))].Labels = m.labels()
	case 3:
		c.Namespaces = nil
		for _, name := range []string{"a", "b"} {
			if m.IntN(3) > 0 {
				c.Namespaces = append(c.Namespaces, &Namespace{name, m.labels()})
			}
		}
	}
	return c
}

// twoNodes returns a Config of two nodes and nothing else.
func twoNodes() Config {
	return Config{Nodes: []Node{
		{Name: "n1", Pods: podRanges("10.0.0.0/24", "fd00::/112"), Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::1")}, Host: []netip.Addr{netip.MustParseAddr("10.9.0.1")}},
		{Name: "n2", Pods: podRanges("10.0.1.0/24", "10.9.0.0/24"), Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Agent: []netip.Addr{netip.MustParseAddr("10.9.0.2")}},
	}}
}

// FuzzTwin compares a Compiler that follows changes with a new one, and both with the slow twin.
func FuzzTwin(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		m := maker{rand.New(rand.NewPCG(seed, 1))}
		var compiler Compiler
		c := twoNodes()
		for range 12 {
			c = m.next(c)
			table := compiler.Compile(c)
			if again := compiler.Compile(c); again != table {
				t.Fatal("the same Config has another Table")
			}
			fresh := new(Compiler).Compile(c)
			for range 60 {
				f := m.flow(&c)
				want, got, anew := slow(&c, &f), Permit, Permit
				if table != nil {
					r, s := table.Judge(&f), fresh.Judge(&f)
					got, anew = r.Verdict, s.Verdict
					if (r.Rule != 0) != (table.Describe(r.Rule) != "") {
						t.Fatalf("rule %x is %q", r.Rule, table.Describe(r.Rule))
					}
					if table.Describe(r.Rule) != fresh.Describe(s.Rule) {
						t.Fatalf("%+v is judged by %s, and anew by %s", f, table.Describe(r.Rule), fresh.Describe(s.Rule))
					}
				}
				if got != want || anew != want {
					t.Fatalf("%+v: %d, anew %d, want %d", f, got, anew, want)
				}
			}
		}
	})
}

func (m maker) flow(c *Config) Flow {
	end := func() (End, packet.Addr) {
		a := packet.AddrFrom(netip.MustParseAddr(pick(m, addrs...)))
		e := End{Kind: pick(m, ByAddress, ByAddress, InCluster, InCluster, OwnPod, OwnPod, OwnPod, OwnPod, OwnNode, OwnAgent)}
		if e.Kind == OwnPod {
			e.Name = "b/unheard"
			if len(c.Own) > 0 && m.IntN(10) > 0 {
				p := pick(m, c.Own...)
				e.Name = p.Namespace + "/" + p.Name
				if e.UID = p.UID; m.IntN(5) == 0 {
					e.UID = pick(m, "", "u", "v")
				}
			}
		}
		return e, a
	}
	f := Flow{
		Proto: pick(m, packet.TCP, packet.TCP, packet.UDP, packet.SCTP, packet.ICMPv4),
		Port:  pick[uint16](m, 0, 1, 79, 80, 81, 91, 443, 65535), Both: m.IntN(3) == 0, Steered: m.IntN(3) == 0,
	}
	f.From, f.Src = end()
	f.Toward, f.Dst = end()
	return f
}
