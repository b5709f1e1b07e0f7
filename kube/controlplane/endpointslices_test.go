package controlplane_test

import (
	"fmt"
	"slices"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/controlplane"
	"tapestry.dev/tapestry/kube/translate"
)

// newPod returns a ready pod with the label app=web on node n1.
func newPod(name string, change func(*corev1.Pod), ips ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	if change != nil {
		change(p)
	}
	return p
}

func newService(change func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Selector:   map[string]string{"app": "web"},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func containerPort(name string, number int32, protocol corev1.Protocol) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: protocol})
	}
}

func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }
func unready(p *corev1.Pod)     { p.Status.Conditions[0].Status = corev1.ConditionFalse }

func TestOf(t *testing.T) {
	named := func(s *corev1.ServiceSpec) { s.Ports[0].TargetPort = intstr.FromString("web") }
	for name, test := range map[string]struct {
		pods []*corev1.Pod
		svc  *corev1.Service
		want []string
	}{
		"one": {[]*corev1.Pod{newPod("a", nil, "10.0.0.1")}, newService(nil),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1 ready serving`}},
		"none": {nil, newService(nil), []string{`web-ipv4 IPv4:`}},
		"numbered target port": {[]*corev1.Pod{newPod("a", nil, "10.0.0.1")},
			newService(func(s *corev1.ServiceSpec) { s.Ports[0].TargetPort = intstr.FromInt32(8080) }),
			[]string{`web-ipv4 IPv4 http=8080/TCP: 10.0.0.1 uid-a n1 ready serving`}},
		"order is by name": {[]*corev1.Pod{newPod("b", nil, "10.0.0.1"), newPod("a", nil, "10.0.0.2")}, newService(nil),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.2 uid-a n1 ready serving, 10.0.0.1 uid-b n1 ready serving`}},
		"both families": {[]*corev1.Pod{newPod("a", nil, "10.0.0.1", "fd00::1"), newPod("b", nil, "10.0.0.2")},
			newService(func(s *corev1.ServiceSpec) { s.IPFamilies, s.ClusterIPs = nil, []string{"10.96.0.1", "fd00:96::1"} }),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1 ready serving, 10.0.0.2 uid-b n1 ready serving`,
				`web-ipv6 IPv6 http=80/TCP: fd00::1 uid-a n1 ready serving`}},
		"headless without families has both": {[]*corev1.Pod{newPod("a", nil, "fd00::1")},
			newService(func(s *corev1.ServiceSpec) { s.IPFamilies, s.ClusterIP, s.Ports = nil, "None", nil }),
			[]string{`web-ipv4 IPv4:`, `web-ipv6 IPv6: fd00::1 uid-a n1 ready serving`}},
		"unready": {[]*corev1.Pod{newPod("a", unready, "10.0.0.1")}, newService(nil),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1`}},
		"no condition is unready": {[]*corev1.Pod{newPod("a", func(p *corev1.Pod) { p.Status.Conditions = nil }, "10.0.0.1")}, newService(nil),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1`}},
		"terminating and serving": {[]*corev1.Pod{newPod("a", terminating, "10.0.0.1")}, newService(nil),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1 serving terminating`}},
		"terminating and unready": {[]*corev1.Pod{newPod("a", func(p *corev1.Pod) { terminating(p); unready(p) }, "10.0.0.1")}, newService(nil),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1 terminating`}},
		"published though not ready": {[]*corev1.Pod{newPod("a", unready, "10.0.0.1")},
			newService(func(s *corev1.ServiceSpec) { s.PublishNotReadyAddresses = true }),
			[]string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1 ready`}},
		"ended, without address, of others": {[]*corev1.Pod{
			newPod("a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "10.0.0.1"),
			newPod("b", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, "10.0.0.2"),
			newPod("c", nil),
			newPod("d", func(p *corev1.Pod) { p.Labels = nil }, "10.0.0.3"),
			newPod("e", func(p *corev1.Pod) { p.Namespace = "other" }, "10.0.0.4"),
		}, newService(nil), []string{`web-ipv4 IPv4:`}},
		"named target port that differs": {[]*corev1.Pod{
			newPod("a", containerPort("web", 8080, ""), "10.0.0.1"),
			newPod("b", containerPort("web", 9090, corev1.ProtocolTCP), "10.0.0.2"),
			newPod("c", containerPort("web", 8080, ""), "10.0.0.3"),
		}, newService(named), []string{
			`web-ipv4 IPv4 http=8080/TCP: 10.0.0.1 uid-a n1 ready serving, 10.0.0.3 uid-c n1 ready serving`,
			`web-ipv4-2 IPv4 http=9090/TCP: 10.0.0.2 uid-b n1 ready serving`}},
		"named target port of another protocol": {[]*corev1.Pod{newPod("a", containerPort("web", 8080, corev1.ProtocolUDP), "10.0.0.1")},
			newService(named), []string{`web-ipv4 IPv4: 10.0.0.1 uid-a n1 ready serving`}},
		"named target port of a sidecar": {[]*corev1.Pod{newPod("a", func(p *corev1.Pod) {
			always := corev1.ContainerRestartPolicyAlways
			p.Spec.InitContainers = []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 1}}},
				{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 2}}, RestartPolicy: &always},
			}
		}, "10.0.0.1")}, newService(named), []string{`web-ipv4 IPv4 http=2/TCP: 10.0.0.1 uid-a n1 ready serving`}},
		"hostname": {[]*corev1.Pod{
			newPod("a", func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "web-0", "web" }, "10.0.0.1"),
			newPod("b", func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "x-0", "another" }, "10.0.0.2"),
		}, newService(nil), []string{`web-ipv4 IPv4 http=80/TCP: 10.0.0.1 uid-a n1 web-0 ready serving, 10.0.0.2 uid-b n1 ready serving`}},
		"no selector":   {[]*corev1.Pod{newPod("a", nil, "10.0.0.1")}, newService(func(s *corev1.ServiceSpec) { s.Selector = nil }), nil},
		"external name": {[]*corev1.Pod{newPod("a", nil, "10.0.0.1")}, newService(func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			list := controlplane.EndpointSlices(test.pods, []*corev1.Service{test.svc})
			for _, s := range list {
				got = append(got, sliceText(s))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			slices.Reverse(test.pods)
			if diff := cmp.Diff(list, controlplane.EndpointSlices(test.pods, []*corev1.Service{test.svc})); diff != "" {
				t.Errorf("another order of pods gives other slices:\n%s", diff)
			}
		})
	}
}

