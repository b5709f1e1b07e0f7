package recall

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/packet"
)

const pods = `
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.244.1.10}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: db}, spec: {nodeName: n2}, status: {phase: Running, podIP: 10.244.2.20}}
`

// network is a Network with one Service, one rule and one peer.
type network struct{}

func (network) Service(at packet.Endpoint, proto packet.Proto, inside bool) string {
	if at.Port == 80 && proto == packet.TCP {
		return fmt.Sprint("shop/db ", inside)
	}
	return ""
}

func (network) Rule(rule uint64) string {
	if rule == 7 {
		return "NetworkPolicy shop/db ingress[0]"
	}
	return ""
}

func (network) Peer(id uint64) string {
	if id == 9 {
		return "n9"
	}
	return ""
}

// source returns a Source, its log, and what to call to change the cluster.
func source(t *testing.T, records int) (*Source, *flowlog.Log, func(text string)) {
	var objs *kube.Objects
	set := func(text string) {
		o, err := codec.Decode("pods.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		objs = &o
	}
	set(pods)
	log := flowlog.New(records)
	return New(Options{Node: "n1", Log: log, Objects: func() *kube.Objects { return objs }, Network: func() Network { return network{} }}), log, set
}

func at(text string) packet.Endpoint { return packet.EndpointFrom(netip.MustParseAddrPort(text)) }

func to(src, dst string) flowlog.Record {
	return flowlog.Record{Proto: packet.TCP, Src: at(src), ToSrc: at(src), Dst: at(dst), ToDst: at(dst)}
}

func TestResolve(t *testing.T) {
	s, log, _ := source(t, 16)
	begun := to("10.244.1.10:1000", "10.96.0.7:80")
	begun.Event, begun.Rule, begun.ToDst, begun.From, begun.Toward = flowlog.Begun, 7, at("10.244.2.20:8080"), flowlog.Pod, flowlog.OtherNode
	refused := to("198.51.100.7:1000", "10.244.1.99:443")
	refused.Event, refused.Reason, refused.Peer, refused.From, refused.Toward = flowlog.Refused, uint8(netstack.NoRoute), 9, flowlog.Outside, flowlog.Nobody
	ended := to("10.244.1.10:1000", "10.244.2.20:81")
	ended.Event, ended.State, ended.Bytes, ended.Packets, ended.Wait, ended.Duration = flowlog.Ended, flow.TimeWait, [2]uint64{1, 2}, [2]uint64{3, 4}, 5, time.Second
	resolved := flowlog.Record{Event: flowlog.Resolved, Proto: packet.UDP, Src: at("10.244.1.10:1000"), ToSrc: at("10.244.1.10:1000"), Code: 3, Question: 28, Toward: flowlog.Agent}
	resolved.SetName("nobody.example.")
	web := localapi.FlowEnd{Address: netip.MustParseAddr("10.244.1.10"), Port: 1000, Kind: "pod", Namespace: "shop", Pod: "web", Node: "n1"}
	db := localapi.FlowEnd{Address: netip.MustParseAddr("10.244.2.20"), Port: 8080, Kind: "pod", Namespace: "shop", Pod: "db", Node: "n2"}
	db81 := db
	db81.Port = 81
	for _, c := range []struct {
		r    flowlog.Record
		want localapi.Flow
	}{
		{begun, localapi.Flow{Event: "begun", Verdict: localapi.Forwarded, Protocol: "tcp", Source: web, Destination: db, Frontend: netip.MustParseAddrPort("10.96.0.7:80"),
			Service: "shop/db true", Policy: "NetworkPolicy shop/db ingress[0]"}},
		{refused, localapi.Flow{Event: "refused", Verdict: localapi.Lost, Reason: "no-route", Protocol: "tcp", Via: "n9",
			Source:      localapi.FlowEnd{Address: netip.MustParseAddr("198.51.100.7"), Port: 1000, Kind: "outside"},
			Destination: localapi.FlowEnd{Address: netip.MustParseAddr("10.244.1.99"), Port: 443, Kind: "nobody"}}},
		{ended, localapi.Flow{Event: "ended", Verdict: localapi.Forwarded, Protocol: "tcp", Source: web, Destination: db81, State: "TIME_WAIT",
			SentBytes: 1, ReceivedBytes: 2, SentPackets: 3, ReceivedPackets: 4, AnswerTime: 5 * time.Microsecond, Duration: time.Second}},
	} {
		log.Write(&c.r)
		got, ok := s.Read(localapi.FlowQuery{Last: 1}).Next()
		c.want.Time, c.want.Node = got.Time, "n1"
		if !ok || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("got\n%+v, want\n%+v", got, c.want)
		}
	}
	log.Write(&resolved)
	got, _ := s.Read(localapi.FlowQuery{Last: 1}).Next()
	if got.DNS == nil || *got.DNS != (localapi.FlowDNS{Name: "nobody.example.", Type: "AAAA", Code: "NXDOMAIN"}) || got.Destination.Kind != "agent" {
		t.Errorf("a question: %+v, %+v", got, got.DNS)
	}
}

