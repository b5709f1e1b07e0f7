package advertise

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/v1alpha1"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// slow is the slow twin of Stage: it makes the Plan of one snapshot, address by address, and remembers nothing.
func slow(node string, objs *kube.Objects, served []*services.Service, egress []announce.Link) *announce.Plan {
	r := read(node, objs, nil)
	p := &announce.Plan{Node: node, Links: slices.Clone(egress), Peers: r.peers}
	if len(objs.L2Advertisements)+len(objs.BGPAdvertisements)+len(objs.BGPPeers)+len(egress) > 0 {
		p.Down = r.down
	}
	var addrs []*address
	for _, svc := range served {
		for _, obj := range objs.Services {
			if obj.Name != svc.Name || obj.Namespace != svc.Namespace || obj.Spec.Type != corev1.ServiceTypeLoadBalancer {
				continue
			}
			for _, a := range svc.ExternalIPs {
				i := slices.IndexFunc(addrs, func(at *address) bool { return at.Addr == a })
				if i < 0 && r.poolOf(a) != "" {
					i, addrs = len(addrs), append(addrs, &address{Addr: a, pool: r.poolOf(a)})
				}
				if i >= 0 {
					addrs[i].services = append(addrs[i].services, member{svc, obj.Labels})
				}
			}
		}
	}
	slices.SortFunc(addrs, compareAddresses)
	for _, at := range addrs {
		var covering []*ad
		var interfaces []string
		for _, a := range r.links {
			if a.covers(at) {
				covering, interfaces = append(covering, a), append(interfaces, a.interfaces...)
			}
		}
		slices.Sort(interfaces)
		if len(covering) > 0 && !slices.ContainsFunc(egress, func(l announce.Link) bool { return l.Addr == at.Addr }) {
			p.Links = append(p.Links, announce.Link{Addr: at.Addr, Services: at.names(), Interfaces: slices.Compact(interfaces),
				Ranked: announce.Rank(at.Addr, announce.Eligible(r.selected(covering), r.needs(at)))})
		}
		for _, a := range r.routes {
			if !at.serves() || !a.covers(at) || !slices.Contains(announce.Eligible(r.selected([]*ad{a}), r.needs(at)), node) {
				continue
			}
			for _, peer := range r.peers {
				if len(a.spec.Peers) == 0 || slices.Contains(a.spec.Peers, peer.Name) {
					p.Routes = tell(p.Routes, announce.Route{Prefix: a.aggregate(at.Addr), Peer: peer.Name, Services: at.names(), Communities: a.attributes.Communities, LocalPref: a.attributes.LocalPref})
				}
			}
		}
	}
	slices.SortFunc(p.Routes, compareRoutes)
	return p
}

// tell adds a Route to a list, or to the one in it that is for the same prefix and router.
func tell(list []announce.Route, r announce.Route) []announce.Route {
	i := slices.IndexFunc(list, func(o announce.Route) bool { return o.Prefix == r.Prefix && o.Peer == r.Peer })
	if i < 0 {
		i, list = len(list), append(list, announce.Route{Prefix: r.Prefix, Peer: r.Peer})
	}
	at := &list[i]
	at.Services, at.Communities = slices.Concat(at.Services, r.Services), slices.Concat(at.Communities, r.Communities)
	slices.Sort(at.Services)
	slices.Sort(at.Communities)
	at.Services, at.Communities = slices.Compact(at.Services), slices.Compact(at.Communities)
	if at.LocalPref == nil || r.LocalPref != nil && *r.LocalPref > *at.LocalPref {
		at.LocalPref = r.LocalPref
	}
	return list
}

// FuzzStage changes a small cluster step by step. The Plan of a Stage that has seen all steps is always that of
// the slow twin, and another pointer only when it says something else.
func FuzzStage(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23})
	long := make([]byte, 4000)
	for i := range long {
		long[i] = byte(uint32(i*i+7*i) * 2654435761 >> 13)
	}
	f.Add(long)
	f.Fuzz(func(t *testing.T, steps []byte) {
		c := newChanging()
		var s Stage
		for i := 0; i+2 < len(steps) && i < 3000; i += 3 {
			c.step(steps[i], int(steps[i+1]), int(steps[i+2]))
			before := s.plan
			served := roll.From(c.served)
			if i%2 == 0 && s.services.Len() == served.Len() { // as successive snapshots do
				served = s.services.With(edits(s.services, served)...)
			}
			s.Of("n0", &c.objs, served, c.egress, new(kube.Report))
			if want := slow("n0", &c.objs, c.served, c.egress); !reflect.DeepEqual(s.plan, want) {
				t.Fatalf("step %d: the Plan is not that of the slow twin:\n%+v\n%+v", i/3, s.plan, want)
			}
			if before != nil && s.plan != before && reflect.DeepEqual(before, s.plan) {
				t.Fatalf("step %d: another Plan says the same", i/3)
			}
		}
	})
}

func edits(old, now roll.List[*services.Service]) (list []roll.Edit[*services.Service]) {
	for i, svc := range now.All() {
		if old.At(i) != svc {
			list = append(list, roll.Edit[*services.Service]{At: i, To: svc})
		}
	}
	return list
}

// changing is a small cluster that changes.
type changing struct {
	objs   kube.Objects
	served []*services.Service
	egress []announce.Link
}

