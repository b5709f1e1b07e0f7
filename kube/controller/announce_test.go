package controller_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/visible"
	"tapestry.dev/tapestry/visible/visibletest"
)

func peer(name, address string) *v1alpha1.BGPPeer {
	return &v1alpha1.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 3}, Spec: v1alpha1.BGPPeerSpec{Address: address, PeerASN: 64512, MyASN: 65000}}
}

// noSession is what an agent says of a session.
func noSession(node, router, text string) kube.Problem {
	return kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: "BGPPeer", Name: router}, Message: "on node " + node + ": " + text, Reason: kube.SessionFault}
}

// said returns the conditions of an object as text, each with the generation that it is for.
func said(conditions []metav1.Condition) string {
	var list []string
	for _, c := range conditions {
		list = append(list, fmt.Sprintf("%s@%d %s %s %s", c.Type, c.ObservedGeneration, c.Status, c.Reason, c.Message))
	}
	return strings.Join(list, " | ")
}

// TestAnnounceStatus: the kinds about announcements are told how they stand and what nodes report, and a second look
// changes nothing.
func TestAnnounceStatus(t *testing.T) {
	other := noSession("n1", "good", "it is wrong in itself")
	other.Reason = ""
	in := kube.Objects{
		Nodes: []*corev1.Node{
			saying(t, "n1", noSession("n1", "bad", "no session"), noSession("n1", "one", "no session"), other),
			saying(t, "n2", noSession("n2", "bad", "another password"), noSession("n2", "absent", "no session")),
		},
		BGPPeers:         []*v1alpha1.BGPPeer{peer("bad", "203.0.113.1"), peer("good", "203.0.113.2"), peer("one", "203.0.113.3")},
		L2Advertisements: []*v1alpha1.L2Advertisement{{ObjectMeta: metav1.ObjectMeta{Name: "lan", Generation: 7}}},
		BGPAdvertisements: []*v1alpha1.BGPAdvertisement{{ObjectMeta: metav1.ObjectMeta{Name: "hosts"}, Spec: v1alpha1.BGPAdvertisementSpec{
			Announced: v1alpha1.Announced{Pools: []string{"gone"}}, Peers: []string{"good"}}}},
	}
	before, now := allJSON(t, in), time.Unix(1000, 0)
	out := controller.AnnounceStatus(in, now)
	if allJSON(t, in) != before {
		t.Error("the input has been changed")
	}
	const fine = "Accepted@3 True Accepted all of it is used | "
	for name, check := range map[string]struct {
		status v1alpha1.AnnouncementStatus
		want   string
	}{
		"lan":   {out.L2Advertisements[0].Status, "Accepted@7 True Accepted all of it is used"},
		"hosts": {out.BGPAdvertisements[0].Status, `Accepted@0 False ReferenceNotFound spec.pools: there is no AddressPool "gone": make it, or remove the name`},
		"bad":   {out.BGPPeers[0].Status, fine + "Degraded@3 True SessionFault 2 nodes report it: node n1: no session; node n2: another password"},
		"good":  {out.BGPPeers[1].Status, fine + "Degraded@3 False NothingReported no node reports that anything is wrong with its session"},
		"one":   {out.BGPPeers[2].Status, fine + "Degraded@3 True SessionFault one node reports it: node n1: no session"},
	} {
		if got := said(check.status.Conditions); got != check.want || check.status.Nodes != 2 {
			t.Errorf("%s, of %d nodes:\ngot  %s\nwant %s", name, check.status.Nodes, got, check.want)
		}
	}
	again := controller.AnnounceStatus(out, now.Add(time.Hour))
	for i, p := range again.BGPPeers {
		if p != out.BGPPeers[i] {
			t.Errorf("BGPPeer %s is written again: %+v", p.Name, p.Status)
		}
	}
	if again.L2Advertisements[0] != out.L2Advertisements[0] || again.BGPAdvertisements[0] != out.BGPAdvertisements[0] {
		t.Error("an advertisement is written again")
	}

	// What others say of an object stays; what has changed has its time, and what has not keeps it.
	out.BGPPeers[0].Status.Conditions = append(out.BGPPeers[0].Status.Conditions, metav1.Condition{Type: "theirs", Status: metav1.ConditionTrue})
	out.Nodes = []*corev1.Node{saying(t, "n1"), saying(t, "n2")}
	healed := controller.AnnounceStatus(out, now.Add(time.Minute)).BGPPeers[0].Status.Conditions
	for kind, want := range map[string]int64{v1alpha1.AnnouncementAccepted: 1000, v1alpha1.PeerDegraded: 1060} {
		if c := meta.FindStatusCondition(healed, kind); c.LastTransitionTime.Unix() != want {
			t.Errorf("%s is of %v", kind, c.LastTransitionTime)
		}
	}
	if len(healed) != 3 || !meta.IsStatusConditionFalse(healed, v1alpha1.PeerDegraded) {
		t.Errorf("healed, it is %s", said(healed))
	}
}

