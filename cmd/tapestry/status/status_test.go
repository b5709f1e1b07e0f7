package status

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube/cni"
)

func TestPrintNode(t *testing.T) {
	now := time.Unix(10000, 0)
	s := nodeStatus{
		Status: cni.Status{Node: "n1", Problems: []string{"Service d/s: spec.ports: is empty"}},
		Detail: cni.Detail{
			Version: "v1", Started: now.Add(-time.Hour), Updated: now.Add(-3 * time.Second), Source: "manifests in /m",
			Missing: []string{"packets: timed out", "more"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, MTU: 1420, DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Services: 3, Endpoints: 5, NodePorts: 2, HostPorts: 1,
			Peers: []cni.PeerDetail{
				{Name: "n2", PublicKey: "k", Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), HandshakeAge: 61 * time.Second, AnswerAge: time.Second, MTU: 1440, Received: 1500, Sent: 999},
				{Name: "n3", PublicKey: "k", HandshakeAge: -1, AnswerAge: -1}, {Name: "n4", HandshakeAge: -1, AnswerAge: -1},
			},
			Pods: []cni.PodDetail{{Name: "d/p", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.3")}, FromBytes: 2_500_000, Offloads: "csum"}},
		},
		Stats: cni.Stats{Drops: map[string]uint64{"no-route": 2, "malformed": 0, "spoofed": 1}},
	}
	var out strings.Builder
	if err := printNode(&out, s, now); err != nil {
		t.Fatal(err)
	}
	// Columns are as wide as what is in them: compare words.
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"Node n1 (192.0.2.1)", "Ready no: packets: timed out more", "Agent v1, for 1h0m0s", "from manifests in /m, in force for 3s",
		"Privileges none: processes of the host do not reach pods", "10.244.1.0/24, MTU 1420", "Cluster DNS 10.96.0.10",
		"3 with 5 endpoints, 2 node ports, 1 host ports", "Flows none", "Drops no-route=2 spoofed=1 PEER",
		"n2 192.0.2.2:51820 1m1s ago 1s ago 1440 1.5 kB 999 B", "n3 never heard never never", "n4 has announced no key",
		"d/p 10.244.1.3 2.5 MB 0 B 0 csum", "PROBLEMS Service d/s: spec.ports: is empty",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
}

func TestPrivileges(t *testing.T) {
	for _, host := range []bool{false, true} {
		for _, link := range []bool{false, true} {
			got := privileges(&cni.Detail{HostPort: host, Announcements: link})
			if strings.Contains(got, "none") != (!host && !link) || strings.Contains(got, "announcements") != link || strings.Contains(got, "do not reach") == host {
				t.Errorf("host Port %v, announcements %v: %s", host, link, got)
			}
		}
	}
}
