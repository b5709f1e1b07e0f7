package services

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
)

// tuple makes a Tuple from "proto src dst".
func tuple(s string) *packet.Tuple {
	var proto, src, dst string
	fmt.Sscan(s, &proto, &src, &dst)
	a, b := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return &packet.Tuple{
		Src: packet.AddrFrom(a.Addr()), SrcPort: a.Port(), Dst: packet.AddrFrom(b.Addr()), DstPort: b.Port(),
		Proto: map[string]packet.Proto{"tcp": packet.TCP, "udp": packet.UDP, "sctp": packet.SCTP, "icmp": packet.ICMPv4, "icmp6": packet.ICMPv6}[proto],
	}
}

// testConfig is a dual-stack cluster of two nodes, seen from node a.
func testConfig() Config {
	web := []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30080}}
	dual := eps("10.0.0.1 a rs", "fd00::1 a rs")
	return Config{
		Node:         "a",
		NodeAddrs:    addresstest.Addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"),
		OwnAddrs:     addresstest.Addrs("192.0.2.1", "2001:db8::1"),
		ServiceCIDRs: addresstest.Prefixes("10.96.0.0/16", "fd96::/112"),
		ClusterCIDRs: addresstest.Prefixes("10.0.0.0/16", "fd00::/48"),
		DNSAddrs:     addresstest.Addrs("10.96.0.10", "fd96::a"),
		Services: roll.From([]*Service{
			{Namespace: "d", Name: "dual", ClusterIPs: addresstest.Addrs("10.96.0.1", "fd96::1"), Ports: web, Endpoints: dual},
			{Namespace: "d", Name: "none", ClusterIPs: addresstest.Addrs("10.96.0.2"), Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30082}}, Endpoints: eps("10.0.0.3 a")},
			{Namespace: "d", Name: "local", ClusterIPs: addresstest.Addrs("10.96.0.3"), ExternalIPs: addresstest.Addrs("198.51.100.3"),
				Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30083}}, InternalLocal: true, ExternalLocal: true, Endpoints: eps("10.0.1.4 b rs")},
			{Namespace: "d", Name: "here", ClusterIPs: addresstest.Addrs("10.96.0.4"), Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30084}},
				ExternalLocal: true, Endpoints: eps("10.0.0.5 a rs", "10.0.1.5 b rs")},
			{Namespace: "d", Name: "empty-local", ClusterIPs: addresstest.Addrs("10.96.0.5"), Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}, InternalLocal: true},
			{Namespace: "kube-system", Name: "kube-dns", ClusterIPs: addresstest.Addrs("10.96.0.10"), Endpoints: eps("10.0.0.9 a rs"),
				Ports: []Port{{Name: "dns", Protocol: packet.UDP, Port: 53}, {Name: "web", Protocol: packet.TCP, Port: 9153}}},
			{Namespace: "d", Name: "headless", Ports: web[:1:1], Endpoints: dual},
		}),
	}
}

