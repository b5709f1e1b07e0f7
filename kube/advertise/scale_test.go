package advertise

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// world returns a cluster with n load balancers, which are announced by ARP, on a number of nodes.
func world(n, nodes int) (kube.Objects, []*services.Service) {
	objs := kube.Objects{
		AddressPools:     []*v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"198.18.0.0/15"}}}},
		L2Advertisements: []*v1alpha1.L2Advertisement{{ObjectMeta: metav1.ObjectMeta{Name: "all"}}},
	}
	for i := range nodes {
		objs.Nodes = append(objs.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%04d", i)}})
	}
	var served []*services.Service
	at := netip.MustParseAddr("198.18.0.0")
	for i := range n {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprintf("s%06d", i)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		objs.Services = append(objs.Services, s)
		served = append(served, &services.Service{Namespace: "d", Name: s.Name, ExternalIPs: []netip.Addr{at}})
		at = at.Next()
	}
	return objs, served
}

func planOf(t testing.TB, s *Stage, objs *kube.Objects, served []*services.Service) *Stage {
	t.Helper()
	var say kube.Report
	s.Of("n0000", objs, roll.From(served), nil, &say)
	if len(say.Problems) > 0 {
		t.Fatal(say.Problems)
	}
	return s
}

// A Stage that saw other snapshots before says what a new one does, and says it by the same Plan while nothing changes
// of what is announced.
func TestStageTwin(t *testing.T) {
	objs, served := world(40, 7)
	var s Stage
	planOf(t, &s, &objs, served)
	check := func(what string, changes bool) {
		t.Helper()
		before := s.plan
		planOf(t, &s, &objs, served)
		if want := planOf(t, new(Stage), &objs, served).plan; !reflect.DeepEqual(s.plan, want) {
			t.Fatalf("%s: the Plan is not that of a new Stage", what)
		}
		if (s.plan != before) != changes {
			t.Errorf("%s: another Plan %v, want %v", what, s.plan != before, changes)
		}
	}
	check("nothing", false)
	objs.Services = append(slices.Clone(objs.Services), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "e", Name: "cluster"}})
	served = append(slices.Clone(served), &services.Service{Namespace: "e", Name: "cluster"})
	check("a Service inside comes", false)
	objs.Services, served = slices.Clone(objs.Services), slices.Clone(served)
	objs.Services[3] = objs.Services[3].DeepCopy()
	check("a load balancer changes where nobody looks", false)
	objs.Services = slices.Clone(objs.Services)
	objs.Services[3] = objs.Services[3].DeepCopy()
	objs.Services[3].Labels = map[string]string{"a": "b"}
	check("its labels change, which nobody selects", false)
	more := *served[5]
	more.ExternalLocal, more.Endpoints = true, []services.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Ready: true, Node: "n0003"}}
	served = slices.Clone(served)
	served[5] = &more
	check("one is for nodes with endpoints", true)
	objs.Nodes = slices.Clone(objs.Nodes[1:])
	check("a node goes", true)
	objs.Nodes = append(objs.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n9"}})
	check("a node comes", true)
	objs.Services, served = slices.Clone(objs.Services[2:]), slices.Clone(served[2:])
	check("two load balancers go", true)
	ad := objs.L2Advertisements[0].DeepCopy()
	ad.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"no": "where"}}
	objs.L2Advertisements = []*v1alpha1.L2Advertisement{ad}
	check("no node is selected", true)
}

