package agent

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
)

// The objects of these tests, in the API server's JSON.
const (
	unallocatedNode = `{"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.1"}]}}`
	allocatedNode   = `{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.1"}]}}`
	otherNode       = `{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.9.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.1"}]}}`
	fixedPod        = `{"metadata": {"namespace": "default", "name": "fixed", "annotations": {"tapestry.dev/pod-ips": "10.244.1.77"}}, "spec": {"nodeName": "n1"}}`
	lostService     = `{"metadata": {"namespace": "default", "name": "lost"}, "spec": {"ports": [{"port": 80}]}}`
)

// TestOnAPIServer follows the life of a node that uses an API server. The node waits for a podCIDR, publishes what the
// other nodes need, gives pods the addresses that they ask for, goes on while the server is down, and uses another
// podCIDR when its Node is made anew.
func TestOnAPIServer(t *testing.T) {
	s := clustertest.New(t)
	n := newMachine(t)
	n.source = []string{"--kubeconfig", s.Kubeconfig()}
	s.PutJSON("nodes", unallocatedNode)
	s.PutJSON("pods", fixedPod)
	s.PutJSON("services", lostService)
	n.start()
	n.until("the agent has read the Node", func() bool { return s.Watched("nodes") && s.Watched("networkpolicies") })
	if _, err := n.client.Status(t.Context()); err == nil {
		t.Error("pods can be attached on a node without a podCIDR")
	}
	n.until("whoever asks is told what the node waits for", func() bool {
		told, err := n.api.Node(t.Context())
		return err == nil && told.Name == "n1" && len(told.Missing) > 0 && strings.Contains(told.Missing[0], "cluster: ")
	})
	s.PutJSON("nodes", allocatedNode)
	n.ready()
	n.until("nothing is missing", func() bool {
		told, err := n.api.Node(t.Context())
		return err == nil && len(told.Missing) == 0 && told.MTU == 1420 && strings.HasPrefix(told.APIServer, "https://")
	})

	annotation := func(key string) string { a, _ := s.NodeSays("n1"); return a[key] }
	n.until("the others know its key, and pods may come", func() bool {
		a, unavailable := s.NodeSays("n1")
		return a[kube.PublicKeyAnnotation] != "" && strings.HasPrefix(a[kube.EndpointAnnotation], "172.31.0.1:") && unavailable == "False"
	})
	n.until("the author of a Service is told that it cannot be served", func() bool { return strings.Contains(s.Events(), "Service lost: spec.clusterIP") })

	fixed := n.sandbox("c1", "fixed")
	fixed.works("ADD")
	if got := fixed.addrs(); got != "10.244.1.77/32" {
		t.Errorf("the pod has %s", got)
	}

	// While the server is down, pods that the agent knows from it can be attached. For other pods the agent has to ask
	// it.
	key := annotation(kube.PublicKeyAnnotation)
	s.Stop()
	unknown := n.sandbox("c2", "unknown")
	if err := unknown.run("ADD"); err == nil || !strings.Contains(err.Error(), "code 11") {
		t.Errorf("a pod nobody knows of, and nobody to ask: got %v, want that it is tried again later", err)
	}
	fixed.works("CHECK")
	s.Start()
	n.until("a pod can come again", func() bool { return unknown.run("ADD") == nil })

	// The Node is made anew and gets another range.
	s.Delete(s.Object("nodes", `{"metadata": {"name": "n1"}}`))
	s.PutJSON("nodes", unallocatedNode)
	s.PutJSON("nodes", otherNode)
	n.ended()
	n.start()
	n.ready()
	n.until("the same key is said again, and what became of the pod", func() bool {
		return annotation(kube.PublicKeyAnnotation) == key && strings.Contains(annotation(kube.ProblemsAnnotation), "10.244.1.77 is from before")
	})
	fresh := n.sandbox("c3", "fresh")
	fresh.works("ADD")
	if got := fresh.addrs(); !strings.HasPrefix(got, "10.244.9.") {
		t.Errorf("a new pod has %s", got)
	}
	fixed.works("CHECK")
}
