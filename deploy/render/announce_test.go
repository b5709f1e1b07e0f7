package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// announcers lists the announcers, each with the value that has it and the capabilities that it has.
var announcers = []struct {
	kind string
	adds []corev1.Capability
}{
	{"l2", []corev1.Capability{"NET_RAW"}},
	{"bgp", nil},
}

// TestAnnouncers: an announcer has the capability that it takes, no token, and of the node the agent's socket for it
// alone.
func TestAnnouncers(t *testing.T) {
	for _, a := range announcers {
		sets := map[string]*appsv1.DaemonSet{}
		for _, d := range of[*appsv1.DaemonSet](decode(t, rendered(t, "-f", "../plain.yaml", "--set", "announce."+a.kind+".enabled=true"))) {
			sets[d.Name] = d
		}
		name := "tapestry-" + a.kind
		if sets[name] == nil {
			t.Fatalf("there is no DaemonSet %s", name)
		}
		pod := &sets[name].Spec.Template.Spec
		if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 || !slices.Equal(pod.Containers[0].SecurityContext.Capabilities.Add, a.adds) {
			t.Errorf("%s: %+v", name, pod.Containers)
		}
		if pod.ServiceAccountName != "" || *pod.AutomountServiceAccountToken || !pod.HostNetwork {
			t.Errorf("%s has an account, or not the host's network", name)
		}
		for _, m := range pod.Containers[0].VolumeMounts {
			if !m.ReadOnly {
				t.Errorf("%s may write %s", name, m.MountPath)
			}
		}
		for _, v := range pod.Volumes {
			if v.HostPath != nil && v.HostPath.Path != "/run/tapestry/announce" {
				t.Errorf("%s sees %s of the node", name, v.HostPath.Path)
			}
		}
		agent := strings.Join(sets["tapestry"].Spec.Template.Spec.Containers[0].Args, " ")
		for _, want := range []string{"--announce=" + a.kind, "--announce-socket=/run/tapestry/announce/agent.sock", "--announce-uid=60821"} {
			if !strings.Contains(agent, want) {
				t.Errorf("the agent beside %s does not get %s", name, want)
			}
		}
		if plain := string(rendered(t, "-f", "../plain.yaml")); strings.Contains(plain, "--announce") || strings.Contains(plain, name) {
			t.Errorf("%s is there, and nobody asked for it", name)
		}
	}
	for want, set := range map[string]string{
		"announce: addresses are reached by the host TAP":  "announce.l2.enabled=true,hostTAP.enabled=false",
		"announce.user: 60820 is root or the agent's user": "announce.user=60820",
		"announce.user: 0 is root or the agent's user":     "announce.user=0",
	} {
		if err := run([]string{"-f", "../plain.yaml", "--set", set}, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", set, err, want)
		}
	}
}

// TestLoadBalancerCIDRs: the step that makes the host TAP is told the ranges of load balancers, and nobody else is.
func TestLoadBalancerCIDRs(t *testing.T) {
	out := string(rendered(t, "-f", "../plain.yaml", "--set", "hostTAP.loadBalancerCIDRs={198.18.7.0/24,2001:db8:1b::/64}"))
	for _, want := range []string{"- --load-balancer-cidr=198.18.7.0/24\n", "- --load-balancer-cidr=2001:db8:1b::/64\n"} {
		if n := strings.Count(out, want); n != 1 {
			t.Errorf("%q is there %d times", want, n)
		}
	}
	if strings.Contains(string(rendered(t, "-f", "../plain.yaml")), "load-balancer-cidr") {
		t.Error("the range stands there by default")
	}
}