// BenchmarkPlan is what a node pays for load balancers among 50,000 Services, on 100 nodes, announced by ARP and BGP:
// for the first Plan, when the labels of one load balancer change, when one of its endpoints does, when one that is
// served at nodes with endpoints moves from node to node, and when a Service inside the cluster comes.
func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{5000, 50_000} {
		objs, served := world(n, 100)
		speak(&objs)
		for i := range 50_000 - n {
			name := fmt.Sprintf("i%06d", i)
			objs.Services = append(objs.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}})
			served = append(served, &services.Service{Namespace: "d", Name: name})
		}
		slices.SortFunc(objs.Services, compareObjects)
		slices.SortFunc(served, compareServed)
		at := slices.IndexFunc(served, func(s *services.Service) bool { return s.Name == "s000007" })
		list := roll.From(served)
		run := func(name string, change func(n int)) {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				before, served := objs, list
				defer func() { objs, list = before, served }()
				var s Stage
				s.Of("n0000", &objs, list, nil, new(kube.Report))
				for n := 0; b.Loop(); n++ {
					change(n)
					s.Of("n0000", &objs, list, nil, new(kube.Report))
				}
			})
		}
		b.Run(fmt.Sprintf("%d/first", n), func(b *testing.B) {
			for b.Loop() {
				new(Stage).Of("n0000", &objs, list, nil, new(kube.Report))
			}
		})
		run("labels", func(n int) {
			objs.Services = slices.Clone(objs.Services)
			objs.Services[at] = objs.Services[at].DeepCopy()
			objs.Services[at].Labels = map[string]string{"n": fmt.Sprint(n)}
		})
		endpoint := func(node string, local bool) {
			svc := *list.At(at)
			svc.ExternalLocal, svc.Endpoints = local, []services.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Ready: true, Node: node}}
			list = list.With(roll.Edit[*services.Service]{At: at, To: &svc})
		}
		run("endpoint", func(n int) { endpoint(fmt.Sprintf("n%04d", n%100), false) })
		run("local", func(n int) { endpoint(fmt.Sprintf("n%04d", n%100), true) })
		run("inside", func(n int) {
			name := fmt.Sprintf("x%09d", n)
			objs.Services = append(slices.Clone(objs.Services[:50_000]), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "e", Name: name}})
			list = roll.From(append(slices.Clone(served), &services.Service{Namespace: "e", Name: name}))
		})
	}
}

// speak has load balancers announced by BGP as well: each by itself, and in prefixes.
func speak(objs *kube.Objects) {
	objs.BGPPeers = []*v1alpha1.BGPPeer{
		{ObjectMeta: metav1.ObjectMeta{Name: "p1"}, Spec: v1alpha1.BGPPeerSpec{Address: "203.0.113.1", PeerASN: 65000, MyASN: 65001}},
		{ObjectMeta: metav1.ObjectMeta{Name: "p2"}, Spec: v1alpha1.BGPPeerSpec{Address: "203.0.113.2", PeerASN: 65001, MyASN: 65001}},
	}
	pref := int64(7)
	objs.BGPAdvertisements = []*v1alpha1.BGPAdvertisement{
		{ObjectMeta: metav1.ObjectMeta{Name: "hosts"}, Spec: v1alpha1.BGPAdvertisementSpec{AggregationLength: 32, Communities: []string{"1:2"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "prefixes"}, Spec: v1alpha1.BGPAdvertisementSpec{AggregationLength: 28, Communities: []string{"1:1"}, LocalPreference: &pref, Peers: []string{"p2"}}},
	}
}

// A Service that is served at nodes with endpoints is served at Nodes alone, whatever names EndpointSlices have.
func TestNodesOf(t *testing.T) {
	at := func(node string, ready bool) services.Endpoint {
		return services.Endpoint{Addr: netip.MustParseAddr("10.0.0.1"), Node: node, Ready: ready, Serving: true, Terminating: !ready}
	}
	for name, c := range map[string]struct {
		list []services.Endpoint
		want []string
	}{
		"each once":                       {[]services.Endpoint{at("n0001", true), at("n0000", true), at("n0001", true), at("n0002", false)}, []string{"n0000", "n0001"}},
		"names of no Node":                {[]services.Endpoint{at("x", true), at("", true), at("n0001", true)}, []string{"n0001"}},
		"ready at no Node":                {[]services.Endpoint{at("x", true), at("n0001", false)}, nil},
		"none is ready":                   {[]services.Endpoint{at("n0001", false), at("n0001", false), at("x", false)}, []string{"n0001"}},
		"none is ready, names of no Node": {[]services.Endpoint{at("x", false)}, nil},
	} {
		objs, served := world(1, 3)
		served[0].ExternalLocal, served[0].Endpoints = true, c.list
		s := planOf(t, new(Stage), &objs, served)
		if got := s.rules.needs(s.addrs[0])[0].Nodes; !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if got := slices.Sorted(slices.Values(s.plan.Links[0].Ranked)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v announce the address, want %v", name, got, c.want)
		}
	}
}
