package hubble

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/cilium/api/v1/flow"
	"github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"tapestry.dev/tapestry/hubble"
	"tapestry.dev/tapestry/hubble/rpc"
)

// recorded is a Source of events that have happened, and of those that the test adds.
type recorded struct {
	past   []hubble.Flow
	coming chan hubble.Flow
}

func (r *recorded) Stats() (seen, most uint64) { return uint64(len(r.past)), 4096 }

func (r *recorded) Read(past bool) hubble.Reader {
	if past {
		return &reader{r, r.past}
	}
	return &reader{r, nil}
}

type reader struct {
	*recorded
	rest []hubble.Flow
}

func (r *reader) Next() (hubble.Flow, bool) {
	if len(r.rest) > 0 {
		f := r.rest[0]
		r.rest = r.rest[1:]
		return f, true
	}
	select {
	case f := <-r.coming:
		return f, true
	default:
		return hubble.Flow{}, false
	}
}

func (r *reader) Wait(ctx context.Context) (hubble.Flow, bool) {
	if f, ok := r.Next(); ok {
		return f, true
	}
	select {
	case f := <-r.coming:
		return f, true
	case <-ctx.Done():
		return hubble.Flow{}, false
	}
}

func (*reader) Lost() uint64 { return 0 }

// at is the time of the nth event.
func at(n int) time.Time { return time.Date(2026, 1, 2, 3, 4, n, 5000, time.UTC) }

// events are one of each kind.
func events() []hubble.Flow {
	web := hubble.End{
		Addr: netip.MustParseAddr("10.244.1.10"), Port: 40000, Namespace: "shop", Pod: "web-1", Workload: hubble.Workload{Kind: "Deployment", Name: "web"},
		Labels: []string{"k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"},
	}
	db := hubble.End{
		Addr: netip.MustParseAddr("10.244.2.11"), Port: 5432, Namespace: "db", Pod: "pg-0",
		Labels: []string{"k8s:app=pg", "k8s:io.kubernetes.pod.namespace=db"}, Service: hubble.Name{Namespace: "db", Name: "pg"},
	}
	dns := hubble.End{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Labels: []string{"reserved:host"}}
	world := hubble.End{Addr: netip.MustParseAddr("2001:db8::1"), Port: 443, Labels: []string{"reserved:world"}, Names: []string{"example.com"}}
	return []hubble.Flow{
		{
			Time: at(0), Node: "n1", Verdict: hubble.Forwarded, Direction: hubble.Egress, Source: web, Destination: db, Protocol: hubble.TCP, Flags: hubble.SYN,
			Type: hubble.Trace, Point: hubble.ToOverlay, Reply: hubble.Request, Translated: netip.MustParseAddr("192.0.2.1"), Summary: "TCP Flags: SYN",
		}, {
			Time: at(1), Node: "n1", Verdict: hubble.Dropped, Reason: hubble.PolicyDenied, Direction: hubble.Ingress, Source: db, Destination: web, Protocol: hubble.UDP,
			Type: hubble.Drop, Point: int32(hubble.PolicyDenied), Policies: []hubble.Policy{{Kind: "NetworkPolicy", Namespace: "shop", Name: "deny"}}, Summary: "denied",
		}, {
			Time: at(2), Node: "n1", Verdict: hubble.Forwarded, Direction: hubble.Egress, Source: dns, Destination: web, Protocol: hubble.UDP, Type: hubble.AccessLog,
			Reply: hubble.Answer, DNS: &hubble.DNS{Query: "example.com.", Types: []string{"A"}, Code: 3}, Latency: time.Millisecond, Summary: "DNS Answer NXDOMAIN",
		}, {
			Time: at(3), Node: "n1", Verdict: hubble.Audited, Direction: hubble.Egress, Source: web, Destination: world, Protocol: hubble.SCTP, Type: hubble.PolicyVerdict,
			Policies: []hubble.Policy{{Kind: "NetworkPolicy", Namespace: "shop", Name: "staged"}},
		}, {
			Time: at(4), Node: "n1", Verdict: hubble.Forwarded, Source: web, Destination: db, Protocol: hubble.TCP, Type: hubble.AccessLog, Reply: hubble.Answer,
			HTTP: &hubble.HTTP{Code: 404, Method: "GET", URL: "http://web/a", Form: "HTTP/1.1"},
		}, {
			Time: at(5), Node: "n1", Verdict: hubble.Forwarded, Source: world, Destination: web, Protocol: hubble.ICMPv6, Type: hubble.Trace, Point: hubble.ToEndpoint,
		},
	}
}