// TestAnnouncements: the status is always what AnnounceStatus says, and worked out anew only after a change of what it
// follows from.
func TestAnnouncements(t *testing.T) {
	objs := announced(kube.Objects{}, 40)
	var a controller.Announcements
	step := func(what string) {
		t.Helper()
		before := a.Status(objs, settings.Now)
		got := a.Status(objs, settings.Now.Add(time.Hour))
		if !slices.Equal(got.BGPPeers, before.BGPPeers) || got.L2Advertisements[0] != before.L2Advertisements[0] || got.BGPAdvertisements[0] != before.BGPAdvertisements[0] {
			t.Errorf("%s: it is worked out anew though nothing has changed", what)
		}
		if want := controller.AnnounceStatus(objs, settings.Now); allJSON(t, got) != allJSON(t, want) {
			t.Errorf("%s: got %s, want %s", what, allJSON(t, got), allJSON(t, want))
		}
	}
	for what, change := range map[string]func(){
		"nothing": func() {},
		"a node": func() {
			objs.Nodes[1] = saying(t, objs.Nodes[1].Name, noSession(objs.Nodes[1].Name, "tor-0-1", "no session"))
		},
		"a node less": func() { objs.Nodes = objs.Nodes[1:] },
		"a pool":      func() { objs.AddressPools = balancers(0, 1, "").AddressPools },
		"an advertisement": func() {
			objs.L2Advertisements[0] = &v1alpha1.L2Advertisement{Spec: v1alpha1.L2AdvertisementSpec{Announced: v1alpha1.Announced{Pools: []string{"gone"}}}}
		},
		"another of BGP": func() {
			objs.BGPAdvertisements[0] = &v1alpha1.BGPAdvertisement{Spec: v1alpha1.BGPAdvertisementSpec{Peers: []string{"gone"}}}
		},
		"a router":          func() { objs.BGPPeers[0] = peer("tor-0-0", "127.0.0.1") },
		"a Service, though": func() { objs.Services = balancers(1, 1, "").Services },
	} {
		objs.Nodes, objs.BGPPeers = slices.Clone(objs.Nodes), slices.Clone(objs.BGPPeers) // as in another snapshot
		objs.L2Advertisements, objs.BGPAdvertisements = slices.Clone(objs.L2Advertisements), slices.Clone(objs.BGPAdvertisements)
		change()
		step(what)
	}
}

