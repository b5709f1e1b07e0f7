package pins

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/kube"
)

// made returns a Node that was created at that hour. text is "name key range addresses...", where "-" means none.
func made(hour int, text string) *corev1.Node {
	words := strings.Fields(text)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: words[0], UID: types.UID(fmt.Sprintf("%s/%d", words[0], hour)), CreationTimestamp: metav1.NewTime(time.Unix(int64(hour)*3600, 0)),
		Labels: map[string]string{},
	}}
	if words[1] != "-" {
		n.Annotations = map[string]string{kube.PublicKeyAnnotation: words[1]}
	}
	if words[2] != "-" {
		n.Spec.PodCIDRs = strings.Split(words[2], ",")
	}
	for _, a := range words[3:] {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

// controlPlaneNode returns n with the label of nodes that run API servers.
func controlPlaneNode(n *corev1.Node) *corev1.Node {
	n.Labels[controlPlane[0]] = ""
	return n
}

// believed returns a Node in the format that made reads.
func believed(n *corev1.Node) string {
	or := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	words := []string{n.Name, or(n.Annotations[kube.PublicKeyAnnotation]), or(strings.Join(kube.PodCIDRs(n), ","))}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			words = append(words, a.Address)
		}
	}
	return strings.Join(words, " ")
}

