package services

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// ep makes an Endpoint from "address node conditions". The conditions are the letters r(eady), s(erving) and
// t(erminating). The endpoint serves the port "web" on 8080/TCP.
func ep(spec string) Endpoint {
	f := append(strings.Fields(spec), "")
	return Endpoint{
		Addr: netip.MustParseAddr(f[0]), ID: "uid-" + f[0], Node: f[1],
		Ready: strings.Contains(f[2], "r"), Serving: strings.Contains(f[2], "s"), Terminating: strings.Contains(f[2], "t"),
		Ports: []EndpointPort{{"web", packet.TCP, 8080}},
	}
}

func eps(specs ...string) (out []Endpoint) {
	for _, s := range specs {
		out = append(out, ep(s))
	}
	return out
}

func TestSelect(t *testing.T) {
	web := Port{Name: "web", Protocol: packet.TCP, Port: 80}
	tests := []struct {
		name      string
		endpoints []Endpoint
		port      Port
		scope     Scope
		notReady  bool
		want      string
	}{
		{name: "none", port: web, scope: Scope{Family: IPv4}},
		{name: "ready", endpoints: eps("10.0.0.1 a rs", "10.0.0.2 b rs"), port: web, scope: Scope{Family: IPv4}, want: "10.0.0.1 10.0.0.2"},
		{name: "unready left out", endpoints: eps("10.0.0.1 a rs", "10.0.0.2 b"), port: web, scope: Scope{Family: IPv4}, want: "10.0.0.1"},
		{name: "all unready", endpoints: eps("10.0.0.1 a", "10.0.0.2 b"), port: web, scope: Scope{Family: IPv4}},
		{name: "serving but not terminating is no fallback", endpoints: eps("10.0.0.1 a s"), port: web, scope: Scope{Family: IPv4}},
		{name: "terminating only beside ready", endpoints: eps("10.0.0.1 a st", "10.0.0.2 b rs"), port: web, scope: Scope{Family: IPv4}, want: "10.0.0.2"},
		{name: "terminating when nothing is ready", endpoints: eps("10.0.0.1 a st", "10.0.0.2 b t", "10.0.0.3 b"), port: web, scope: Scope{Family: IPv4}, want: "10.0.0.1"},
		{name: "publish not ready", endpoints: eps("10.0.0.1 a", "10.0.0.2 b t"), port: web, scope: Scope{Family: IPv4}, notReady: true, want: "10.0.0.1 10.0.0.2"},
		{name: "local", endpoints: eps("10.0.0.1 a rs", "10.0.0.2 b rs"), port: web, scope: Scope{"b", IPv4}, want: "10.0.0.2"},
		{name: "no local", endpoints: eps("10.0.0.1 a rs"), port: web, scope: Scope{"b", IPv4}},
		{name: "local fallback though ready elsewhere", endpoints: eps("10.0.0.1 a rs", "10.0.0.2 b st"), port: web, scope: Scope{"b", IPv4}, want: "10.0.0.2"},
		{name: "family 4", endpoints: eps("10.0.0.1 a rs", "fd00::1 a rs"), port: web, scope: Scope{Family: IPv4}, want: "10.0.0.1"},
		{name: "family 6", endpoints: eps("10.0.0.1 a rs", "fd00::1 a rs"), port: web, scope: Scope{Family: IPv6}, want: "fd00::1"},
		{name: "any family", endpoints: eps("10.0.0.1 a rs", "fd00::1 a rs"), port: web, want: "10.0.0.1 fd00::1"},
		{name: "any family, one of them terminating", endpoints: eps("10.0.0.1 a st", "fd00::1 a rs"), port: web, want: "fd00::1"},
		{name: "other port name", endpoints: eps("10.0.0.1 a rs"), port: Port{Name: "dns", Protocol: packet.TCP, Port: 80}, scope: Scope{Family: IPv4}},
		{name: "other protocol", endpoints: eps("10.0.0.1 a rs"), port: Port{Name: "web", Protocol: packet.UDP, Port: 80}, scope: Scope{Family: IPv4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Service{Endpoints: tt.endpoints, PublishNotReady: tt.notReady}
			var got []string
			for _, target := range Select(&s, &tt.port, tt.scope) {
				if target.Port != 8080 {
					t.Errorf("target port %d, want 8080", target.Port)
				}
				got = append(got, target.Endpoint.Addr.String())
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %q, want %q", s, tt.want)
			}
		})
	}
}

