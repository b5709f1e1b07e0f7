package policies_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policies"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/roll"
)

var around = policies.Around{
	Node: "n1", DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	Net: &netstack.Config{Node: "n1", NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
}

// next changes something of a snapshot.
func next(r *rand.Rand, o kube.Objects) kube.Objects {
	o = o.Clone()
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "x", Name: name, Labels: map[string]string{"app": fmt.Sprint(r.IntN(3))}, Annotations: map[string]string{"n": fmt.Sprint(r.Int()), kube.PolicyModeAnnotation: []string{"audit", "enforce", "?"}[r.IntN(3)]}}
	}
	n := r.IntN(6)
	switch r.IntN(6) {
	case 0:
		p := &corev1.Pod{ObjectMeta: meta(fmt.Sprint("pod-", n)), Spec: corev1.PodSpec{NodeName: "n1", HostNetwork: r.IntN(5) == 0}, Status: corev1.PodStatus{PodIP: fmt.Sprint("10.244.1.", n)}}
		o.Pods = append(slices.DeleteFunc(o.Pods, func(q *corev1.Pod) bool { return q.Name == p.Name }), p)
	case 1:
		p := &kube.OtherPod{ObjectMeta: meta(fmt.Sprint("other-", n)), Node: "n2", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 2, byte(n)})}}
		list := slices.DeleteFunc(o.OtherPods.Slice(), func(q *kube.OtherPod) bool { return q.Name == p.Name })
		if r.IntN(3) > 0 {
			list = append(list, p)
		}
		o.OtherPods = roll.From(list)
	case 2:
		p := &networkingv1.NetworkPolicy{ObjectMeta: meta(fmt.Sprint("policy-", n%3))}
		o.NetworkPolicies = slices.DeleteFunc(o.NetworkPolicies, func(q *networkingv1.NetworkPolicy) bool { return q.Name == p.Name })
		if r.IntN(3) > 0 {
			o.NetworkPolicies = append(o.NetworkPolicies, p)
		}
	case 3:
		o.Namespaces = []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{"team": fmt.Sprint(r.IntN(2))}}}}
	case 4:
		p := &policyapi.ClusterNetworkPolicy{ObjectMeta: meta(fmt.Sprint("cluster-", n%3)), Spec: policyapi.Spec{Tier: policyapi.Admin, Subject: policyapi.Subject{Namespaces: &metav1.LabelSelector{}}}}
		p.Namespace = ""
		o.ClusterNetworkPolicies = slices.DeleteFunc(o.ClusterNetworkPolicies, func(q *policyapi.ClusterNetworkPolicy) bool { return q.Name == p.Name })
		if r.IntN(3) > 0 {
			o.ClusterNetworkPolicies = append(o.ClusterNetworkPolicies, p)
		}
	case 5:
		o.Nodes = []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"role": fmt.Sprint(r.IntN(2))}}}}
	}
	o.Sort()
	return o
}

// TestStage: a Stage that follows snapshots says the same as a new one, and nothing of a Config is another pointer if
// it says the same as before.
func TestStage(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		var s policies.Stage
		var o kube.Objects
		var before policy.Config
		var elsewhere []*policy.Pod
		for range 60 {
			o = next(r, o)
			var say, anew kube.Report
			got, want := s.Of(&o, around, &say), new(policies.Stage).Of(&o, around, &anew)
			others := got.Others.Slice()
			for i, p := range others {
				if j := slices.IndexFunc(elsewhere, func(q *policy.Pod) bool { return reflect.DeepEqual(p, q) }); j >= 0 && elsewhere[j] != others[i] {
					t.Fatalf("seed %d: equal other pods are not the same", seed)
				}
			}
			elsewhere = others
			if !reflect.DeepEqual(got.Others.Slice(), want.Others.Slice()) {
				t.Fatalf("seed %d: other pods %v, want %v", seed, got.Others.Slice(), want.Others.Slice())
			}
			got.Others, want.Others = roll.List[*policy.Pod]{}, roll.List[*policy.Pod]{}
			if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(say, anew) {
				t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
			}
			if len(before.Policies) > 0 && len(got.Policies) > 0 {
				if reflect.DeepEqual(before.Cluster, got.Cluster) && !kube.Same(before.Cluster, got.Cluster) || reflect.DeepEqual(before.Nodes, got.Nodes) && !kube.Same(before.Nodes, got.Nodes) {
					t.Fatalf("seed %d: equal policies of the cluster, or nodes, are not the same", seed)
				}
				if reflect.DeepEqual(before.Own, got.Own) && !kube.Same(before.Own, got.Own) || reflect.DeepEqual(before.Policies, got.Policies) && !kube.Same(before.Policies, got.Policies) {
					t.Fatalf("seed %d: equal lists are not the same", seed)
				}
			}
			before = got
		}
	}
}