// want are the events as Hubble has them, in the text form of its messages.
var want = []string{
	`time: {seconds: 1767323040 nanos: 5000} verdict: FORWARDED IP: {source: "10.244.1.10" source_xlated: "192.0.2.1" destination: "10.244.2.11" ipVersion: IPv4}
	l4: {TCP: {source_port: 40000 destination_port: 5432 flags: {SYN: true}}} Type: L3_L4 node_name: "n1" event_type: {type: 4 sub_type: 4}
	source: {namespace: "shop" pod_name: "web-1" labels: "k8s:app=web" labels: "k8s:io.kubernetes.pod.namespace=shop" workloads: {name: "web" kind: "Deployment"}}
	destination: {namespace: "db" pod_name: "pg-0" labels: "k8s:app=pg" labels: "k8s:io.kubernetes.pod.namespace=db"} destination_service: {name: "pg" namespace: "db"}
	traffic_direction: EGRESS trace_observation_point: TO_OVERLAY is_reply: {} Summary: "TCP Flags: SYN"`,
	`time: {seconds: 1767323041 nanos: 5000} verdict: DROPPED drop_reason: 133 drop_reason_desc: POLICY_DENIED IP: {source: "10.244.2.11" destination: "10.244.1.10" ipVersion: IPv4}
	l4: {UDP: {source_port: 5432 destination_port: 40000}} Type: L3_L4 node_name: "n1" event_type: {type: 1 sub_type: 133}
	source: {namespace: "db" pod_name: "pg-0" labels: "k8s:app=pg" labels: "k8s:io.kubernetes.pod.namespace=db"} source_service: {name: "pg" namespace: "db"}
	destination: {namespace: "shop" pod_name: "web-1" labels: "k8s:app=web" labels: "k8s:io.kubernetes.pod.namespace=shop" workloads: {name: "web" kind: "Deployment"}}
	traffic_direction: INGRESS ingress_denied_by: {name: "deny" namespace: "shop" kind: "NetworkPolicy"} Summary: "denied"`,
	`time: {seconds: 1767323042 nanos: 5000} verdict: FORWARDED IP: {source: "10.96.0.10" destination: "10.244.1.10" ipVersion: IPv4}
	l4: {UDP: {source_port: 53 destination_port: 40000}} Type: L7 node_name: "n1" event_type: {type: 129} source: {identity: 1 labels: "reserved:host"}
	destination: {namespace: "shop" pod_name: "web-1" labels: "k8s:app=web" labels: "k8s:io.kubernetes.pod.namespace=shop" workloads: {name: "web" kind: "Deployment"}}
	l7: {type: RESPONSE latency_ns: 1000000 dns: {query: "example.com." rcode: 3 qtypes: "A" observation_source: "proxy"}}
	traffic_direction: EGRESS is_reply: {value: true} Summary: "DNS Answer NXDOMAIN"`,
	`time: {seconds: 1767323043 nanos: 5000} verdict: AUDIT IP: {source: "10.244.1.10" destination: "2001:db8::1" ipVersion: IPv4}
	l4: {SCTP: {source_port: 40000 destination_port: 443}} Type: L3_L4 node_name: "n1" event_type: {type: 5} destination_names: "example.com"
	source: {namespace: "shop" pod_name: "web-1" labels: "k8s:app=web" labels: "k8s:io.kubernetes.pod.namespace=shop" workloads: {name: "web" kind: "Deployment"}}
	destination: {identity: 2 labels: "reserved:world"} traffic_direction: EGRESS egress_denied_by: {name: "staged" namespace: "shop" kind: "NetworkPolicy"}`,
	`time: {seconds: 1767323044 nanos: 5000} verdict: FORWARDED IP: {source: "10.244.1.10" destination: "10.244.2.11" ipVersion: IPv4}
	l4: {TCP: {source_port: 40000 destination_port: 5432 flags: {}}} Type: L7 node_name: "n1" event_type: {type: 129} is_reply: {value: true}
	source: {namespace: "shop" pod_name: "web-1" labels: "k8s:app=web" labels: "k8s:io.kubernetes.pod.namespace=shop" workloads: {name: "web" kind: "Deployment"}}
	destination: {namespace: "db" pod_name: "pg-0" labels: "k8s:app=pg" labels: "k8s:io.kubernetes.pod.namespace=db"} destination_service: {name: "pg" namespace: "db"}
	l7: {type: RESPONSE http: {code: 404 method: "GET" url: "http://web/a" protocol: "HTTP/1.1"}}`,
	`time: {seconds: 1767323045 nanos: 5000} verdict: FORWARDED IP: {source: "2001:db8::1" destination: "10.244.1.10" ipVersion: IPv6}
	l4: {ICMPv6: {type: 128}} Type: L3_L4 node_name: "n1" event_type: {type: 4} trace_observation_point: TO_ENDPOINT source_names: "example.com"
	source: {identity: 2 labels: "reserved:world"}
	destination: {namespace: "shop" pod_name: "web-1" labels: "k8s:app=web" labels: "k8s:io.kubernetes.pod.namespace=shop" workloads: {name: "web" kind: "Deployment"}}`,
}

