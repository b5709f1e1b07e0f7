package localapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestFlowFilter(t *testing.T) {
	f := Flow{
		Event: "refused", Verdict: Lost, Reason: "denied", Protocol: "tcp", Service: "shop/db", Frontend: netip.MustParseAddrPort("10.96.0.7:5432"),
		Source:      FlowEnd{Address: netip.MustParseAddr("10.244.1.10"), Port: 41000, Namespace: "front", Pod: "web-6d9-abc"},
		Destination: FlowEnd{Address: netip.MustParseAddr("10.244.2.20"), Port: 5433, Namespace: "shop", Pod: "db-0"},
		DNS:         &FlowDNS{Name: "Db.Example.COM."},
	}
	prefix := func(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }
	for name, c := range map[string]struct {
		FlowFilter
		want bool
	}{
		"nothing asked":         {FlowFilter{}, true},
		"pod":                   {FlowFilter{Pods: []string{"front/web-"}}, true},
		"pod of any namespace":  {FlowFilter{Pods: []string{"x", "db-0"}}, true},
		"pod elsewhere":         {FlowFilter{Pods: []string{"shop/web-"}}, false},
		"namespace":             {FlowFilter{Namespaces: []string{"shop"}}, true},
		"another namespace":     {FlowFilter{Namespaces: []string{"sho"}}, false},
		"service":               {FlowFilter{Services: []string{"shop/db"}}, true},
		"service by name":       {FlowFilter{Services: []string{"db"}}, true},
		"another service":       {FlowFilter{Services: []string{"d"}}, false},
		"event":                 {FlowFilter{Events: []string{"begun", "refused"}}, true},
		"verdict":               {FlowFilter{Verdicts: []string{"forwarded"}}, false},
		"reason":                {FlowFilter{Reasons: []string{"denied"}}, true},
		"protocol":              {FlowFilter{Protocols: []string{"TCP"}}, true},
		"another protocol":      {FlowFilter{Protocols: []string{"udp"}}, false},
		"port of the service":   {FlowFilter{Ports: []uint16{5432}}, true},
		"port of the pod":       {FlowFilter{Ports: []uint16{5433}}, true},
		"another port":          {FlowFilter{Ports: []uint16{0, 80}}, false},
		"name":                  {FlowFilter{Names: []string{"db.example.com"}}, true},
		"names below":           {FlowFilter{Names: []string{"*.example.com."}}, true},
		"not below itself":      {FlowFilter{Names: []string{"*.db.example.com"}}, false},
		"address":               {FlowFilter{Addresses: prefix("10.244.2.0/24")}, true},
		"address of the client": {FlowFilter{Addresses: prefix("10.244.1.10/32")}, true},
		"another address":       {FlowFilter{Addresses: prefix("10.244.3.0/24")}, false},
		"all of several":        {FlowFilter{Ports: []uint16{5432}, Verdicts: []string{"dropped"}}, true},
		"one of several not":    {FlowFilter{Ports: []uint16{5432}, Verdicts: []string{"audit"}}, false},
	} {
		if got := c.Match(&f); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	other := FlowFilter{Names: []string{"db.example.com"}, Services: nil}
	if other.Match(&Flow{}) || (&FlowFilter{Services: []string{"db"}}).Match(&Flow{}) || (&FlowFilter{Pods: []string{""}}).Match(&Flow{}) {
		t.Error("an event without a name, Service or pod has one")
	}
}

// script is a FlowReader of n events, then of none.
type script struct {
	n, at   int
	follows bool
}

func (s *script) Next() (Flow, bool) {
	if s.at == s.n {
		return Flow{}, false
	}
	s.at++
	return Flow{Event: fmt.Sprint(s.at, strings.Repeat("x", 5000))}, true
}

func (s *script) Wait(ctx context.Context) (Flow, bool) { return s.Next() }
func (s *script) Follows() bool                         { return s.follows }
func (s *script) Lost() uint64                          { return uint64(s.at / 10) }

// All events come in order, in as many messages as it takes, with how many were lost.
func TestFlows(t *testing.T) {
	var asked FlowQuery
	c := serve(t, &Server{Flows: func(q FlowQuery) FlowReader { asked = q; return &script{n: 100} }})
	q := FlowQuery{Last: 100, Filter: FlowFilter{Pods: []string{"web"}}}
	n, last := 0, uint64(0)
	err := c.Flows(t.Context(), q, func(f *Flow, lost uint64) error {
		n++
		if last = lost; !strings.HasPrefix(f.Event, fmt.Sprint(n, "x")) {
			t.Errorf("event %d is %.10s", n, f.Event)
		}
		return nil
	})
	if err != nil || n != 100 || last != 10 || asked.Last != 100 || asked.Filter.Pods[0] != "web" {
		t.Errorf("%d events, %d lost, asked for %+v: %v", n, last, asked, err)
	}
	enough := errors.New("enough")
	c = serve(t, &Server{Flows: func(FlowQuery) FlowReader { return &script{n: 1, follows: true} }})
	if err := c.Flows(t.Context(), q, func(*Flow, uint64) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	c = serve(t, &Server{})
	if err := c.Flows(t.Context(), q, nil); err == nil || !strings.Contains(err.Error(), "--flow-log") {
		t.Errorf("an agent without a flow log: %v", err)
	}
}
