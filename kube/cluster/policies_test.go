package cluster

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/test/await"
)

// networkPolicy is a policy with a rule that names pods.
func networkPolicy(name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}}
	p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}}
	return p
}

func podOn(node, name, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{"other": "x"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "large", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}, {ContainerPort: 81}}}}},
		Status:     corev1.PodStatus{PodIP: ip},
	}
}

func others(objs *kube.Objects) string {
	var list []string
	for _, p := range objs.OtherPods.All() {
		list = append(list, p.Name)
	}
	return strings.Join(list, " ")
}

// TestPoliciesNeedPods: without a policy an agent asks for its own pods alone. The first policy comes into force with
// the pods of other nodes and the namespaces, of which no more is kept than policies look at, and both are followed.
func TestPoliciesNeedPods(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(podOn("n1", "own", "10.244.1.5"), podOn("n2", "far", "10.244.2.5"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{"team": "blue"}}})
	v := see(t, s)
	v.until("its own pod", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Pods) == 1 })
	if asked := strings.Join(s.Requests(), "\n"); strings.Contains(asked, "namespaces") {
		t.Errorf("without a policy it asked for\n%s", asked)
	}
	s.Put(networkPolicy("p"))
	v.until("the policy with all pods", func(objs *kube.Objects, problems []kube.Problem) bool {
		if len(objs.NetworkPolicies) == 1 && (others(objs) != "far" || len(objs.Namespaces) != 1 || len(objs.Pods) != 1) {
			t.Errorf("the policy is in force with the pods %q, %d of its own, and %d namespaces", others(objs), len(objs.Pods), len(objs.Namespaces))
		}
		return len(objs.NetworkPolicies) == 1 && len(problems) == 0
	})
	v.until("what policies look at", func(objs *kube.Objects, _ []kube.Problem) bool {
		p := objs.OtherPods.At(0)
		return p.Addrs[0].String() == "10.244.2.5" && slices.Equal(p.Ports, []kube.NamedPort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}}) && p.Labels["app"] == "far" && p.Node == "n2" && p.Annotations == nil
	})
	s.Put(podOn("n3", "later", "10.244.3.5"))
	v.until("a pod that comes", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "far later" })
	s.Delete(podOn("n2", "far", ""))
	v.until("a pod that goes", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "later" })
}

// TestPoliciesWait: as long as the pods of other nodes are not known, policies that come are not in force where rules
// name pods, and that is told. Others are in force at once.
func TestPoliciesWait(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"))
	s.Answer("namespaces", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.policiesWait = time.Hour })
	v.until("a node", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Nodes) == 1 })
	alone := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "y", Name: "alone"}}
	beside := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "beside"}}
	s.Put(networkPolicy("p"), alone, beside)
	v.until("the policy that needs no pods", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.NetworkPolicies) == 1 && objs.NetworkPolicies[0].Name == "alone" && tells(problems, "not in force yet", "Namespaces")
	})
}

// TestPoliciesWaitNoLonger: after a while all policies are in force, and what is missing is told.
func TestPoliciesWaitNoLonger(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"))
	s.Answer("namespaces", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.policiesWait = 100 * time.Millisecond })
	v.until("a node", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Nodes) == 1 })
	s.Put(networkPolicy("p"))
	v.until("the policy", func(objs *kube.Objects, problems []kube.Problem) bool {
		return len(objs.NetworkPolicies) == 1 && tells(problems, "by labels is denied", "Namespaces")
	})
}

// tells reports whether one of the problems of node n1 has all of these words.
func tells(problems []kube.Problem, words ...string) bool {
	return slices.ContainsFunc(problems, func(p kube.Problem) bool {
		return p.Object.String() == "Node n1" && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p.Message, w) })
	})
}

// TestPoliciesStart: a first start waits for what policies need no longer than they do.
func TestPoliciesStart(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), networkPolicy("p"))
	s.Answer("namespaces", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.policiesWait = 300 * time.Millisecond })
	v.until("the policy", func(objs *kube.Objects, problems []kube.Problem) bool {
		if len(objs.NetworkPolicies) == 0 {
			t.Error("it started without its policy")
		}
		return tells(problems, "by labels is denied", "Namespaces")
	})
}

// TestPoliciesStartAtOnce: a first start does not wait for what no policy names.
func TestPoliciesStartAtOnce(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "y", Name: "alone"}})
	s.Answer("namespaces", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.policiesWait = time.Hour })
	v.until("the policy", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.NetworkPolicies) == 1 })
}

// TestStagedPoliciesWaitAlone: a first start does not wait for what only staged policies name, and these are not in
// force before it is known.
func TestStagedPoliciesWaitAlone(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	staged := networkPolicy("p")
	staged.Annotations = map[string]string{kube.PolicyModeAnnotation: "audit"}
	s.Put(node("n1"), staged)
	s.Answer("namespaces", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.policiesWait = time.Hour })
	v.until("a node", func(objs *kube.Objects, _ []kube.Problem) bool {
		return len(objs.Nodes) == 1 && len(objs.NetworkPolicies) == 0
	})
	s.Answer("namespaces", 0)
	v.until("the policy", func(objs *kube.Objects, _ []kube.Problem) bool {
		mode := ""
		for _, p := range objs.NetworkPolicies {
			mode = p.Annotations[kube.PolicyModeAnnotation]
		}
		return mode == "audit"
	})
}