func newChanging() *changing {
	c := &changing{}
	c.objs, c.served = world(6, 3)
	for i, n := range c.objs.Nodes {
		n.Name = fmt.Sprintf("n%d", i)
	}
	c.objs.L2Advertisements = append(c.objs.L2Advertisements, &v1alpha1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: "some"}, Spec: v1alpha1.L2AdvertisementSpec{
		Announced:  v1alpha1.Announced{ServiceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"l": "0"}}, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"l": "1"}}},
		Interfaces: []string{"eth1"}}})
	speak(&c.objs)
	c.objs.BGPAdvertisements[1].Spec.ServiceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"l": "1"}}
	return c
}

// step changes one thing, by numbers: what, which one, and to what.
func (c *changing) step(what byte, which, to int) {
	label := map[string]string{"l": fmt.Sprint(to % 3)}
	object := func(change func(*corev1.Service)) {
		if len(c.objs.Services) > 0 {
			c.objs.Services = slices.Clone(c.objs.Services)
			at := &c.objs.Services[which%len(c.objs.Services)]
			*at = (*at).DeepCopy()
			change(*at)
		}
	}
	service := func(change func(*services.Service)) {
		if len(c.served) > 0 {
			c.served = slices.Clone(c.served)
			at := &c.served[which%len(c.served)]
			copied := **at
			*at = &copied
			change(*at)
		}
	}
	name := fmt.Sprintf("s%06d", which%8)
	switch what % 12 {
	case 0:
		object(func(s *corev1.Service) { s.Labels = label })
	case 1:
		object(func(s *corev1.Service) {
			s.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeClusterIP}[to%2]
		})
	case 2: // goes or comes
		list := slices.DeleteFunc(slices.Clone(c.objs.Services), func(s *corev1.Service) bool { return s.Name == name })
		if len(list) == len(c.objs.Services) {
			list = append(list, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, Labels: label}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}})
			slices.SortFunc(list, compareObjects)
		}
		c.objs.Services = list
	case 3:
		list := slices.DeleteFunc(slices.Clone(c.served), func(s *services.Service) bool { return s.Name == name })
		if len(list) == len(c.served) {
			list = append(list, &services.Service{Namespace: "d", Name: name, ExternalIPs: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, byte(to % 40)})}})
			slices.SortFunc(list, compareServed)
		}
		c.served = list
	case 4: // addresses, of a pool or not, of which several Services have one
		service(func(s *services.Service) {
			s.ExternalIPs = nil
			for i := range to % 3 {
				s.ExternalIPs = append(s.ExternalIPs, netip.AddrFrom4([4]byte{198, byte(17 + to%7), 0, byte(to/3%20 + i)}))
			}
		})
	case 5, 6:
		service(func(s *services.Service) {
			s.Endpoints = nil
			for i := range to % 4 {
				s.Endpoints = append(s.Endpoints, services.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Ready: (to>>2+i)%2 == 0, Serving: true, Terminating: to&32 != 0, Node: fmt.Sprintf("n%d", (to>>3+i)%4)})
			}
		})
	case 7:
		service(func(s *services.Service) { s.ExternalLocal = to%2 == 0 })
	case 8:
		c.objs.Nodes = slices.Clone(c.objs.Nodes)
		if len(c.objs.Nodes) > 2 && to%3 == 0 {
			c.objs.Nodes = c.objs.Nodes[:len(c.objs.Nodes)-1]
		} else if to%3 == 1 {
			c.objs.Nodes = append(c.objs.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", len(c.objs.Nodes)), Labels: label}})
		} else {
			at := &c.objs.Nodes[which%len(c.objs.Nodes)]
			*at = (*at).DeepCopy()
			(*at).Labels = label
		}
	case 9:
		c.objs.L2Advertisements = slices.Clone(c.objs.L2Advertisements)
		if len(c.objs.L2Advertisements) > 0 && to%2 == 0 {
			c.objs.L2Advertisements = c.objs.L2Advertisements[1:]
		} else {
			c.objs.L2Advertisements = append(c.objs.L2Advertisements, &v1alpha1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("l", which)}, Spec: v1alpha1.L2AdvertisementSpec{
				Announced: v1alpha1.Announced{ServiceSelector: &metav1.LabelSelector{MatchLabels: label}}}})
		}
	case 10:
		c.objs.BGPAdvertisements = slices.Clone(c.objs.BGPAdvertisements)
		at := &c.objs.BGPAdvertisements[which%2]
		*at = (*at).DeepCopy()
		(*at).Spec.AggregationLength = int32(24 + to%9)
	case 11:
		c.egress = nil
		for i := range to % 3 {
			c.egress = append(c.egress, announce.Link{Addr: netip.AddrFrom4([4]byte{198, 18, 0, byte(which%4 + i)}), Egress: "e", Ranked: []string{"n1"}})
		}
	}
}

// TestNodeWithoutLabels: a Node that has no label at all has the routers that are for every node.
func TestNodeWithoutLabels(t *testing.T) {
	objs := kube.Objects{
		Nodes:    []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}},
		BGPPeers: []*v1alpha1.BGPPeer{{ObjectMeta: metav1.ObjectMeta{Name: "tor"}, Spec: v1alpha1.BGPPeerSpec{Address: "203.0.113.1", PeerASN: 64512, MyASN: 65000}}},
	}
	if peers := read("n1", &objs, nil).peers; len(peers) != 1 {
		t.Errorf("n1 has %v", peers)
	}
	if peers := read("n2", &objs, nil).peers; len(peers) != 0 {
		t.Errorf("n2, of which there is no Node, has %v", peers)
	}
}
