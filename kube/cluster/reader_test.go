package cluster

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/kube/translate"
)

// A step before the agent can read its node's Node, and nothing else.
func TestNodeReader(t *testing.T) {
	t.Parallel()
	s := clustertest.New(t)
	n := node("n1")
	n.Spec.PodCIDRs = nil
	s.Put(n, node("n2"))
	read, err := NodeReader(Options{Node: "n1", Kubeconfig: s.Kubeconfig(), State: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	objs, err := read(t.Context())
	if err != nil || len(objs.Nodes) != 1 || objs.Nodes[0].Name != "n1" || len(translate.Translate(objs, translate.Options{Node: "n1"}).Netstack.PodCIDRs) != 0 {
		t.Errorf("%v, %v", objs.Nodes, err)
	}
	n = n.DeepCopy()
	n.Spec.PodCIDRs = []string{"10.244.9.0/24"}
	s.Put(n)
	if objs, err = read(t.Context()); err != nil || len(translate.Translate(objs, translate.Options{Node: "n1"}).Netstack.PodCIDRs) != 1 {
		t.Errorf("%v, %v", objs.Nodes, err)
	}
	s.Delete(n)
	if _, err := read(t.Context()); err == nil || !strings.Contains(err.Error(), "read Node n1") {
		t.Errorf("got %v", err)
	}
	s.Stop()
	if _, err := read(t.Context()); err == nil || !strings.Contains(err.Error(), "read Node n1") {
		t.Errorf("without a server: %v", err)
	}
	if _, err := NodeReader(Options{Node: "n1", Servers: []string{"https://10.0.0.1"}, Credentials: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "no credentials") {
		t.Errorf("got %v", err)
	}
}