func TestPick(t *testing.T) {
	c := testConfig()
	c.Services.At(6).Ports = []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}
	c.Services.At(5).Ports[0].Name = "web" // UDP, which the endpoint does not serve
	table, _ := NewTable(c)
	tests := []struct {
		name, tuple string
		kind        packet.ChoiceKind
		to          string
	}{
		{"ClusterIP", "tcp 10.0.0.7:999 10.96.0.1:80", packet.Picked, "10.0.0.1:8080"},
		{"ClusterIP v6", "tcp [fd00::7]:999 [fd96::1]:80", packet.Picked, "[fd00::1]:8080"},
		{"ClusterIP, other protocol", "udp 10.0.0.7:999 10.96.0.1:80", packet.UnknownPort, ""},
		{"ClusterIP, other port", "tcp 10.0.0.7:999 10.96.0.1:81", packet.UnknownPort, ""},
		{"ClusterIP, node port", "tcp 10.0.0.7:999 10.96.0.1:30080", packet.UnknownPort, ""},
		{"ClusterIP, ping", "icmp 10.0.0.7:5 10.96.0.1:5", packet.UnknownPort, ""},
		{"ClusterIP, ping v6", "icmp6 [fd00::7]:5 [fd96::1]:5", packet.UnknownPort, ""},
		{"node port", "tcp 203.0.113.1:999 192.0.2.1:30080", packet.Picked, "10.0.0.1:8080"},
		{"node port on the other node", "tcp 203.0.113.1:999 192.0.2.2:30080", packet.Picked, "10.0.0.1:8080"},
		{"node port v6", "tcp [2001:db8:f::1]:999 [2001:db8::2]:30080", packet.Picked, "[fd00::1]:8080"},
		{"node port v6 of a Service of IPv4", "tcp [2001:db8:f::1]:999 [2001:db8::2]:30082", packet.NotFrontend, ""},
		{"node, other port", "tcp 203.0.113.1:999 192.0.2.1:22", packet.NotFrontend, ""},
		{"node, ping", "icmp 203.0.113.1:5 192.0.2.1:5", packet.NotFrontend, ""},
		{"no endpoints", "tcp 10.0.0.7:999 10.96.0.2:80", packet.NoEndpoints, ""},
		{"no endpoints at the node port", "tcp 203.0.113.1:999 192.0.2.1:30082", packet.NoEndpoints, ""},
		{"internal policy local, only remote", "tcp 10.0.0.7:999 10.96.0.3:80", packet.DropLocal, ""},
		{"internal policy local, none anywhere", "tcp 10.0.0.7:999 10.96.0.5:80", packet.NoEndpoints, ""},
		{"external policy local, only remote", "tcp 203.0.113.1:999 192.0.2.1:30083", packet.DropLocal, ""},
		{"external IP, local, only remote", "tcp 203.0.113.1:999 198.51.100.3:80", packet.DropLocal, ""},
		{"external IP, unknown port", "tcp 203.0.113.1:999 198.51.100.3:81", packet.UnknownPort, ""},
		{"external IP, local, from a pod", "tcp 10.0.0.7:999 198.51.100.3:80", packet.Picked, "10.0.1.4:8080"},
		{"external policy local, from the node", "tcp 192.0.2.1:999 192.0.2.1:30083", packet.Picked, "10.0.1.4:8080"},
		{"external policy local, from another node", "tcp 192.0.2.2:999 192.0.2.1:30083", packet.DropLocal, ""},
		{"external policy local, one here", "tcp 203.0.113.1:999 192.0.2.1:30084", packet.Picked, "10.0.0.5:8080"},
		{"DNS udp", "udp 10.0.0.7:999 10.96.0.10:53", packet.ToStack, ""},
		{"DNS tcp v6", "tcp [fd00::7]:999 [fd96::a]:53", packet.ToStack, ""},
		{"DNS ping", "icmp 10.0.0.7:5 10.96.0.10:5", packet.ToStack, ""},
		{"DNS address, a Service's port", "tcp 10.0.0.7:999 10.96.0.10:9153", packet.Picked, "10.0.0.9:8080"},
		{"DNS address, unknown port", "tcp 10.0.0.7:999 10.96.0.10:80", packet.UnknownPort, ""},
		{"DNS address without Service, unknown port", "udp [fd00::7]:999 [fd96::a]:54", packet.UnknownPort, ""},
		{"service range", "tcp 10.0.0.7:999 10.96.7.7:80", packet.UnknownPort, ""},
		{"service range v6", "udp [fd00::7]:999 [fd96::77]:80", packet.UnknownPort, ""},
		{"pod", "tcp 10.0.0.7:999 10.0.0.1:8080", packet.NotFrontend, ""},
		{"outside", "udp 10.0.0.7:999 8.8.8.8:53", packet.NotFrontend, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := table.Pick(tuple(tt.tuple))
			if got.Kind != tt.kind {
				t.Fatalf("kind %d, want %d", got.Kind, tt.kind)
			}
			if tt.kind != packet.Picked {
				if got.Backend != 0 || got.To != (packet.Endpoint{}) {
					t.Errorf("not picked, yet %+v", got)
				}
				return
			}
			if got.To.AddrPort().String() != tt.to {
				t.Errorf("to %v, want %v", got.To.AddrPort(), tt.to)
			}
			if got.Backend == 0 || table.Backend(got.Backend, got.To.Addr) != packet.BackendReady {
				t.Errorf("backend %x is %d, want ready", got.Backend, table.Backend(got.Backend, got.To.Addr))
			}
		})
	}
}

