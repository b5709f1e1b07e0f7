package node_test

import (
	"testing"

	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/services/dns"
)

// Services that only have a name (headless ones, and those with an ExternalName) are counted as Services, although no
// packet is translated for them.
func TestServicesCounted(t *testing.T) {
	m := nodetest.New(t, 1).Members[0]
	c := m.Config()
	c.DNS.Services = []*dns.Service{
		{Namespace: "default", Name: "headless"},
		{Namespace: "default", Name: "other", ExternalName: "example.com"},
	}
	if err := m.Set(c); err != nil {
		t.Fatal(err)
	}
	if got := m.Counters().Get("tapestry_services"); got != 2 {
		t.Errorf("tapestry_services is %v, want 2", got)
	}
}
