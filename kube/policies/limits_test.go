package policies_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/policies"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/tiers"
)

// sized is a policy with so many rules, of an age, and in each of them so many peers.
func sized(namespace, name string, age, rules, peers int, peer networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, -age)),
	}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": name}
	for range rules {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: slices.Repeat([]networkingv1.NetworkPolicyPeer{peer}, peers)})
	}
	return p
}

// stagedPolicy stages a policy.
func stagedPolicy(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	p.Annotations = map[string]string{kube.PolicyModeAnnotation: "audit"}
	return p
}

var (
	anyPod = networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}
	block  = networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.1/32"}}}
)

func configOf(s *policies.Stage, list ...*networkingv1.NetworkPolicy) (policy.Config, []kube.Problem) {
	o := kube.Objects{NetworkPolicies: list}
	o.Sort()
	var say kube.Report
	return s.Of(&o, around, &say), say.Problems
}

// TestLimits: what exceeds in a namespace isolates and permits nobody, and is told. The oldest that fit are in force.
func TestLimits(t *testing.T) {
	most := policy.Most
	ports := sized("a", "new", 1, 1, 0, anyPod)
	ports.Spec.Ingress[0].Ports = slices.Repeat([]networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{IntVal: 80}}}, most.Ports+1)
	values := sized("a", "new", 1, 1, 1, networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "k", Operator: metav1.LabelSelectorOpNotIn, Values: make([]string, most.Selectors)},
	}}})
	for _, c := range []struct {
		name string
		list []*networkingv1.NetworkPolicy
		// closed permit nobody; told is what is said about the first.
		closed []string
		told   string
	}{
		{"much is possible", []*networkingv1.NetworkPolicy{sized("a", "x", 1, 1000, 2, anyPod), sized("a", "y", 1, 1, 5000, block), sized("a", "z", 1, 1000, 10, block)}, nil, ""},
		{"rules", []*networkingv1.NetworkPolicy{sized("a", "aa-new", 1, 2, 1, anyPod), sized("a", "old", 9, most.Rules-1, 1, anyPod)}, []string{"aa-new"}, "have 5001 rules, more than the 5000"},
		{"the smaller fits", []*networkingv1.NetworkPolicy{sized("a", "large", 8, 2, 0, anyPod), sized("a", "old", 9, most.Rules-1, 0, anyPod), sized("a", "small", 1, 1, 0, anyPod)}, []string{"large"}, "rules"},
		{"one alone", []*networkingv1.NetworkPolicy{sized("a", "x", 1, 1, most.Ranges, block)}, []string{"x"}, "have 100000 ranges, and exceptions of these, more than the 50000"},
		{"ports", []*networkingv1.NetworkPolicy{ports}, []string{"new"}, "10001 ports"},
		{"values", []*networkingv1.NetworkPolicy{values}, []string{"new"}, "10001 selectors"},
		{"staged", []*networkingv1.NetworkPolicy{stagedPolicy(sized("a", "older", 9, most.Rules, 1, anyPod)), sized("a", "young", 1, 1, 1, anyPod)}, []string{"older"}, "5001 rules"},
		{"staged, and too large besides", []*networkingv1.NetworkPolicy{sized("a", "large", 1, most.Rules+1, 1, anyPod), stagedPolicy(sized("a", "small", 9, 1, 1, anyPod))}, []string{"large"}, "5001 rules"},
		{"other namespaces", []*networkingv1.NetworkPolicy{sized("a", "x", 1, most.Rules, 0, anyPod), sized("b", "y", 1, most.Rules, 0, anyPod)}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s policies.Stage
			config, problems := configOf(&s, c.list...)
			var closed []string
			for _, p := range config.Policies {
				if len(p.Pods) != 1 || !p.Ingress.Isolates {
					t.Errorf("%s selects and isolates others than before: %+v", p.Name, p.Pods)
				}
				if len(p.Ingress.List) == 0 {
					closed = append(closed, p.Name)
				}
			}
			if !slices.Equal(closed, c.closed) || len(problems) != len(c.closed) {
				t.Errorf("%v permit nobody, want %v; %v", closed, c.closed, problems)
			}
			if len(problems) > 0 && (problems[0].Object.Name != c.closed[0] || problems[0].Field != "spec" || !strings.Contains(problems[0].Message, c.told)) {
				t.Errorf("told is %v", problems[0])
			}
			if again, told := configOf(&s, c.list...); !slices.Equal(again.Policies, config.Policies) || len(told) != len(problems) {
				t.Error("the same objects come to other policies")
			}
			if len(c.closed) > 0 { // there is room again
				if config, problems = configOf(&s, sized("a", "small", 1, 1, 1, anyPod)); len(config.Policies[0].Ingress.List) != 1 || len(problems) != 0 {
					t.Errorf("a small policy alone: %+v, %v", config.Policies[0], problems)
				}
			}
		})
	}
}

