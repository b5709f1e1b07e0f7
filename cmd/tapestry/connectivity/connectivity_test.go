package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/kube/stage"
)

// twoNodes returns a stage on two nodes. Its pods have both families, its nodes have IPv4.
func twoNodes() *stage.Stage {
	return &stage.Stage{
		Namespace: "t",
		Nodes:     []stage.Node{{Name: "n1", Addrs: addresstest.Addrs("192.0.2.1")}, {Name: "n2", Addrs: addresstest.Addrs("192.0.2.2")}},
		Pods: map[string]stage.Pod{
			"client": {Node: "n1", Addrs: addresstest.Addrs("10.244.1.3", "fd00::1:3")}, "near": {Node: "n1", Addrs: addresstest.Addrs("10.244.1.4", "fd00::1:4")},
			"far": {Node: "n2", Addrs: addresstest.Addrs("10.244.2.3", "fd00::2:3")}, "host": {Node: "n1", Addrs: addresstest.Addrs("192.0.2.1"), HostNetwork: true},
		},
		Services: map[string]stage.Service{
			"near": {Addrs: addresstest.Addrs("10.96.0.3", "fd96::3"), TCP: 30001, UDP: 30002}, "far": {Addrs: addresstest.Addrs("10.96.0.4", "fd96::4"), TCP: 30003, UDP: 30004},
			"both": {Addrs: addresstest.Addrs("10.96.0.5", "fd96::5"), TCP: 30005, UDP: 30006},
		},
	}
}

func names(checks []Check, group string) (out []string) {
	for _, c := range checks {
		if c.Group == group {
			out = append(out, c.From+": "+c.Name)
		}
	}
	return out
}

func TestPlan(t *testing.T) {
	checks := Plan(twoNodes(), "example.com:80")
	for group, want := range map[string]int{
		"pod-pod":     8,             // two servers, two protocols, two families
		"pod-service": 8 + 2,         // and all servers of one Service
		"hairpin":     8,             //
		"nodeport":    8 + 2*2*(2+1), // IPv4: client to both nodes; host to both nodes and to localhost
		"host":        8,             // IPv4: pods and Services
		"dns":         6 + 1 + 2 + 1, //
		"egress":      2,             //
	} {
		if got := names(checks, group); len(got) != want {
			t.Errorf("%s: %d checks, want %d:\n%s", group, len(got), want, strings.Join(got, "\n"))
		}
	}
	for _, want := range []string{"client: tcp 10.244.2.3:9000 -> far", "client: udp [fd00::1:4]:9000 -> near"} {
		if !slices.Contains(names(checks, "pod-pod"), want) {
			t.Errorf("nobody asks %s", want)
		}
	}
	if !slices.Contains(names(checks, "nodeport"), "host: udp 127.0.0.1:30004 -> far") {
		t.Error("nobody asks a node port at localhost")
	}
}

func TestPlanOfOneNode(t *testing.T) {
	s := twoNodes()
	s.Nodes = s.Nodes[:1]
	delete(s.Pods, "far")
	delete(s.Services, "far")
	for _, c := range Plan(s, "") {
		if strings.Contains(c.Name, "far") || strings.Contains(c.Name, "192.0.2.2") {
			t.Errorf("%s: %s", c.From, c.Name)
		}
	}
}

func said(v any) string {
	b, _ := json.Marshal(v)
	return string(b) + "\n"
}

func TestJudge(t *testing.T) {
	checks := Plan(twoNodes(), "")
	find := func(from, name string) Check {
		i := slices.IndexFunc(checks, func(c Check) bool { return c.From == from && strings.HasPrefix(c.Name, name) })
		if i < 0 {
			t.Fatalf("no check %s: %s", from, name)
		}
		return checks[i]
	}
	type m = map[string]any
	answers := func(pods ...string) (out string) {
		for _, p := range pods {
			out += said(m{"pod": p})
		}
		return out
	}
	for _, tt := range []struct {
		check        Check
		stdout, want string // want is "" if nothing is wrong, else part of the problem
	}{
		{find("client", "tcp 10.244.2.3:9000"), said(m{"pod": "far", "client": "10.244.1.3:999"}), ""},
		{find("client", "tcp 10.244.2.3:9000"), said(m{"pod": "far", "client": "192.0.2.1:999"}), "sees 192.0.2.1:999, want 10.244.1.3"},
		{find("client", "tcp 10.244.2.3:9000"), said(m{"pod": "near", "client": "10.244.1.3:999"}), "pod near answered"},
		{find("client", "tcp 10.244.2.3:9000"), said(m{"error": "timeout"}), "timeout"},
		{find("client", "tcp 10.244.2.3:9000"), "panic!", "not understood"},
		{find("host", "udp 127.0.0.1:30002"), said(m{"pod": "near", "client": "192.0.2.1:1"}), ""},
		{find("client", "tcp 10.96.0.5:81"), answers("near", "near", "far"), ""},
		{find("client", "tcp 10.96.0.5:81"), answers("near", "near"), "far was never chosen"},
		{find("client", "tcp 10.96.0.5:81"), answers("near", "far") + said(m{"error": "refused"}), "refused"},
		{find("client", "host near.t.svc"), said(m{"answers": []string{"10.96.0.3", "fd96::3"}}), ""},
		{find("client", "host near.t.svc"), said(m{"answers": []string{"10.96.0.3"}}), "want [10.96.0.3 fd96::3]"},
		{find("client", "host near.t.svc"), said(m{"error": "server misbehaving"}), "server misbehaving"},
		{find("client", "host none."), said(m{"error": "lookup none: no such host"}), ""},
		{find("client", "host none."), said(m{"answers": []string{"203.0.113.1"}}), "got [203.0.113.1]"},
		{find("client", "https://kubernetes"), said(m{"status": 401}), ""},
		{find("client", "https://kubernetes"), said(m{"error": "timeout"}), "timeout"},
	} {
		got := tt.check.Judge(tt.stdout)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s: %q is judged %q, want %q", tt.check.From, tt.check.Name, tt.stdout, got, tt.want)
		}
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := func(stdout string) string {
			if stdout != "good" {
				return "bad"
			}
			return ""
		}
		var checks []Check
		for i := range 20 {
			checks = append(checks, Check{Name: fmt.Sprint(i), From: fmt.Sprint(i), Judge: good})
		}
		var mu sync.Mutex
		times, running := map[string]int{}, 0
		results := Run(t.Context(), func(_ context.Context, pod string, _ ...string) (string, error) {
			mu.Lock()
			defer mu.Unlock()
			times[pod]++
			running++
			defer func() { running-- }()
			switch {
			case running > atOnce:
				return "", errors.New("too many at once")
			case pod == "3" && times[pod] < 3:
				return "", errors.New("not yet")
			case pod == "5":
				return "else", nil
			case pod == "7":
				return "", errors.New("no such pod")
			}
			return "good", nil
		}, checks)
		for i, r := range results {
			wantTries, want := 1, ""
			switch i {
			case 3:
				wantTries = 3
			case 5:
				wantTries, want = tries, "bad"
			case 7:
				wantTries, want = tries, "no such pod"
			}
			if r.Name != fmt.Sprint(i) || r.Problem != want || r.Tries != wantTries {
				t.Errorf("%d: %+v", i, r)
			}
		}
		if Failed(results) != 2 {
			t.Errorf("%d failed", Failed(results))
		}
	})
}