// TestReportsOfStrangers: a node is heard of the BGPPeers that it has a session with, and of no others, whatever it
// writes.
func TestReportsOfStrangers(t *testing.T) {
	in := kube.Objects{BGPPeers: []*v1alpha1.BGPPeer{peer("tor", "203.0.113.1"), peer("twin", "203.0.113.1"), peer("unread", "127.0.0.1")}}
	in.BGPPeers[0].Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "a"}}
	for name, rack := range map[string]string{"n1": "a", "n2": "b", "n3": "a"} {
		alien := noSession(name, "tor", "no session")
		alien.Object.Namespace = "elsewhere"
		n := saying(t, name, alien, noSession(name, "tor", "no session"), noSession(name, "twin", "no session"), noSession(name, "unread", "no session"), noSession(name, "absent", "no session"))
		n.Labels = map[string]string{"rack": rack}
		in.Nodes = append(in.Nodes, n)
	}
	for _, n := range in.Nodes {
		if n.Name == "n3" {
			n.Annotations[kube.StockAnnotation] = "true"
		}
	}
	const nobody = "no node reports that anything is wrong with its session"
	for i, want := range []string{"one node reports it: node n1: no session", "one node reports it: node n2: no session", nobody} {
		p := controller.AnnounceStatus(in, time.Unix(1000, 0)).BGPPeers[i]
		if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PeerDegraded); c.Message != want {
			t.Errorf("BGPPeer %s: %s, want %s", p.Name, c.Message, want)
		}
	}
}

// TestAnnounceStatusOfHostile: whatever an object or Nodes say, its conditions are short, and show every character.
func TestAnnounceStatusOfHostile(t *testing.T) {
	hostile := visibletest.Hostile + strings.Repeat("\u00e9\x1b", 3000)
	in := kube.Objects{BGPPeers: []*v1alpha1.BGPPeer{peer("tor", "203.0.113.1"), peer("x", hostile)}}
	ad := &v1alpha1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	for i := range 100 {
		n := fmt.Sprintf("n%02d", i)
		in.Nodes = append(in.Nodes, saying(t, n, noSession(n, "tor", hostile)))
		ad.Spec.Pools = append(ad.Spec.Pools, fmt.Sprint(i, visibletest.Hostile))
	}
	ad.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{hostile: hostile}}
	in.BGPAdvertisements = []*v1alpha1.BGPAdvertisement{ad}
	out := controller.AnnounceStatus(in, time.Unix(1000, 0))
	for _, list := range [][]metav1.Condition{out.BGPPeers[0].Status.Conditions, out.BGPPeers[1].Status.Conditions, out.BGPAdvertisements[0].Status.Conditions} {
		for _, c := range list {
			if visible.Text(c.Message) != c.Message {
				t.Errorf("%s does not show all of its characters: %s", c.Type, c.Message)
			}
			if n := len([]rune(c.Message)); n > 4000 {
				t.Errorf("%s has %d characters", c.Type, n)
			}
		}
	}
	if c := meta.FindStatusCondition(out.BGPPeers[0].Status.Conditions, v1alpha1.PeerDegraded); !strings.HasPrefix(c.Message, "100 nodes report it: node n00: ") || !strings.HasSuffix(c.Message, "; and 95 more nodes") {
		t.Errorf("%s", c.Message)
	}
}

// BenchmarkAnnounceStatus decides anew about a cluster of many nodes and objects, each of which selects a few nodes.
func BenchmarkAnnounceStatus(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var in kube.Objects
			for i := range n {
				name := fmt.Sprint("x", i)
				on := &metav1.LabelSelector{MatchLabels: map[string]string{"rack": name}}
				in.Nodes = append(in.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": name}}})
				p := peer(name, fmt.Sprintf("203.0.%d.%d", i/250, i%250))
				p.Spec.NodeSelector = on
				in.BGPPeers = append(in.BGPPeers, p)
				in.L2Advertisements = append(in.L2Advertisements, &v1alpha1.L2Advertisement{ObjectMeta: p.ObjectMeta, Spec: v1alpha1.L2AdvertisementSpec{Announced: v1alpha1.Announced{NodeSelector: on}}})
			}
			in = controller.AnnounceStatus(in, time.Unix(1000, 0))
			b.ReportAllocs()
			for b.Loop() {
				controller.AnnounceStatus(in, time.Unix(1000, 0))
			}
		})
	}
}