// TestPoliciesEnd: some time after the last policy has gone, what only policies need is not followed, and not kept. It
// is read again for the next one.
func TestPoliciesEnd(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), podOn("n2", "far", "10.244.2.5"), networkPolicy("p"))
	v := see(t, s, func(o *Options) { o.policiesRest, o.policiesWait = 50*time.Millisecond, time.Hour })
	v.until("the pods", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "far" })
	s.Delete(networkPolicy("p"))
	v.until("no pods", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "" })
	await.Until(t, "no age", func() bool { return v.State().Age == 0 })
	s.Delete(podOn("n2", "far", ""))
	s.Put(podOn("n2", "far2", "10.244.2.6"))
	s.Requests()
	s.Put(networkPolicy("q"))
	v.until("the pods that there are now", func(objs *kube.Objects, problems []kube.Problem) bool {
		if len(objs.NetworkPolicies) == 1 && others(objs) != "far2" {
			t.Errorf("the policy is in force with the pods %q", others(objs))
		}
		return len(objs.NetworkPolicies) == 1 && others(objs) == "far2"
	})
	if asked := strings.Join(s.Requests(), "\n"); !strings.Contains(asked, "namespaces") {
		t.Errorf("asked was only\n%s", asked)
	}
}

// TestPoliciesSkipPods: pods that no policy can see are neither asked for nor kept.
func TestPoliciesSkipPods(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	ended := podOn("n2", "ended", "10.244.2.4")
	ended.Status.Phase = corev1.PodSucceeded
	far := podOn("n2", "far", "10.244.2.5")
	s.Put(node("n1"), networkPolicy("p"), ended, podOn("", "waiting", ""), podOn("n2", "starting", ""), far)
	v := see(t, s)
	v.until("the pod", func(objs *kube.Objects, _ []kube.Problem) bool {
		if objs.OtherPods.Len() > 1 {
			t.Errorf("kept are %q", others(objs))
		}
		return others(objs) == "far"
	})
	s.Put(podOn("n2", "starting", "10.244.2.6"))
	v.until("one that has an address", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "far starting" })
	s.Put(podOn("n2", "starting", ""))
	v.until("one that has none", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "far" })
	far.Status.Phase = corev1.PodFailed
	s.Put(far)
	v.until("one that has ended", func(objs *kube.Objects, _ []kube.Problem) bool { return others(objs) == "" })
}

// TestPoliciesAge: what is read for policies alone is not missing before it is needed.
func TestPoliciesAge(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"))
	v := see(t, s)
	await.Until(t, "no age", func() bool { h := v.State(); return h.Synced && h.Age == 0 })
	started := time.Now()
	release := s.Hold("namespaces")
	defer release()
	s.Put(networkPolicy("p"))
	await.Until(t, "an age", func() bool { return v.State().Age > 0 })
	if age, most := v.State().Age, time.Since(started); age > most {
		t.Errorf("the namespaces are missing since %v, and are needed since %v at most", age, most)
	}
}

// TestPoliciesStartWithoutServer: an agent that starts while no API server answers has the policies, and whom they
// select, as the one before had.
func TestPoliciesStartWithoutServer(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(node("n1"), networkPolicy("p"), podOn("n1", "own", "10.244.1.5"), podOn("n2", "far", "10.244.2.5"),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{"team": "blue"}}})
	first := see(t, s, in(dir, nil))
	had := func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.NetworkPolicies) == 1 }
	first.until("the policy", had)
	await.Until(t, "all watches are open", func() bool { return first.State().Age == 0 })
	first.stop()
	s.Stop()
	v := see(t, s, in(dir, nil))
	v.until("what was saved", func(objs *kube.Objects, problems []kube.Problem) bool {
		if !had(objs, problems) {
			return false
		}
		if others(objs) != "far" || len(objs.Pods) != 1 || len(objs.Namespaces) != 1 || objs.Namespaces[0].Labels["team"] != "blue" {
			t.Errorf("saved were the pods %q, %d of its own, and the namespaces %v", others(objs), len(objs.Pods), objs.Namespaces)
			return true
		}
		p := objs.OtherPods.At(0)
		if p.Labels["app"] != "far" || len(p.Ports) != 1 || len(p.Addrs) != 1 || p.Addrs[0].String() != "10.244.2.5" {
			t.Errorf("saved was %+v", p)
		}
		return true
	})
	s.Start()
	await.Until(t, "no age", func() bool { h := v.State(); return h.Age == 0 && h.Synced })
	v.until("the same", func(objs *kube.Objects, problems []kube.Problem) bool {
		return had(objs, problems) && others(objs) == "far"
	})
}