func sliceText(s *discoveryv1.EndpointSlice) string {
	if s.Namespace != "default" || s.Labels[discoveryv1.LabelServiceName] != "web" {
		return "of no Service"
	}
	head := s.Name + " " + string(s.AddressType)
	for _, p := range s.Ports {
		head += fmt.Sprintf(" %s=%d/%s", *p.Name, *p.Port, *p.Protocol)
	}
	var endpoints []string
	for _, e := range s.Endpoints {
		words := append(slices.Clone(e.Addresses), string(e.TargetRef.UID), *e.NodeName)
		if e.Hostname != nil {
			words = append(words, *e.Hostname)
		}
		for _, c := range []struct {
			set  *bool
			name string
		}{{e.Conditions.Ready, "ready"}, {e.Conditions.Serving, "serving"}, {e.Conditions.Terminating, "terminating"}} {
			if *c.set {
				words = append(words, c.name)
			}
		}
		endpoints = append(endpoints, strings.Join(words, " "))
	}
	return strings.TrimSpace(head + ": " + strings.Join(endpoints, ", "))
}

// Package translate must find the same endpoints in the slices made here.
func TestTranslated(t *testing.T) {
	svc := newService(func(s *corev1.ServiceSpec) {
		s.ClusterIP = "10.96.0.7"
		s.Ports[0].TargetPort = intstr.FromString("web")
	})
	pods := []*corev1.Pod{newPod("a", containerPort("web", 1, ""), "10.0.0.1"), newPod("b", containerPort("web", 2, ""), "10.0.0.2")}
	r := translate.Translate(kube.Objects{
		Pods: pods, Services: []*corev1.Service{svc}, EndpointSlices: roll.From(controlplane.EndpointSlices(pods, []*corev1.Service{svc})),
	}, translate.Options{Node: "n1"})
	if r.Services.Services.Len() != 1 || len(r.Services.Services.At(0).Endpoints) != 2 {
		t.Fatalf("got %+v", r.Services.Services.Slice())
	}
	for i, e := range r.Services.Services.At(0).Endpoints {
		if want := pods[i]; e.ID != string(want.UID) || !e.Ready || e.Ports[0].Port != uint16(i+1) {
			t.Errorf("endpoint %d is %+v", i, e)
		}
	}
}