func sortNodes(list []*corev1.Node) {
	slices.SortFunc(list, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
}

// One key in two spellings that base64 decodes to the same bytes.
const (
	keyOne      = "HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	keyOneAgain = "HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9="
)

// Whatever a node claims, no other node loses anything by it.
func TestLies(t *testing.T) {
	const self, honest = "self S 10.244.1.0/24 192.168.0.1", "web W 10.244.2.0/24 192.168.0.2"
	type state []*corev1.Node
	for _, test := range []struct {
		what   string
		states []state // in order; the last is checked. This node is added to each
		rules  []netip.Prefix
		self   string // "" for the usual one
		want   []string
		told   string // the problem that is reported; "" for none
	}{
		{what: "honest nodes", states: []state{{made(1, honest), made(2, "db D 10.244.3.0/24,fd00:3::/64 192.168.9.3 fd01::3")}},
			want: []string{honest, "db D 10.244.3.0/24,fd00:3::/64 192.168.9.3 fd01::3"}},

		// Ranges that no node can have.
		{what: "the API server", states: []state{{made(1, "liar L 10.244.4.0/24 192.168.0.4 192.168.0.100")}},
			want: []string{"liar L 10.244.4.0/24 192.168.0.4"}, told: "Node liar: status.addresses[1].address: 192.168.0.100 is or contains 192.168.0.100, where an API server is"},
		{what: "the API server's own node", states: []state{{controlPlaneNode(made(1, "master M 10.244.4.0/24 192.168.0.100"))}},
			want: []string{"master M 10.244.4.0/24 192.168.0.100"}},
		{what: "the API server's, which is a node", states: []state{{made(1, "a A 10.244.5.0/24 192.168.0.100"), controlPlaneNode(made(2, "master M 10.244.4.0/24 192.168.0.100"))}},
			want: []string{"a A 10.244.5.0/24", "master M 10.244.4.0/24 192.168.0.100"}, told: "Node a: status.addresses[0].address: 192.168.0.100 is"},
		{what: "somebody outside", states: []state{{made(1, "liar L 10.244.4.0/24 192.168.0.4 8.8.8.8 2001:db8::8")}},
			want: []string{"liar L 10.244.4.0/24 192.168.0.4"}, told: "Node liar: status.addresses[1].address: 8.8.8.8 is a public address and this node's own is not"},
		{what: "a Service", states: []state{{made(1, "liar L 10.244.4.0/24 10.96.0.10 192.168.0.4")}},
			want: []string{"liar L 10.244.4.0/24 192.168.0.4"}, told: "Node liar: status.addresses[0].address: 10.96.0.10 lies in the service range 10.96.0.0/12"},
		{what: "all Services", states: []state{{made(1, "liar L 10.0.0.0/8 192.168.0.4")}},
			want: []string{"liar L - 192.168.0.4"}, told: "Node liar: spec.podCIDRs[0]: 10.0.0.0/8 lies in the service range 10.96.0.0/12 or around it"},
		{what: "a cloud's credentials", states: []state{{made(1, "liar L 10.244.4.0/24 fd00:ec2::254 100.100.100.200")}},
			want: []string{"liar L 10.244.4.0/24"}, told: "Node liar: status.addresses[0].address: fd00:ec2::254 is where a cloud hands out credentials"},
		{what: "the world", states: []state{{made(1, "liar L 0.0.0.0/1,2000::/3 192.168.0.4")}},
			want: []string{"liar L - 192.168.0.4"}, told: "Node liar: spec.podCIDRs[1]: 2000::/3 is not in a private range"},
		{what: "somebody's network", states: []state{{made(1, "liar L 8.8.8.0/24 192.168.0.4")}},
			want: []string{"liar L - 192.168.0.4"}, told: "Node liar: spec.podCIDRs[0]: 8.8.8.0/24 is not in a private range as this node's own pods are"},
		{what: "the API server's network", states: []state{{controlPlaneNode(made(1, "liar L 192.168.0.64/26 192.168.9.4"))}},
			want: []string{"liar L - 192.168.9.4"}, told: "Node liar: spec.podCIDRs[0]: 192.168.0.64/26 is or contains 192.168.0.100, where an API server is"},
		{what: "one of its own pods", states: []state{{made(1, "liar L 10.244.4.0/24 10.244.4.7")}},
			want: []string{"liar L 10.244.4.0/24"}, told: "Node liar: status.addresses[0].address: 10.244.4.7 lies in the node's own pod range 10.244.4.0/24"},

		// Addresses that nodes may have.
		{what: "public among public", self: "self S 10.244.1.0/24 203.0.113.1", states: []state{{made(1, "pub P 10.244.2.0/24 198.51.100.2 192.168.0.2 2001:db8::2")}},
			want: []string{"pub P 10.244.2.0/24 198.51.100.2 192.168.0.2"}, told: "Node pub: status.addresses[2].address: 2001:db8::2 is a public address"},
		{what: "inside of the list", rules: addresstest.Prefixes("192.168.0.0/24", "8.8.0.0/16"), states: []state{{made(1, "web W 10.244.2.0/24 192.168.0.2 8.8.8.8")}},
			want: []string{"web W 10.244.2.0/24 192.168.0.2 8.8.8.8"}},
		{what: "outside of the list", rules: addresstest.Prefixes("192.168.0.0/24", "fd01::/64"), states: []state{{made(1, "web W 10.244.2.0/24 192.168.1.2 fd01::2")}},
			want: []string{"web W 10.244.2.0/24 fd01::2"}, told: "192.168.1.2 lies in none of the ranges of nodes (--node-cidr: 192.168.0.0/24, fd01::/64)"},
		{what: "in the list and special", rules: addresstest.Prefixes("0.0.0.0/0", "::/0"), states: []state{{made(1, "liar L 10.244.2.0/24 168.63.129.16")}},
			want: []string{"liar L 10.244.2.0/24"}, told: "168.63.129.16 is where a cloud hands out credentials"},

		// Claims on what another node has.
		{what: "another's address", states: []state{{made(1, honest), made(2, "a A 10.244.3.0/24 192.168.0.2")}},
			want: []string{honest, "a A 10.244.3.0/24"}, told: "Node a: status.addresses[0].address: 192.168.0.2 is an address of Node web, which had it first"},
		{what: "in another spelling", states: []state{{made(1, honest), made(2, "a A 10.244.3.0/24 ::ffff:192.168.0.2")}},
			want: []string{honest, "a A 10.244.3.0/24"}, told: "Node a: status.addresses[0].address: 192.168.0.2 is an address of Node web"},
		{what: "this node's", states: []state{{made(0, "a A 10.244.3.0/24 192.168.0.1")}},
			want: []string{"a A 10.244.3.0/24"}, told: "Node a: status.addresses[0].address: 192.168.0.1 is an address of Node self"},
		{what: "another's key", states: []state{{made(1, honest), made(2, "a W 10.244.3.0/24 192.168.0.3")}},
			want: []string{honest, "a - 10.244.3.0/24 192.168.0.3"}, told: "Node a: metadata.annotations[tapestry.dev/wireguard-public-key]: is the key of Node web, which had it first"},
		{what: "this node's key", states: []state{{made(0, "a S 10.244.3.0/24 192.168.0.3")}},
			want: []string{"a - 10.244.3.0/24 192.168.0.3"}, told: "is the key of Node self"},
		{what: "another's key in another spelling", states: []state{{made(1, "web "+keyOne+" - 192.168.0.2"), made(2, "a "+keyOneAgain+" - 192.168.0.3")}},
			want: []string{"web " + keyOne + " - 192.168.0.2", "a - - 192.168.0.3"}, told: "is the key of Node web"},
		{what: "another's pods", states: []state{{made(1, honest), made(2, "a A 10.244.2.128/25 192.168.0.3")}},
			want: []string{honest, "a A - 192.168.0.3"}, told: "Node a: spec.podCIDRs[0]: 10.244.2.128/25 overlaps 10.244.2.0/24 of Node web"},
		{what: "a range behind an empty one of its own", states: []state{{made(1, honest), made(2, "a A 10.244.2.0/31,10.244.0.0/22 192.168.0.3")}},
			want: []string{honest, "a A - 192.168.0.3"}, told: "Node a: spec.podCIDRs[1]: 10.244.0.0/22 overlaps 10.244.1.0/24 of Node self"},
		{what: "the pods around another's address", states: []state{{made(1, honest), made(2, "a A 192.168.0.0/30 192.168.9.3")}},
			want: []string{honest, "a A - 192.168.9.3"}, told: "Node a: spec.podCIDRs[0]: 192.168.0.0/30 has the address 192.168.0.1 of Node self in it"},
		{what: "an address among another's pods", states: []state{{made(1, honest), made(2, "a A 10.244.3.0/24 10.244.2.7")}},
			want: []string{honest, "a A 10.244.3.0/24"}, told: "Node a: status.addresses[0].address: 10.244.2.7 lies in the pod range 10.244.2.0/24 of Node web"},

		// Claims of two nodes, of which one was first.
		{what: "an older node claims a newer one's address later", states: []state{
			{made(1, "a A 10.244.3.0/24 192.168.0.3"), made(2, honest)}, {made(1, "a A 10.244.3.0/24 192.168.0.3 192.168.0.2"), made(2, honest)}},
			want: []string{honest, "a A 10.244.3.0/24 192.168.0.3"}, told: "Node a: status.addresses[1].address: 192.168.0.2 is an address of Node web"},
		{what: "an older node says a newer one's key later", states: []state{
			{made(1, "a A - 192.168.0.3"), made(2, honest)}, {made(1, "a W - 192.168.0.3"), made(2, honest)}},
			want: []string{honest, "a A - 192.168.0.3"}, told: "the node's key has changed to W"},
		{what: "an older node without a key says a newer one's", states: []state{
			{made(1, "a - - 192.168.0.3"), made(2, honest)}, {made(1, "a W - 192.168.0.3"), made(2, honest)}},
			want: []string{honest, "a - - 192.168.0.3"}, told: "Node a: metadata.annotations[tapestry.dev/wireguard-public-key]: is the key of Node web"},
		{what: "nothing is known: the older one has it", states: []state{{made(1, "zoo Z - 192.168.0.2"), made(2, honest)}},
			want: []string{"zoo Z - 192.168.0.2", "web W 10.244.2.0/24"}, told: "Node web: status.addresses[0].address: 192.168.0.2 is an address of Node zoo"},
		{what: "it is given up, and another's", states: []state{{made(1, honest)}, {made(1, "web W 10.244.2.0/24 192.168.0.9"), made(2, "a A - 192.168.0.2")}},
			want: []string{"web W 10.244.2.0/24 192.168.0.9", "a A - 192.168.0.2"}},
		{what: "a node under another name", states: []state{{made(1, honest), made(2, "new W - 192.168.0.2")}, {made(2, "new W 10.244.2.0/24 192.168.0.2")}},
			want: []string{"new W 10.244.2.0/24 192.168.0.2"}},
		{what: "a node made anew", states: []state{{made(1, honest)}, {made(5, "web W2 10.244.2.0/24 192.168.0.2"), made(4, "a A - 192.168.0.3")}},
			want: []string{"web W2 10.244.2.0/24 192.168.0.2", "a A - 192.168.0.3"}},
	} {
		t.Run(test.what, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pins")
			var got []*corev1.Node
			var problems []kube.Problem
			for _, nodes := range test.states {
				p, err := Open(file, Rules{Self: "self", NodeCIDRs: test.rules}) // as an agent that has just started
				if err != nil {
					t.Fatal(err)
				}
				own := self
				if test.self != "" {
					own = test.self
				}
				nodes = append(slices.Clone(nodes), made(3, own))
				sortNodes(nodes)
				problems = nil
				got = p.Judge(Question{Nodes: nodes, Services: addresstest.Prefixes("10.96.0.0/12"), Servers: []netip.Addr{netip.MustParseAddr("192.168.0.100")}}, &problems)
				test.want = append(slices.DeleteFunc(test.want, func(s string) bool { return s == own }), own)
			}
			var lines []string
			for _, n := range got {
				lines = append(lines, believed(n))
			}
			slices.Sort(lines)
			slices.Sort(test.want)
			if !slices.Equal(lines, test.want) {
				t.Errorf("believed %q, want %q", lines, test.want)
			}
			told := fmt.Sprint(problems)
			if test.told == "" && len(problems) > 0 || !strings.Contains(told, test.told) {
				t.Errorf("told %s, want %q", told, test.told)
			}
		})
	}
}