// serve serves a Source until the test ends, and returns the path of the socket.
func serve(t *testing.T, source hubble.Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hubble.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := hubble.NewServer(hubble.Options{Source: source, Node: "n1", Address: "192.0.2.1", Version: "v1.2.3"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, l, nil, hubble.MostConnections, s.Handler()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ask(t *testing.T, c observer.ObserverClient, r *observer.GetFlowsRequest) (list []*observer.GetFlowsResponse) {
	t.Helper()
	answer, err := c.GetFlows(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := answer.Recv()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
}

// Every field is read by Hubble's own code as what was meant.
func TestMessages(t *testing.T) {
	got := ask(t, observer.NewObserverClient(dial(t, serve(t, &recorded{past: events()}))), &observer.GetFlowsRequest{})
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d", len(got), len(want))
	}
	for i, r := range got {
		var f flow.Flow
		if err := prototext.Unmarshal([]byte(want[i]), &f); err != nil {
			t.Fatal(err)
		}
		is := r.GetFlow()
		for _, e := range []*flow.Endpoint{is.GetSource(), is.GetDestination()} {
			if e.GetPodName() != "" { // a hash
				if e.GetIdentity() < 1<<16 || e.GetIdentity() >= 1<<24 {
					t.Errorf("event %d: identity %d", i, e.GetIdentity())
				}
				e.Identity = 0
			}
		}
		if len(is.ProtoReflect().GetUnknown()) > 0 || !proto.Equal(is, &f) {
			t.Errorf("event %d is\n%v, want\n%v", i, is, &f)
		}
		if r.GetNodeName() != "n1" || !r.GetTime().AsTime().Equal(at(i)) {
			t.Errorf("event %d has node %q and time %v", i, r.GetNodeName(), r.GetTime())
		}
	}
}

// Filters, written by Hubble's own code, select what they say.
func TestFilters(t *testing.T) {
	c := observer.NewObserverClient(dial(t, serve(t, &recorded{past: events()})))
	for name, tc := range map[string]struct {
		filter *flow.FlowFilter
		want   []int
	}{
		"nothing":     {&flow.FlowFilter{}, []int{0, 1, 2, 3, 4, 5}},
		"pod":         {&flow.FlowFilter{SourcePod: []string{"shop/web"}}, []int{0, 3, 4}},
		"to pod":      {&flow.FlowFilter{DestinationPod: []string{"db/"}}, []int{0, 4}},
		"address":     {&flow.FlowFilter{SourceIp: []string{"10.244.2.0/24"}}, []int{1}},
		"to address":  {&flow.FlowFilter{DestinationIp: []string{"2001:db8::1"}}, []int{3}},
		"translated":  {&flow.FlowFilter{SourceIpXlated: []string{"192.0.2.1"}}, []int{0}},
		"verdict":     {&flow.FlowFilter{Verdict: []flow.Verdict{flow.Verdict_DROPPED, flow.Verdict_AUDIT}}, []int{1, 3}},
		"reason":      {&flow.FlowFilter{DropReasonDesc: []flow.DropReason{flow.DropReason_POLICY_DENIED}}, []int{1}},
		"type":        {&flow.FlowFilter{EventType: []*flow.EventTypeFilter{{Type: 4}, {Type: 5}}}, []int{0, 3, 5}},
		"subtype":     {&flow.FlowFilter{EventType: []*flow.EventTypeFilter{{Type: 4, MatchSubType: true}}}, []int{5}},
		"name":        {&flow.FlowFilter{DestinationFqdn: []string{"*.com"}}, []int{3}},
		"from name":   {&flow.FlowFilter{SourceFqdn: []string{"example.com"}}, []int{5}},
		"label":       {&flow.FlowFilter{SourceLabel: []string{"app in (web),k8s:app"}}, []int{0, 3, 4}},
		"to label":    {&flow.FlowFilter{DestinationLabel: []string{"reserved:world"}}, []int{3}},
		"service":     {&flow.FlowFilter{SourceService: []string{"db/pg"}}, []int{1}},
		"to service":  {&flow.FlowFilter{DestinationService: []string{"db/pg"}}, []int{0, 4}},
		"workload":    {&flow.FlowFilter{SourceWorkload: []*flow.Workload{{Name: "web", Kind: "Deployment"}}}, []int{0, 3, 4}},
		"to workload": {&flow.FlowFilter{DestinationWorkload: []*flow.Workload{{Kind: "Deployment"}}}, []int{1, 2, 5}},
		"direction":   {&flow.FlowFilter{TrafficDirection: []flow.TrafficDirection{flow.TrafficDirection_INGRESS}}, []int{1}},
		"status":      {&flow.FlowFilter{HttpStatusCode: []string{"4+"}}, []int{4}},
		"method":      {&flow.FlowFilter{HttpMethod: []string{"GET"}}, []int{4}},
		"path":        {&flow.FlowFilter{HttpPath: []string{"^/a$"}}, []int{4}},
		"url":         {&flow.FlowFilter{HttpUrl: []string{"//web"}}, []int{4}},
		"query":       {&flow.FlowFilter{DnsQuery: []string{"example"}}, []int{2}},
		"protocol":    {&flow.FlowFilter{Protocol: []string{"sctp", "dns"}}, []int{2, 3}},
		"port":        {&flow.FlowFilter{SourcePort: []string{"53"}}, []int{2}},
		"to port":     {&flow.FlowFilter{DestinationPort: []string{"443"}}, []int{3}},
		"reply":       {&flow.FlowFilter{Reply: []bool{true}}, []int{2, 4}},
		"no reply":    {&flow.FlowFilter{Reply: []bool{false}}, []int{0, 1}},
		"identity":    {&flow.FlowFilter{SourceIdentity: []uint32{1}}, []int{2}},
		"to identity": {&flow.FlowFilter{DestinationIdentity: []uint32{2}}, []int{3}},
		"flags":       {&flow.FlowFilter{TcpFlags: []*flow.TCPFlags{{SYN: true}}}, []int{0}},
		"node":        {&flow.FlowFilter{NodeName: []string{"n*"}}, []int{0, 1, 2, 3, 4, 5}},
		"version":     {&flow.FlowFilter{IpVersion: []flow.IPVersion{flow.IPVersion_IPv6}}, []int{5}},
	} {
		got := ask(t, c, &observer.GetFlowsRequest{Whitelist: []*flow.FlowFilter{tc.filter}})
		if len(got) != len(tc.want) {
			t.Errorf("%s: %d events, want %v", name, len(got), tc.want)
			continue
		}
		for i, n := range tc.want {
			if !got[i].GetTime().AsTime().Equal(at(n)) {
				t.Errorf("%s: event %d is of %v, want number %d", name, i, got[i].GetTime().AsTime(), n)
			}
		}
	}
	got := ask(t, c, &observer.GetFlowsRequest{Number: 2, Since: timestamppb.New(at(1)), Until: timestamppb.New(at(4)), Blacklist: []*flow.FlowFilter{{Protocol: []string{"sctp"}}}})
	if len(got) != 2 || !got[0].GetTime().AsTime().Equal(at(2)) || !got[1].GetTime().AsTime().Equal(at(4)) {
		t.Errorf("the last two of some are %v", got)
	}
}

func TestOtherProcedures(t *testing.T) {
	conn := dial(t, serve(t, &recorded{past: events()}))
	c := observer.NewObserverClient(conn)
	status, err := c.ServerStatus(t.Context(), &observer.ServerStatusRequest{})
	if err != nil || status.GetUptimeNs() == 0 || status.GetFlowsRate() != 6 {
		t.Errorf("ServerStatus: %v, %v", status, err)
	}
	status.UptimeNs, status.FlowsRate = 0, 0
	if is := (&observer.ServerStatusResponse{NumFlows: 6, MaxFlows: 4096, SeenFlows: 6, Version: "v1.2.3", NumConnectedNodes: wrapperspb.UInt32(1), NumUnavailableNodes: wrapperspb.UInt32(0)}); !proto.Equal(status, is) {
		t.Errorf("ServerStatus: %v", status)
	}
	nodes, err := c.GetNodes(t.Context(), &observer.GetNodesRequest{})
	if err != nil || len(nodes.GetNodes()) != 1 || nodes.GetNodes()[0].GetName() != "n1" || nodes.GetNodes()[0].GetMaxFlows() != 4096 {
		t.Errorf("GetNodes: %v, %v", nodes, err)
	}
	spaces, err := c.GetNamespaces(t.Context(), &observer.GetNamespacesRequest{})
	if err != nil || len(spaces.GetNamespaces()) != 2 || spaces.GetNamespaces()[0].GetNamespace() != "db" {
		t.Errorf("GetNamespaces: %v, %v", spaces, err)
	}
	health, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "hubble.server.Observer"})
	if err != nil || health.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("Check: %v, %v", health, err)
	}
	if answer, err := c.GetAgentEvents(t.Context(), &observer.GetAgentEventsRequest{}); err == nil {
		if _, err := answer.Recv(); err == nil {
			t.Error("there are agent events")
		}
	}
}