func TestHints(t *testing.T) {
	web := Port{Name: "web", Protocol: packet.TCP, Port: 80}
	// The hints of each endpoint, as two letters for its node and its zone: h(ere), e(lsewhere) or - for none.
	hint := map[byte]Hint{'-': NoHint, 'e': Elsewhere, 'h': Here}
	for name, tt := range map[string]struct {
		endpoints []Endpoint
		hints     []string
		scope     Scope
		want      string
	}{
		"none":                         {eps("10.0.0.1 a rs", "10.0.0.2 b rs"), []string{"--", "--"}, Scope{Family: IPv4}, "10.0.0.1 10.0.0.2"},
		"zone":                         {eps("10.0.0.1 a rs", "10.0.0.2 b rs"), []string{"-h", "-e"}, Scope{Family: IPv4}, "10.0.0.1"},
		"none for this zone":           {eps("10.0.0.1 a rs", "10.0.0.2 b rs"), []string{"-e", "-e"}, Scope{Family: IPv4}, "10.0.0.1 10.0.0.2"},
		"one without a hint":           {eps("10.0.0.1 a rs", "10.0.0.2 b rs"), []string{"-h", "--"}, Scope{Family: IPv4}, "10.0.0.1 10.0.0.2"},
		"node before zone":             {eps("10.0.0.1 a rs", "10.0.0.2 b rs", "10.0.0.3 c rs"), []string{"hh", "eh", "ee"}, Scope{Family: IPv4}, "10.0.0.1"},
		"zone where the node has none": {eps("10.0.0.1 a rs", "10.0.0.2 b rs"), []string{"eh", "ee"}, Scope{Family: IPv4}, "10.0.0.1"},
		"unready ones do not count":    {eps("10.0.0.1 a", "10.0.0.2 b rs"), []string{"-h", "-e"}, Scope{Family: IPv4}, "10.0.0.2"},
		"Local is not narrowed":        {eps("10.0.0.1 a rs", "10.0.0.2 a rs"), []string{"hh", "ee"}, Scope{"a", IPv4}, "10.0.0.1 10.0.0.2"},
		"nor the terminating":          {eps("10.0.0.1 a st", "10.0.0.2 b st"), []string{"hh", "ee"}, Scope{Family: IPv4}, "10.0.0.1 10.0.0.2"},
	} {
		for i, h := range tt.hints {
			tt.endpoints[i].ForNode, tt.endpoints[i].ForZone = hint[h[0]], hint[h[1]]
		}
		var got []string
		for _, target := range Select(&Service{Endpoints: tt.endpoints}, &web, tt.scope) {
			got = append(got, target.Endpoint.Addr.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: got %q, want %q", name, s, tt.want)
		}
	}
}

// TestServingTwin compares serving with a search of every endpoint's list.
func TestServingTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	protos := []packet.Proto{packet.TCP, packet.UDP}
	found := 0
	for range 500 {
		var lists [][]EndpointPort
		for range 1 + random.IntN(4) {
			var list []EndpointPort
			for range random.IntN(3 * searchMax) {
				list = append(list, EndpointPort{fmt.Sprint(random.IntN(20)), protos[random.IntN(2)], uint16(random.IntN(4))})
			}
			lists = append(lists, list, list[:len(list)/2])
		}
		var endpoints []Endpoint
		for range random.IntN(10) {
			endpoints = append(endpoints, Endpoint{ID: fmt.Sprint(len(endpoints)), Ports: lists[random.IntN(len(lists))]})
		}
		s, sorted := newServing(endpoints), newServing(endpoints).sorted()
		for range 30 {
			p := Port{Name: fmt.Sprint(random.IntN(20)), Protocol: protos[random.IntN(2)]}
			var want []Target
			for i := range s.endpoints {
				e := &s.endpoints[i]
				j := slices.IndexFunc(e.Ports, func(ep EndpointPort) bool { return ep.Name == p.Name && ep.Protocol == p.Protocol && ep.Port != 0 })
				if j >= 0 {
					want = append(want, Target{Endpoint: e, Port: e.Ports[j].Port})
				}
			}
			if got := s.port(&p); !slices.Equal(got, want) {
				t.Fatalf("port %+v of %+v: got %v, want %v", p, s.endpoints, got, want)
			}
			found += len(want)
			for i := range want {
				want[i].pod = podID(want[i].Endpoint.ID, want[i].Endpoint.Addr)
			}
			slices.SortStableFunc(want, func(a, b Target) int { return cmp.Compare(a.pod, b.pod) })
			if got := sorted.port(&p); !slices.Equal(got, want) {
				t.Fatalf("port %+v of %+v, sorted: got %v, want %v", p, s.endpoints, got, want)
			}
		}
	}
	if found < 1000 {
		t.Errorf("only %d were found", found)
	}
}