// TestDecideTwin compares decide with the obvious way: a claim is kept when it overlaps none of those kept before it.
func TestDecideTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	lostAny := 0
	for range 3000 {
		var claims []*claim
		for i := range 1 + random.IntN(12) {
			a := netip.AddrFrom4([4]byte{10, byte(random.IntN(2)), byte(random.IntN(4)), byte(random.IntN(256))})
			bits := []int{8, 16, 20, 23, 24, 25, 30, 32}[random.IntN(8)]
			if random.IntN(4) == 0 {
				a, bits = netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(random.IntN(3)), 15: byte(random.IntN(4))}), []int{8, 48, 64, 126, 128}[random.IntN(5)]
			}
			claims = append(claims, &claim{index: i, Prefix: netip.PrefixFrom(a, bits).Masked()})
		}
		random.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
		order := func(a, b *claim) int { return a.index - b.index }
		got := map[*claim]bool{}
		for _, c := range decide(slices.Clone(claims), order) {
			if got[c.lost] || !c.lost.Overlaps(c.to.Prefix) || order(c.to, c.lost) >= 0 {
				t.Fatalf("%v lost to %v", c.lost, c.to)
			}
			got[c.lost] = true
		}
		slices.SortFunc(claims, order)
		var kept []*claim
		for _, c := range claims {
			lost := slices.ContainsFunc(kept, func(k *claim) bool { return k.Overlaps(c.Prefix) })
			if lost != got[c] {
				t.Fatalf("%v of %v is lost: %v, want %v", c, claims, got[c], lost)
			}
			if lost {
				lostAny++
			} else {
				kept = append(kept, c)
			}
		}
	}
	if lostAny < 1000 {
		t.Errorf("only %d were lost", lostAny)
	}
}

// BenchmarkJudge judges 5,000 nodes of which one has changed.
func BenchmarkJudge(b *testing.B) {
	var nodes []*corev1.Node
	for i := range 5000 {
		nodes = append(nodes, made(i, fmt.Sprintf("n%05d K%d 10.%d.%d.0/24,fd00:%x::/64 172.16.%d.%d", i, i, i/250, i%250, i, i/250, i%250)))
	}
	sortNodes(nodes)
	p, err := Open(filepath.Join(b.TempDir(), "pins"), Rules{Self: "n00001"})
	if err != nil {
		b.Fatal(err)
	}
	var problems []kube.Problem
	p.Judge(Question{Nodes: nodes}, &problems)
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	b.ReportAllocs()
	for b.Loop() {
		now := slices.Clone(nodes)
		again := *now[77]
		now[77] = &again
		if got := p.Judge(Question{Nodes: now}, &problems); !kube.Same(got, now) {
			b.Fatal("some are not believed")
		}
	}
}