func TestBackend(t *testing.T) {
	service := func(endpoints ...Endpoint) Config {
		return Config{Services: roll.From([]*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Endpoints: endpoints,
			Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}}})}
	}
	before, _ := NewTable(service(ep("10.0.0.1 a rs")))
	first := before.Pick(tuple("tcp 10.0.0.7:999 10.96.0.1:80"))

	reused := ep("10.0.0.1 a rs")
	reused.ID = "another pod"
	moved := ep("10.0.0.1 a rs")
	moved.Ports[0].Port = 8081
	hinted := ep("10.0.0.1 b rs") // meant for another zone, while the others are meant for this zone
	hinted.ForZone = Elsewhere
	near := ep("10.0.0.2 a rs")
	near.ForZone = Here
	onlyPod := Config{Pods: []Pod{{ID: "uid-10.0.0.1", Addrs: addresstest.Addrs("10.0.0.1")}}}
	otherService := service(ep("10.0.0.1 a rs"))
	otherService.Services.At(0).Name = "other"
	tests := []struct {
		name string
		c    Config
		want packet.BackendState
	}{
		{"unchanged", service(ep("10.0.0.1 b rs")), packet.BackendReady},
		{"among others", service(ep("10.0.0.2 b rs"), ep("10.0.0.1 a rs")), packet.BackendReady},
		// Hints say where new flows go (KEP-2433). A hint that is added or removed moves no present flow
		// (kubernetes/kubernetes#106507).
		{"meant for another zone by now", service(hinted, near), packet.BackendReady},
		{"unready", service(ep("10.0.0.1 a s"), ep("10.0.0.2 a rs")), packet.BackendDraining},
		{"alone and unready", service(ep("10.0.0.1 a")), packet.BackendDraining},
		{"terminating beside ready", service(ep("10.0.0.1 a st"), ep("10.0.0.2 a rs")), packet.BackendServing},
		{"terminating, and serves no longer", service(ep("10.0.0.1 a t"), ep("10.0.0.2 a rs")), packet.BackendDraining},
		{"terminating but the last resort", service(ep("10.0.0.1 a st")), packet.BackendReady},
		{"removed", service(ep("10.0.0.2 a rs")), packet.BackendGone},
		{"address reused", service(reused), packet.BackendGone},
		{"other target port", service(moved), packet.BackendGone},
		{"other Service", otherService, packet.BackendGone},
		{"no Service, pod lives", onlyPod, packet.BackendDraining},
		{"nothing", Config{}, packet.BackendGone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table, _ := NewTable(tt.c)
			if got := table.Backend(first.Backend, first.To.Addr); got != tt.want {
				t.Errorf("state %d, want %d", got, tt.want)
			}
		})
	}
}

