package cluster

import (
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/policyapi"
	"tapestry.dev/tapestry/test/await"
)

func clusterPolicy(name string) *policyapi.ClusterNetworkPolicy {
	return &policyapi.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: policyapi.Spec{
		Tier: policyapi.Admin, Subject: policyapi.Subject{Namespaces: &metav1.LabelSelector{}},
		Ingress: []policyapi.Rule{{Action: policyapi.ActionDeny, From: []policyapi.Peer{{Namespaces: &metav1.LabelSelector{}}}}},
	}}
}

// clusterPolicies returns the names of those of a snapshot.
func clusterPolicies(objs *kube.Objects) string {
	var names []string
	for _, p := range objs.ClusterNetworkPolicies {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
}

// TestClusterPoliciesCome: an agent starts where the API server does not know the kind, and follows it from when it
// does, until it does not any longer.
func TestClusterPoliciesCome(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), podOn("n2", "far", "10.244.2.5"))
	s.Answer("clusternetworkpolicies", http.StatusNotFound)
	v := see(t, s)
	v.until("a node", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Nodes) == 1 })
	s.Answer("clusternetworkpolicies", 0)
	s.Put(clusterPolicy("lockdown"))
	v.until("the policy, with the pods that it may name", func(objs *kube.Objects, _ []kube.Problem) bool {
		if clusterPolicies(objs) != "" && others(objs) != "far" {
			t.Errorf("the policy is in force with the pods %q", others(objs))
		}
		return clusterPolicies(objs) == "lockdown"
	})
	s.Delete(clusterPolicy("lockdown"))
	s.Answer("clusternetworkpolicies", http.StatusNotFound)
	s.CutWatches()
	v.until("no policy", func(objs *kube.Objects, _ []kube.Problem) bool { return clusterPolicies(objs) == "" })
	await.Until(t, "it goes on", func() bool { return v.State().Age == 0 })
}

// TestClusterPoliciesOfBefore: of a server that has only the older version of the kind, that is read. No snapshot comes
// without its policies.
func TestClusterPoliciesOfBefore(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"), clusterPolicy("lockdown"))
	s.Answer(policyapi.Version+"/clusternetworkpolicies", http.StatusNotFound)
	v := see(t, s)
	v.until("the policy", func(objs *kube.Objects, _ []kube.Problem) bool {
		if clusterPolicies(objs) == "" {
			t.Error("it started without its policy")
		}
		p := objs.ClusterNetworkPolicies[0]
		return p.Spec.Tier == policyapi.Admin && len(p.Spec.Ingress) == 1 && p.APIVersion == ""
	})
	s.Put(clusterPolicy("another"))
	v.until("one that comes", func(objs *kube.Objects, _ []kube.Problem) bool { return clusterPolicies(objs) == "another lockdown" })
	await.Until(t, "all watches are open", func() bool { return v.State().Age == 0 })
}

// TestClusterPoliciesWait for the pods and namespaces of the cluster, since they may deny those by name whom nobody
// knows.
func TestClusterPoliciesWait(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	s.Put(node("n1"))
	s.Answer("namespaces", http.StatusForbidden)
	v := see(t, s, func(o *Options) { o.policiesWait = time.Hour })
	v.until("a node", func(objs *kube.Objects, _ []kube.Problem) bool { return len(objs.Nodes) == 1 })
	s.Put(clusterPolicy("lockdown"))
	v.until("what it waits for", func(objs *kube.Objects, problems []kube.Problem) bool {
		return clusterPolicies(objs) == "" && tells(problems, "ClusterNetworkPolicies are not in force yet", "Namespaces")
	})
	s.Answer("namespaces", 0)
	v.until("the policy", func(objs *kube.Objects, problems []kube.Problem) bool {
		return clusterPolicies(objs) == "lockdown" && len(problems) == 0
	})
}

// TestClusterPoliciesAreSaved, whole, for a start without an API server.
func TestClusterPoliciesAreSaved(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	dir := t.TempDir()
	s.Put(node("n1"), clusterPolicy("lockdown"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x"}})
	first := see(t, s, in(dir, nil))
	first.until("the policy", func(objs *kube.Objects, _ []kube.Problem) bool { return clusterPolicies(objs) == "lockdown" })
	await.Until(t, "all watches are open", func() bool { return first.State().Age == 0 })
	first.stop()
	s.Stop()
	see(t, s, in(dir, nil)).until("what was saved", func(objs *kube.Objects, _ []kube.Problem) bool {
		p := objs.ClusterNetworkPolicies
		return len(p) == 1 && len(p[0].Spec.Ingress) == 1 && p[0].Spec.Ingress[0].From[0].Namespaces != nil && len(objs.Namespaces) == 1
	})
}
