package hubble

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack"
)

func TestOf(t *testing.T) {
	var (
		at  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		ap  = netip.MustParseAddrPort
		web = localapi.FlowEnd{Address: netip.MustParseAddr("10.244.1.10"), Port: 40000, Kind: "pod", Namespace: "shop", Pod: "web", Node: "n1", Labels: map[string]string{"tier": "front", "app": "web"}}
		pg  = localapi.FlowEnd{Address: netip.MustParseAddr("10.244.2.11"), Port: 5432, Kind: "pod", Namespace: "db", Pod: "pg", Node: "n2"}
		out = localapi.FlowEnd{Address: netip.MustParseAddr("2001:db8::1"), Port: 443, Kind: "outside"}
		dns = localapi.FlowEnd{Port: 53, Kind: "agent"}

		isWeb = End{Addr: web.Address, Port: 40000, Namespace: "shop", Pod: "web", Labels: []string{"k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "k8s:tier=front"}}
		isPg  = End{Addr: pg.Address, Port: 5432, Namespace: "db", Pod: "pg", Labels: []string{"k8s:io.kubernetes.pod.namespace=db"}}
		isOut = End{Addr: out.Address, Port: 443, Labels: []string{"reserved:world"}}
		isDNS = End{Port: 53, Labels: []string{"reserved:host"}}

		deny = []Policy{{Kind: "NetworkPolicy", Namespace: "shop", Name: "deny"}}
	)
	viaService := isPg
	viaService.Service = Name{"db", "pg"}
	for name, c := range map[string]struct {
		told localapi.Flow
		want Flow
	}{
		"through a Service": {
			localapi.Flow{Event: "begun", Verdict: localapi.Forwarded, Protocol: "tcp", Source: web, Destination: pg, Frontend: ap("10.96.0.1:80"), Service: "db/pg"},
			Flow{Verdict: Forwarded, Direction: Egress, Source: isWeb, Destination: viaService, Protocol: TCP, Flags: SYN, Type: Trace, Point: ToOverlay, Reply: Request, Summary: "TCP Flags: SYN"},
		},
		"to the outside": {
			localapi.Flow{Event: "begun", Verdict: localapi.Forwarded, Protocol: "udp", Source: web, Destination: out, As: ap("192.0.2.1:50000")},
			Flow{Verdict: Forwarded, Direction: Egress, Source: isWeb, Destination: isOut, Translated: netip.MustParseAddr("192.0.2.1"), Protocol: UDP, Type: Trace, Point: ToNetwork, Reply: Request, Summary: "UDP"},
		},
		"permitted by a policy": {
			localapi.Flow{Event: "begun", Verdict: localapi.Forwarded, Protocol: "tcp", Source: out, Destination: web, Policy: "ClusterNetworkPolicy open ingress[0]"},
			Flow{Verdict: Forwarded, Direction: Ingress, Source: isOut, Destination: isWeb, Protocol: TCP, Flags: SYN, Type: PolicyVerdict, Reply: Request,
				Policies: []Policy{{Kind: "ClusterNetworkPolicy", Name: "open"}}, Summary: "TCP Flags: SYN, by ClusterNetworkPolicy open ingress[0]"},
		},
		"staged": {
			localapi.Flow{Event: "begun", Verdict: localapi.Audited, Protocol: "icmp", Source: web, Destination: pg, Policy: "NetworkPolicy shop/deny egress"},
			Flow{Verdict: Audited, Direction: Egress, Source: isWeb, Destination: isPg, Protocol: ICMPv4, Type: PolicyVerdict, Reply: Request, Policies: deny, Summary: "ICMP, by NetworkPolicy shop/deny egress"},
		},
		"ended": {
			localapi.Flow{Event: "ended", Verdict: localapi.Forwarded, Protocol: "tcp", Source: out, Destination: web, State: "RESET", Duration: 1500 * time.Millisecond, SentBytes: 100, ReceivedBytes: 2000, Retransmits: 3},
			Flow{Verdict: Forwarded, Direction: Ingress, Source: isOut, Destination: isWeb, Protocol: TCP, Flags: RST, Type: Trace, Point: ToEndpoint, Reply: Request,
				Summary: "TCP ended after 1.5s; 100 bytes sent, 2000 received; RESET; 3 retransmissions"},
		},
		"refused by a policy": {
			localapi.Flow{Event: "refused", Verdict: localapi.Lost, Reason: "denied", Protocol: "tcp", Source: pg, Destination: web, Policy: "NetworkPolicy shop/deny ingress"},
			Flow{Verdict: Dropped, Reason: PolicyDenied, Direction: Ingress, Source: isPg, Destination: isWeb, Protocol: TCP, Type: Drop, Point: int32(PolicyDenied), Reply: Request,
				Policies: deny, Summary: "TCP refused: denied, by NetworkPolicy shop/deny ingress"},
		},
		"dropped": {
			localapi.Flow{Event: "dropped", Verdict: localapi.Lost, Reason: "of-tomorrow", Protocol: "47", Source: web, Destination: localapi.FlowEnd{Address: netip.MustParseAddr("10.244.9.9"), Kind: "nobody"}},
			Flow{Verdict: Dropped, Reason: Unroutable, Direction: Egress, Source: isWeb, Destination: End{Addr: netip.MustParseAddr("10.244.9.9"), Labels: []string{"reserved:unknown"}},
				Protocol: 47, Type: Drop, Point: int32(Unroutable), Summary: "47 dropped: of-tomorrow"},
		},
		"a name": {
			localapi.Flow{Event: "resolved", Verdict: localapi.Forwarded, Protocol: "udp", Source: web, Destination: dns, AnswerTime: time.Millisecond, DNS: &localapi.FlowDNS{Name: "example.com.", Type: "AAAA", Code: "NXDOMAIN"}},
			Flow{Verdict: Forwarded, Direction: Egress, Source: isDNS, Destination: isWeb, Protocol: UDP, Type: AccessLog, Reply: Answer, Latency: time.Millisecond,
				DNS: &DNS{Query: "example.com.", Types: []string{"AAAA"}, Code: 3}, Summary: "DNS Answer NXDOMAIN (example.com. AAAA), 0 records"},
		},
		"another node": {
			localapi.Flow{Event: "begun", Verdict: localapi.Forwarded, Protocol: "sctp", Source: localapi.FlowEnd{Kind: "node", Node: "n1"}, Destination: localapi.FlowEnd{Kind: "node", Node: "n2"}},
			Flow{Verdict: Forwarded, Source: End{Labels: []string{"reserved:host"}}, Destination: End{Labels: []string{"reserved:remote-node"}}, Protocol: SCTP, Type: Trace, Point: ToOverlay, Reply: Request, Summary: "SCTP"},
		},
	} {
		c.told.Time, c.told.Node, c.want.Time, c.want.Node = at, "n1", at, "n1"
		if got := Of(&c.told); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%+v, want\n%+v", name, got, c.want)
		}
	}
}

// Every reason of the packet path has a number of Hubble's.
func TestReasons(t *testing.T) {
	n := 0
	for r := netstack.NotDropped + 1; r <= netstack.Moving; r++ {
		if reasons[r.String()] == NoReason {
			t.Errorf("%s has none", r)
		}
		n++
	}
	if len(reasons) != n {
		t.Errorf("%d reasons have a number, of %d", len(reasons), n)
	}
}
