package controlplane_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/controlplane"
)

func TestAllocate(t *testing.T) {
	prefer := corev1.IPFamilyPolicyPreferDualStack
	service := func(name string, change func(*corev1.ServiceSpec)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		change(&s.Spec)
		return s
	}
	in := kube.Objects{Services: []*corev1.Service{
		service("dual", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &prefer }),
		service("external", func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName }),
		service("fixed", func(s *corev1.ServiceSpec) { s.ClusterIP = "10.96.1.1" }),
		service("headless", func(s *corev1.ServiceSpec) { s.ClusterIP = "None" }),
		service("node", func(s *corev1.ServiceSpec) {
			s.Type = corev1.ServiceTypeNodePort
			s.Ports = []corev1.ServicePort{{Name: "a", Port: 1}, {Name: "b", Port: 2, NodePort: 30001}, {Name: "c", Port: 1, Protocol: "UDP"}}
		}),
		service("plain", func(*corev1.ServiceSpec) {}),
		service("v6", func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }),
	}}
	before := allJSON(t, in)
	out, problems := controlplane.Allocate(in)
	if len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	if allJSON(t, in) != before {
		t.Error("the input has been changed")
	}
	v4, v6 := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")
	want := map[string][]netip.Prefix{
		"dual": {v4, v6}, "external": nil, "fixed": {v4}, "headless": nil, "node": {v4}, "plain": {v4}, "v6": {v6},
	}
	seen := map[netip.Addr]bool{}
	for i, s := range out.Services {
		ips := s.Spec.ClusterIPs
		if s.Name == "fixed" {
			if s != in.Services[i] {
				t.Error("a Service that needs nothing was copied")
			}
			ips = []string{s.Spec.ClusterIP}
		}
		if len(ips) != len(want[s.Name]) {
			t.Errorf("%s has %v", s.Name, ips)
			continue
		}
		for j, text := range ips {
			a := netip.MustParseAddr(text)
			if !want[s.Name][j].Contains(a) || seen[a] || j == 0 && s.Spec.ClusterIP != text {
				t.Errorf("%s has %v, clusterIP %s", s.Name, ips, s.Spec.ClusterIP)
			}
			seen[a] = true
		}
	}
	ports := out.Services[4].Spec.Ports
	if ports[0].NodePort < 30000 || ports[0].NodePort > 32767 || ports[1].NodePort != 30001 || ports[2].NodePort < 30000 {
		t.Errorf("node ports are %+v", ports)
	}
	again, _ := controlplane.Allocate(kube.Objects{Services: in.Services[5:]})
	if again.Services[0].Spec.ClusterIP != out.Services[5].Spec.ClusterIP {
		t.Error("an address depends on other Services")
	}
	if twice, _ := controlplane.Allocate(out); allJSON(t, twice) != allJSON(t, out) {
		t.Error("allocating twice changes something")
	}
}

// A tiny range has collisions, and no room for all.
func TestAllocateFull(t *testing.T) {
	objs, err := codec.Decode("x", []byte("{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: x}, spec: {cidrs: [10.1.1.248/29]}}"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split("abcdefghij", "") {
		objs.Services = append(objs.Services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}})
	}
	out, problems := controlplane.Allocate(objs)
	ips := map[string]bool{}
	for _, s := range out.Services {
		if s.Spec.ClusterIP != "" {
			ips[s.Spec.ClusterIP] = true
		}
	}
	if len(ips) != 6 || ips["10.1.1.248"] || ips["10.1.1.255"] {
		t.Errorf("gave out %v", ips)
	}
	if len(problems) != 4 || !strings.Contains(problems[0].Message, "is full") {
		t.Errorf("problems: %v", problems)
	}
}

// allJSON returns every object as JSON.
func allJSON(t testing.TB, objs kube.Objects) string {
	var b strings.Builder
	for obj := range objs.All() {
		doc, err := json.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(doc)
	}
	return b.String()
}
