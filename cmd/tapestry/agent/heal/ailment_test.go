package heal

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/pods"
)

func broken(name string, managed, oldRange bool) pods.Broken {
	return pods.Broken{
		Pod: kube.Ref{Kind: "Pod", Namespace: "shop", Name: name}, UID: "uid-" + name, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.3")},
		Managed: managed, OldRange: oldRange,
	}
}

// TestDiagnose has what a node can lose, alone and all at once.
func TestDiagnose(t *testing.T) {
	own := kube.Ref{Kind: "Pod", Namespace: "kube-system", Name: "tapestry-x"}
	refused := &os.SyscallError{Syscall: "bind", Err: unix.EACCES}
	taken := &os.SyscallError{Syscall: "bind", Err: unix.EADDRINUSE}
	const remake = "kubectl -n kube-system delete pod tapestry-x"
	for what, c := range map[string]struct {
		facts Facts
		want  []string // the problems of Node n1, with what each must have
		steps int      // how many the init steps put right
		host  bool     // whether the node itself counts as broken
		pods  string   // what is said of pods
	}{
		"nothing": {},
		"host TAP": {
			facts: Facts{OwnPod: own, Stepped: true, HostTAP: errors.New("it is gone")},
			want:  []string{"Node n1: processes of this node ~ it is gone ~ " + remake}, steps: 1, host: true,
		},
		"host TAP, outside of a cluster": {
			facts: Facts{Stepped: true, HostTAP: errors.New("it is gone")},
			want:  []string{"Node n1: ~ run 'tapestry host-tap' on this node again, as"}, steps: 1, host: true,
		},
		"an interface that nobody asked for": {
			facts: Facts{OwnPod: own, HostTAP: errors.New("it has other addresses")},
			want:  []string{"Node n1: ~ delete the interface"},
		},
		"Ingress lost": {
			facts: Facts{OwnPod: own, Stepped: true, Doors: []Door{{":80", refused, true}, {":443", refused, true}}},
			want:  []string{"Node n1: Ingress is not served at :80 ~ " + remake, "Node n1: Ingress is not served at :443 ~ " + remake}, steps: 2, host: true,
		},
		"Ingress never was": {
			facts: Facts{OwnPod: own, Stepped: true, Doors: []Door{{":80", refused, false}}},
			want:  []string{"Node n1: Ingress is not served at :80 ~ free the address"},
		},
		"Ingress taken": {
			facts: Facts{OwnPod: own, Stepped: true, Doors: []Door{{":8080", taken, true}}},
			want:  []string{"Node n1: Ingress is not served at :8080 ~ free the address"},
		},
		"pods": {
			facts: Facts{Pods: []pods.Broken{broken("b", true, false), broken("a", false, false)}},
			want: []string{
				"Pod shop/a: it has no network ~ address 10.244.1.3 ~ make it anew; it has no controller",
				"Pod shop/b: it has no network ~ kubectl -n shop delete pod b",
			},
			pods: "2 pods without a TAP (shop/a, shop/b): delete them",
		},
		"pods of an earlier range": { // of which the node tells
			facts: Facts{Pods: []pods.Broken{broken("a", true, true)}},
			pods:  "1 pod with addresses from before the node's ranges changed (shop/a): delete them",
		},
		"everything": {
			facts: Facts{
				OwnPod: own, Stepped: true, Pods: []pods.Broken{broken("z", true, true), broken("b", true, false)}, Doors: []Door{{":80", refused, true}},
				HostTAP: errors.New("gone"),
			},
			want:  []string{"Node n1: processes", "Node n1: Ingress", "Pod shop/b: "},
			steps: 2, host: true, pods: "1 pod without a TAP (shop/b), 1 pod with addresses from before the node's ranges changed (shop/z): delete them",
		},
	} {
		list := Diagnose(&c.facts)
		var got []string
		steps := 0
		for _, a := range list {
			if p, tell := a.problem("n1"); tell {
				got = append(got, p.String())
			}
			if a.Step {
				steps++
			}
		}
		if len(got) != len(c.want) || steps != c.steps {
			t.Errorf("%s: %q, %d by steps; want %q, %d", what, got, steps, c.want, c.steps)
			continue
		}
		for i := range got {
			rest := got[i]
			for _, part := range strings.Split(c.want[i], " ~ ") {
				_, after, found := strings.Cut(rest, strings.TrimSuffix(part, " ~"))
				if !found {
					t.Errorf("%s: %q has no %q", what, got[i], part)
				}
				rest = after
			}
		}
		if err := HostError(list); (err != nil) != c.host {
			t.Errorf("%s: the node itself: %v", what, err)
		}
		if whole(&c.facts, list) { // nothing counts as lost from then on that was not there
			for i := range c.facts.Doors {
				c.facts.Doors[i].Had = true
			}
			if err := HostError(Diagnose(&c.facts)); err != nil {
				t.Errorf("%s: the node is whole, and then %v", what, err)
			}
		}
		if err := PodsError(list); (err != nil) != (c.pods != "") || err != nil && !strings.HasPrefix(err.Error(), c.pods) {
			t.Errorf("%s: its pods: %v, want %q", what, err, c.pods)
		}
	}
	var many []pods.Broken
	for i := range 40 {
		many = append(many, broken(fmt.Sprintf("p%02d", i), true, false))
	}
	if got := PodsError(Diagnose(&Facts{Pods: many})).Error(); got != "40 pods without a TAP (shop/p00, shop/p01, shop/p02, shop/p03, shop/p04, and 35 more): delete them, so that they are made anew" {
		t.Error(got)
	}
}
