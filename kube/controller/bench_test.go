package controller_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controller"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// balancers returns a cluster of n Services, of which every so-manieth is a load balancer. key is their sharing key, or
// "".
func balancers(n, every int, key string) kube.Objects {
	objs := kube.Objects{AddressPools: []*v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.AddressPoolSpec{Addresses: []string{"198.18.0.0/15"}}}}}
	for i := range n {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: fmt.Sprintf("s%06d", i)}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Port: 80}}}}
		if i%every == 0 {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			if key != "" {
				s.Annotations = map[string]string{kube.SharedAddressAnnotation: key}
			}
		}
		objs.Services = append(objs.Services, s)
	}
	return objs
}

// announced adds n nodes in racks of 20, each rack with two routers, and what is announced by them all. Of every tenth
// node something is wrong with a session.
func announced(objs kube.Objects, n int) kube.Objects {
	router := func(rack, i int) *v1alpha1.BGPPeer {
		p := peer(fmt.Sprintf("tor-%d-%d", rack, i), fmt.Sprintf("203.0.113.%d", 2*rack+i))
		p.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"rack": fmt.Sprint(rack)}}
		return p
	}
	for i := range n {
		rack := i / 20
		if i%20 == 0 {
			objs.BGPPeers = append(objs.BGPPeers, router(rack, 0), router(rack, 1))
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%04d", i), Labels: map[string]string{"rack": fmt.Sprint(rack), corev1.LabelHostname: fmt.Sprint(i)}}}
		if i%10 == 0 {
			// There are only strings in it, so there is no error.
			text, _ := json.Marshal([]kube.Problem{noSession(node.Name, fmt.Sprintf("tor-%d-0", rack), "no session")})
			node.Annotations = map[string]string{kube.ProblemsAnnotation: string(text)}
		}
		objs.Nodes = append(objs.Nodes, node)
	}
	objs.L2Advertisements = []*v1alpha1.L2Advertisement{{ObjectMeta: metav1.ObjectMeta{Name: "lan"}}}
	objs.BGPAdvertisements = []*v1alpha1.BGPAdvertisement{{ObjectMeta: metav1.ObjectMeta{Name: "hosts"}}}
	return objs
}

var settings = controller.Options{Default: true, Now: time.Unix(1000, 0)}

func decided(objs kube.Objects, a *controller.Announcements) kube.Objects {
	return a.Status(decidedBut(objs), settings.Now)
}

// decidedBut decides about all but announcements.
func decidedBut(objs kube.Objects) kube.Objects {
	objs, _ = controller.LoadBalancers(objs, settings)
	return controller.IngressStatus(controller.EgressStatus(controller.PortsServed(objs, settings.Now), settings.Now))
}

// BenchmarkDecide decides anew, as after each change, about Services that have what they can have. BenchmarkDecideFirst
// gives them their addresses. Every tenth Service is a load balancer, or each of them is, or each of them with one
// sharing key and one port.
func BenchmarkDecide(b *testing.B) {
	benchmarkDecide(b, func(o kube.Objects) kube.Objects { return decided(o, new(controller.Announcements)) })
}
func BenchmarkDecideFirst(b *testing.B) {
	benchmarkDecide(b, func(o kube.Objects) kube.Objects { return o })
}

func benchmarkDecide(b *testing.B, before func(kube.Objects) kube.Objects) {
	for _, n := range []int{5000, 50_000} {
		for name, objs := range map[string]kube.Objects{"a tenth": balancers(n, 10, ""), "all": balancers(n, 1, ""), "all share": balancers(n, 1, "k")} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				objs := before(objs)
				var a controller.Announcements
				b.ReportAllocs()
				for b.Loop() {
					decided(objs, &a)
				}
			})
		}
	}
}

// BenchmarkDecideAnnounced decides anew about 1,000 Services, of which every tenth is a load balancer or each of them
// is, in clusters of that many nodes that announce them: while these stay, when the announcements are decided about
// anew, and, to compare, about all but the announcements.
func BenchmarkDecideAnnounced(b *testing.B) {
	for _, nodes := range []int{10, 100, 1000} {
		for name, every := range map[string]int{"a tenth": 10, "all": 1} {
			var a controller.Announcements
			objs := decided(announced(balancers(1000, every, ""), nodes), &a)
			for what, decide := range map[string]func(kube.Objects) kube.Objects{
				"stay":    func(o kube.Objects) kube.Objects { return decided(o, &a) },
				"anew":    func(o kube.Objects) kube.Objects { return decided(o, new(controller.Announcements)) },
				"without": decidedBut,
			} {
				b.Run(fmt.Sprintf("%d/%s/%s", nodes, name, what), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						decide(objs)
					}
				})
			}
		}
	}
}

// A decision about Services that have all they can have changes none of them, also when thousands share, and each
// of those that want one port gets an address of its own.
func TestDecidedStays(t *testing.T) {
	for name, objs := range map[string]kube.Objects{"some": balancers(3000, 10, ""), "all": balancers(3000, 1, ""), "shared": balancers(3000, 1, "k")} {
		first := decided(objs, new(controller.Announcements))
		has := map[netip.Addr]string{}
		for _, s := range first.Services {
			for _, in := range s.Status.LoadBalancer.Ingress {
				a := netip.MustParseAddr(in.IP)
				if has[a] != "" {
					t.Fatalf("%s: %s and %s both have %s", name, has[a], s.Name, a)
				}
				has[a] = s.Name
			}
		}
		if want := map[string]int{"some": 300, "all": 3000, "shared": 3000}[name]; len(has) != want {
			t.Errorf("%s: %d have an address, want %d", name, len(has), want)
		}
		settings := settings
		settings.Now = settings.Now.Add(time.Hour)
		again, _ := controller.LoadBalancers(first, settings)
		again = controller.IngressStatus(controller.PortsServed(again, settings.Now))
		for i, s := range again.Services {
			if s != first.Services[i] {
				t.Fatalf("%s: Service %s is written again", name, s.Name)
			}
		}
		if again.AddressPools[0] != first.AddressPools[0] {
			t.Errorf("%s: the AddressPool is written again", name)
		}
	}
}