// A query gets the last events that it is for, however many others there are, and then those that come.
func TestLastAndFollow(t *testing.T) {
	s, log, _ := source(t, 64)
	write := func(port int) {
		r := to("10.244.1.10:1000", fmt.Sprint("10.244.2.20:", port))
		r.Event = flowlog.Begun
		log.Write(&r)
	}
	for i := range 100 {
		write(1000 + i)
		write(80)
	}
	filter := localapi.FlowFilter{Ports: []uint16{80}}
	for _, last := range []int{0, 1, 5, 32, 1000} {
		r := s.Read(localapi.FlowQuery{Last: last, Filter: filter})
		n := 0
		for f, ok := r.Wait(t.Context()); ok; f, ok = r.Wait(t.Context()) {
			if n++; f.Destination.Port != 80 {
				t.Errorf("got one to port %d", f.Destination.Port)
			}
		}
		if n != min(last, 32) || r.Lost() != 0 || r.Follows() {
			t.Errorf("the last %d: %d events, %d lost", last, n, r.Lost())
		}
	}
	r := s.Read(localapi.FlowQuery{Last: 1, Follow: true, Filter: filter})
	if _, ok := r.Next(); !ok {
		t.Fatal("there is no last event")
	}
	if f, ok := r.Next(); ok {
		t.Errorf("got %+v before it came", f)
	}
	for range 40 { // 80 records: the first 16 are lost to a reader who sleeps
		write(80)
		write(81)
	}
	n := 0
	for f, ok := r.Next(); ok; f, ok = r.Next() {
		if n++; f.Destination.Port != 80 {
			t.Errorf("got one to port %d", f.Destination.Port)
		}
	}
	if n != 32 || r.Lost() != 16 {
		t.Errorf("%d events and %d lost, want 32 and 16", n, r.Lost())
	}
	write(81)
	write(80)
	if f, ok := r.Wait(t.Context()); !ok || f.Destination.Port != 80 {
		t.Errorf("waited for %+v", f)
	}
}

// Names follow the cluster, but not faster than can be afforded.
func TestNamesFollow(t *testing.T) {
	s, log, set := source(t, 16)
	now := time.Unix(1000, 0)
	s.clock = func() time.Time { now = now.Add(10 * time.Millisecond); return now } // that long takes a Book
	r := to("10.244.1.10:1000", "10.244.2.20:80")
	r.Event = flowlog.Begun
	log.Write(&r)
	name := func() string {
		f, _ := s.Read(localapi.FlowQuery{Last: 1}).Next()
		return f.Source.Pod
	}
	if got := name(); got != "web" {
		t.Errorf("the pod is %q", got)
	}
	set(`{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: next}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.244.1.10}}`)
	if got := name(); got != "web" {
		t.Errorf("at once the pod is %q", got)
	}
	now = now.Add(rest * 10 * time.Millisecond)
	if got := name(); got != "next" {
		t.Errorf("later the pod is %q", got)
	}
}