// TestBackendIDIsStable compares ids with the values of the first version, since nodes of different versions must
// agree on them.
// TestBackendOfNoPod: an endpoint without targetRef has only its address for an identity. Nobody can tell whether it
// lives, so its connections go on when it leaves its Service, as long as it answers (kubernetes/kubernetes#102631).
func TestBackendOfNoPod(t *testing.T) {
	for _, addr := range []string{"10.0.0.1", "198.51.100.7", "fd00::1", "2001:db8:1:2:3:4:5:6"} {
		e := ep(addr + " a rs")
		e.ID = addr
		s := &Service{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1", "fd96::1"), Endpoints: []Endpoint{e},
			Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}}
		table, _ := NewTable(Config{Services: roll.From([]*Service{s})})
		to := "tcp 10.0.0.7:999 10.96.0.1:80"
		if e.Addr.Is6() {
			to = "tcp [fd00::7]:999 [fd96::1]:80"
		}
		c := table.Pick(tuple(to))
		if got := table.Backend(c.Backend, c.To.Addr); got != packet.BackendReady {
			t.Errorf("%s: state %d before", addr, got)
		}
		left := *s
		left.Endpoints = nil
		for name, next := range map[string]Config{"left": {Services: roll.From([]*Service{&left})}, "Service deleted": {}} {
			table, _ := table.Update(next)
			if got := table.Backend(c.Backend, c.To.Addr); got != packet.BackendDraining {
				t.Errorf("%s, %s: state %d, want %d", addr, name, got, packet.BackendDraining)
			}
			if got := table.Backend(c.Backend, packet.Addr{15: 99}); got != packet.BackendGone {
				t.Errorf("%s, %s: state %d for another's address, want %d", addr, name, got, packet.BackendGone)
			}
		}
	}
}

func TestBackendIDIsStable(t *testing.T) {
	table, _ := NewTable(testConfig())
	got := table.Pick(tuple("tcp 10.0.0.7:999 10.96.0.1:80")).Backend
	if want := uint64(0xb22ed764e65ea828); got != want {
		t.Errorf("id %#x, want %#x", got, want)
	}
}

func TestAffinity(t *testing.T) {
	var endpoints []Endpoint
	for i := range 40 {
		endpoints = append(endpoints, ep(fmt.Sprintf("10.0.0.%d a rs", i+1)))
	}
	for _, n := range []int{3, 40} {
		table, _ := NewTable(Config{Services: roll.From([]*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Affinity: time.Hour,
			Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}, Endpoints: endpoints[:n]}})})
		seen := map[uint64]bool{}
		for client := range 100 {
			var first uint64
			for port := range 20 {
				c := table.Pick(tuple(fmt.Sprintf("tcp 10.1.0.%d:%d 10.96.0.1:80", client, 1000+port)))
				if port == 0 {
					first = c.Backend
				}
				if c.Backend != first {
					t.Fatalf("client %d moved", client)
				}
			}
			seen[first] = true
		}
		if len(seen) < min(n, 25) {
			t.Errorf("100 clients use %d of %d backends", len(seen), n)
		}
	}
}

func TestProblems(t *testing.T) {
	tcp := func(ports ...uint16) (out []Port) {
		for i := 0; i < len(ports); i += 2 {
			out = append(out, Port{Name: "web", Protocol: packet.TCP, Port: ports[i], NodePort: ports[i+1]})
		}
		return out
	}
	tests := []struct {
		name     string
		services []*Service
		want     []string // object, then a part of the message
	}{
		{"fine", []*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: tcp(80, 0)}}, nil},
		{"no ports", []*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1")}}, []string{"Service d/s", "no ports"}},
		{"headless without ports is fine", []*Service{{Namespace: "d", Name: "s"}}, nil},
		{"port 0", []*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: tcp(0, 0)}}, []string{"Service d/s", "is 0"}},
		{"protocol", []*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: []Port{{Protocol: packet.ICMPv4, Port: 5}}}},
			[]string{"Service d/s", "only TCP, UDP and SCTP"}},
		{"port twice", []*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: tcp(80, 0, 80, 0)}}, []string{"Service d/s", "twice"}},
		{"no endpoint matches", []*Service{{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: []Port{{Name: "x", Protocol: packet.TCP, Port: 5}},
			Endpoints: eps("10.0.0.1 a rs")}}, []string{"Service d/s", "no endpoint serves port 5/TCP"}},
		{"ClusterIP twice", []*Service{
			{Namespace: "d", Name: "t", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: tcp(80, 0)},
			{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: tcp(80, 0)},
		}, []string{"Service d/t", "belongs to Service d/s"}},
		{"node port twice", []*Service{
			{Namespace: "d", Name: "t", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: tcp(80, 30000)},
			{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.2"), Ports: tcp(80, 30000)},
		}, []string{"Service d/t", "NodePort 30000/TCP belongs to Service d/s"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, problems := NewTable(Config{NodeAddrs: addresstest.Addrs("192.0.2.1"), Services: roll.From(tt.services)})
			if tt.want == nil {
				if len(problems) != 0 {
					t.Errorf("got %v", problems)
				}
				return
			}
			if len(problems) != 1 || problems[0].Object != tt.want[0] || !strings.Contains(problems[0].Message, tt.want[1]) {
				t.Errorf("got %v, want %q", problems, tt.want)
			}
		})
	}
}

