package cluster

import (
	"slices"
	"testing"

	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/version"
)

// An API server's log tells which build of the agent, and of the step before it, sends requests.
func TestUserAgent(t *testing.T) {
	s := clustertest.New(t)
	s.Put(node("n1"))
	v := see(t, s)
	v.untilNames("Node n1")
	v.stop()
	read, err := NodeReader(Options{Node: "n1", Kubeconfig: s.Kubeconfig(), State: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Clients(), []string{version.UserAgent()}; !slices.Equal(got, want) {
		t.Errorf("the server was asked by %q, want %q", got, want)
	}
}