// TestWrongSelector: a policy of which nobody knows whom it is for permits nobody.
func TestWrongSelector(t *testing.T) {
	p := sized("a", "x", 1, 1, 0, anyPod)
	p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{}}
	p.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "k", Operator: "Like"}}
	var s policies.Stage
	config, problems := configOf(&s, p)
	got := config.Policies[0]
	if len(got.Pods) != 0 || !got.Ingress.Isolates || !got.Egress.Isolates || len(got.Ingress.List)+len(got.Egress.List) != 0 {
		t.Errorf("it comes to %+v", got)
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "permits nobody") {
		t.Errorf("told is %v", problems)
	}
}

// TestFewProblems: an object tells of a few of its problems, and how many there are.
func TestFewProblems(t *testing.T) {
	p := sized("a", "x", 1, 20, 1, networkingv1.NetworkPolicyPeer{})
	var s policies.Stage
	_, problems := configOf(&s, p, sized("a", "y", 1, 1, 1, networkingv1.NetworkPolicyPeer{}))
	if len(problems) != 9 || !strings.Contains(fmt.Sprint(problems), "(and 12 more of this object)") {
		t.Errorf("%d problems: %v", len(problems), problems)
	}
}

// TestManyPorts: of very many ports with names, policies know some, and that is told.
func TestManyPorts(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}, Spec: corev1.PodSpec{NodeName: "n1", Containers: make([]corev1.Container, 1)}}
	for i := range 10_000 {
		pod.Spec.Containers[0].Ports = append(pod.Spec.Containers[0].Ports, corev1.ContainerPort{Name: fmt.Sprint("p", i), ContainerPort: 80})
	}
	o := kube.Objects{NetworkPolicies: []*networkingv1.NetworkPolicy{sized("a", "x", 1, 1, 1, anyPod)}, Pods: []*corev1.Pod{pod}}
	var say kube.Report
	config := new(policies.Stage).Of(&o, around, &say)
	if n := len(config.Own[0].Ports); n != 256 || config.Own[0].Ports[0].Name != "p0" {
		t.Errorf("%d ports", n)
	}
	if len(say.Problems) != 1 || say.Problems[0].Object.Name != "x" || !strings.Contains(say.Problems[0].Message, "10000 ports with names") {
		t.Errorf("told is %v", say.Problems)
	}
}

// TestClusterLimits: what exceeds in the cluster denies its pods everything where it has rules, and is told.
func TestClusterLimits(t *testing.T) {
	sized := func(name string, age, rules int) *policyapi.ClusterNetworkPolicy {
		p := &policyapi.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, -age))}}
		p.Spec = policyapi.Spec{Tier: policyapi.Baseline, Subject: policyapi.Subject{Namespaces: &metav1.LabelSelector{}}}
		p.Spec.Egress = slices.Repeat([]policyapi.Rule{{Action: policyapi.ActionAccept, To: []policyapi.Peer{{Namespaces: &metav1.LabelSelector{}}}}}, rules)
		return p
	}
	o := kube.Objects{ClusterNetworkPolicies: []*policyapi.ClusterNetworkPolicy{sized("large", 1, 2), sized("old", 9, tiers.Most.Rules-1), sized("small", 1, 1)}}
	var say kube.Report
	list := new(policies.Stage).Of(&o, around, &say).Cluster
	if len(list) != 3 || len(list[1].Egress) != tiers.Most.Rules-1 || len(list[2].Egress) != 1 {
		t.Fatalf("%d policies", len(list))
	}
	closed := list[0]
	if len(closed.Ingress) != 0 || len(closed.Egress) != 1 || closed.Egress[0].Action != tiers.Deny || !closed.Egress[0].Everybody || !closed.Egress[0].AnyPort || closed.Tier != tiers.Baseline {
		t.Errorf("the one that exceeds comes to %+v", closed)
	}
	if len(say.Problems) != 1 || say.Problems[0].Object.String() != "ClusterNetworkPolicy large" || !strings.Contains(say.Problems[0].Message, "10001 rules") {
		t.Errorf("told is %v", say.Problems)
	}
}