func TestRows(t *testing.T) {
	c := testConfig()
	c.Services = roll.From(c.Services.Slice()[:4])
	c.Services.At(0).Balance = balance.EWMA
	c.Services.At(3).Affinity, c.Services.At(3).Balance = time.Hour, balance.Random // in vain
	table, _ := NewTable(c)
	want := []Row{
		{"(cluster DNS)", "dns", "10.96.0.10:53", "TCP", "", "", "", "this node"},
		{"(cluster DNS)", "dns", "10.96.0.10:53", "UDP", "", "", "", "this node"},
		{"(cluster DNS)", "dns", "[fd96::a]:53", "TCP", "", "", "", "this node"},
		{"(cluster DNS)", "dns", "[fd96::a]:53", "UDP", "", "", "", "this node"},
		{"d/dual", "web", "10.96.0.1:80", "TCP", "Cluster", "None", "ewma", "10.0.0.1:8080"},
		{"d/dual", "web", "[fd96::1]:80", "TCP", "Cluster", "None", "ewma", "[fd00::1]:8080"},
		{"d/dual", "web", "node(IPv4):30080", "TCP", "Cluster", "None", "ewma", "10.0.0.1:8080"},
		{"d/dual", "web", "node(IPv6):30080", "TCP", "Cluster", "None", "ewma", "[fd00::1]:8080"},
		{"d/here", "web", "10.96.0.4:80", "TCP", "Cluster", "ClientIP", "hash", "10.0.0.5:8080,10.0.1.5:8080"},
		{"d/here", "web", "node(IPv4):30084", "TCP", "Local", "ClientIP", "hash", "10.0.0.5:8080"},
		{"d/local", "web", "10.96.0.3:80", "TCP", "Local", "None", "hash", "none here (dropped)"},
		{"d/local", "web", "198.51.100.3:80", "TCP", "Local", "None", "hash", "none here (dropped)"},
		{"d/local", "web", "node(IPv4):30083", "TCP", "Local", "None", "hash", "none here (dropped)"},
		{"d/none", "web", "10.96.0.2:80", "TCP", "Cluster", "None", "hash", "none (refused)"},
		{"d/none", "web", "node(IPv4):30082", "TCP", "Cluster", "None", "hash", "none (refused)"},
	}
	if diff := cmp.Diff(want, table.Rows()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	ports := []NodePort{
		{"d/dual", 30080, packet.TCP, ServedAll, ServedAll, 0}, {"d/none", 30082, packet.TCP, ServedNone, ServedNone, 0},
		{"d/local", 30083, packet.TCP, ServedInside, ServedNone, 0}, {"d/here", 30084, packet.TCP, ServedAll, ServedNone, 0},
	}
	if got := table.NodePorts(); !slices.Equal(got, ports) {
		t.Errorf("NodePorts %v, want %v", got, ports)
	}
}

// TestEqual changes every field of a Config, one after the other, so that no new field is forgotten in equalConfigs.
func TestEqual(t *testing.T) {
	full := func() Config {
		c := testConfig()
		c.NodeNames = []string{"a", "b", "a", "b"}
		c.Pods = []Pod{{ID: "u", Addrs: addresstest.Addrs("10.0.0.1")}}
		c.HostPorts = []HostPort{hostPort("127.0.0.1:8080 10.0.0.1:80")}
		c.Services.At(0).SourceRanges = addresstest.Prefixes("10.0.0.0/8")
		return c
	}
	one, other := full(), full()
	if !equalConfigs(&one, &other) {
		t.Fatal("two of the same differ")
	}
	n := 0
	for {
		c := full()
		left := n
		path := change(reflect.ValueOf(&c).Elem(), "Config", &left)
		if path == "" {
			break
		}
		if equalConfigs(&one, &c) {
			t.Errorf("a change of %s goes unnoticed", path)
		}
		n++
	}
	if n < 30 {
		t.Errorf("only %d fields were changed", n)
	}
}

// change changes the leaf number *n below v and returns its path, or "" when there are fewer leaves. It counts *n
// down.
func change(v reflect.Value, path string, n *int) string {
	switch {
	case v.Type() == reflect.TypeFor[netip.Addr]() || v.Type() == reflect.TypeFor[netip.Prefix]():
		if *n--; *n < 0 {
			v.SetZero()
			return path
		}
	case v.Type() == reflect.TypeFor[netip.AddrPort]():
		if *n--; *n < 0 {
			v.SetZero()
			return path
		}
	case v.Type() == reflect.TypeFor[roll.List[*Service]]():
		list := v.Interface().(roll.List[*Service])
		if p := change(reflect.ValueOf(list.At(0)), path+"[0]", n); p != "" {
			return p
		}
		if *n--; *n < 0 {
			v.Set(reflect.ValueOf(roll.From(list.Slice()[:list.Len()-1])))
			return path
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if p := change(v.Field(i), path+"."+v.Type().Field(i).Name, n); p != "" {
				return p
			}
		}
	case v.Kind() == reflect.Pointer:
		return change(v.Elem(), path, n)
	case v.Kind() == reflect.Slice:
		if v.Len() > 0 {
			if p := change(v.Index(0), path+"[0]", n); p != "" {
				return p
			}
			if *n--; *n < 0 {
				v.SetLen(v.Len() - 1)
				return path
			}
		}
	default:
		if *n--; *n < 0 {
			switch v.Kind() {
			case reflect.String:
				v.SetString(v.String() + "x")
			case reflect.Bool:
				v.SetBool(!v.Bool())
			case reflect.Int64:
				v.SetInt(v.Int() + 1)
			default:
				v.SetUint(v.Uint() + 1)
			}
			return path
		}
	}
	return ""
}

func TestAllocs(t *testing.T) {
	c := testConfig()
	for i := range 200 {
		c.Services.At(0).Endpoints = append(c.Services.At(0).Endpoints, ep(fmt.Sprintf("10.0.2.%d a rs", i)))
	}
	table, _ := NewTable(c)
	for _, s := range []string{
		"tcp 10.0.0.7:999 10.96.0.1:80", "tcp [fd00::7]:999 [fd96::1]:80", "tcp 203.0.113.1:9 192.0.2.1:30083",
		"tcp 10.0.0.7:999 10.0.0.1:8080", "tcp 10.0.0.7:999 10.96.7.7:80",
	} {
		tu := tuple(s)
		if n := testing.AllocsPerRun(100, func() {
			choice := table.Pick(tu)
			table.Backend(choice.Backend, choice.To.Addr)
			table.Backend(1, tu.Src) // one that is gone
		}); n != 0 {
			t.Errorf("%s: %v allocations", s, n)
		}
	}
}
