package advertise_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/advertise"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/v1alpha1"
)

// nodes has two nodes in rack a, one in rack b, one that may not announce load balancers, one that is another
// network's, and one without a label.
const nodes = `
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {rack: a}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {rack: a}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n3, labels: {rack: b}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n4, labels: {rack: c, node.kubernetes.io/exclude-from-external-load-balancers: ""}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n5, labels: {rack: d}, annotations: {tapestry.dev/stock: "true"}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n6}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: public}, spec: {addresses: [192.0.2.0/28]}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: BGPPeer, metadata: {name: tor}, spec: {address: 203.0.113.1, peerASN: 64512, myASN: 65000, nodeSelector: {matchLabels: {rack: a}}}}
`

// TestStandingsOfOddNames: an object of a cluster-scoped kind that was given a namespace, as files may give it, stands
// as the others do.
func TestStandingsOfOddNames(t *testing.T) {
	ref := kube.Ref{Kind: "BGPPeer", Namespace: "odd", Name: "tor"}
	p := &v1alpha1.BGPPeer{Spec: v1alpha1.BGPPeerSpec{Address: "203.0.113.1", PeerASN: 64512, MyASN: 65000}}
	p.Namespace, p.Name = ref.Namespace, ref.Name
	n := &corev1.Node{}
	n.Name = "n1"
	all := advertise.Standings(&kube.Objects{Nodes: []*corev1.Node{n}, BGPPeers: []*v1alpha1.BGPPeer{p}})
	if s := all[ref]; len(all) != 1 || s == nil || s.Nodes != 1 || !s.Speaks("n1") || s.Speaks("n2") {
		t.Errorf("got %v, of it %+v", all, s)
	}
}

// TestStandings: an object is told whether all of it can be used, why not, and how many nodes it is for.
func TestStandings(t *testing.T) {
	const rack = `nodeSelector: {matchLabels: {rack: %s}}`
	bad := `{matchExpressions: [{key: a, operator: Near}]}`
	for name, tt := range map[string]struct {
		kind, spec, reason string
		nodes              int
		faults             []string // the beginning of each
	}{
		"everything":           {"L2Advertisement", ``, "", 4, nil},
		"a pool and a rack":    {"L2Advertisement", `pools: [public], ` + fmt.Sprintf(rack, "a"), "", 2, nil},
		"no such pool":         {"L2Advertisement", `pools: [public, gone]`, "ReferenceNotFound", 4, []string{`spec.pools: there is no AddressPool "gone"`}},
		"no such rack":         {"L2Advertisement", fmt.Sprintf(rack, "z"), "NoNode", 0, []string{"spec.nodeSelector: it selects no node that runs an agent and may announce"}},
		"an excluded node":     {"L2Advertisement", fmt.Sprintf(rack, "c"), "NoNode", 0, []string{"spec.nodeSelector: it selects no node"}},
		"a node with no agent": {"L2Advertisement", fmt.Sprintf(rack, "d"), "NoNode", 0, []string{"spec.nodeSelector: it selects no node"}},
		"bad selectors": {"L2Advertisement", `pools: [gone], serviceSelector: ` + bad + `, nodeSelector: ` + bad, "Invalid", 0, []string{
			"spec.pools: there is no", "spec.serviceSelector: it cannot be understood", "spec.nodeSelector: it cannot be understood"}},
		"a peer":             {"BGPAdvertisement", `peers: [tor], communities: ["65000:1"]`, "", 4, nil},
		"no such peer":       {"BGPAdvertisement", `peers: [tor, gone]`, "ReferenceNotFound", 4, []string{`spec.peers: there is no BGPPeer "gone"`}},
		"no community":       {"BGPAdvertisement", `communities: ["70000:1"]`, "Invalid", 4, []string{`spec.communities[0]: "70000:1" is no community`}},
		"no pool, no peer":   {"BGPAdvertisement", `pools: [p], peers: [q], ` + fmt.Sprintf(rack, "z"), "ReferenceNotFound", 0, []string{"spec.pools:", "spec.peers:", "spec.nodeSelector:"}},
		"a router":           {"BGPPeer", `address: 203.0.113.2, peerASN: 64512, myASN: 65000`, "", 5, nil},
		"an excluded one":    {"BGPPeer", `address: 203.0.113.2, peerASN: 64512, myASN: 65000, ` + fmt.Sprintf(rack, "c"), "", 1, nil},
		"no address":         {"BGPPeer", `address: 127.0.0.1, peerASN: 64512, myASN: 65000`, "Invalid", 0, []string{`spec.address: "127.0.0.1" is no address of a router`}},
		"no node":            {"BGPPeer", `address: 203.0.113.2, peerASN: 64512, myASN: 65000, ` + fmt.Sprintf(rack, "d"), "NoNode", 0, []string{"spec.nodeSelector: it selects no node"}},
		"taken, on one rack": {"BGPPeer", `address: 203.0.113.1, peerASN: 64513, myASN: 65000`, "AddressTaken", 3, []string{`spec.address: 203.0.113.1:179 is BGPPeer "tor" on node n1 already`}},
		"taken everywhere":   {"BGPPeer", `address: 203.0.113.1, peerASN: 64513, myASN: 65000, ` + fmt.Sprintf(rack, "a"), "AddressTaken", 0, []string{`spec.address: 203.0.113.1:179 is BGPPeer "tor" on node n1`}},
		"another port":       {"BGPPeer", `address: 203.0.113.1, port: 1179, peerASN: 64513, myASN: 65000`, "", 5, nil},
		"other nodes":        {"BGPPeer", `address: 203.0.113.1, peerASN: 64513, myASN: 65000, ` + fmt.Sprintf(rack, "b"), "", 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			objs, err := codec.Decode("x.yaml", []byte(nodes+fmt.Sprintf("---\n{apiVersion: tapestry.dev/v1alpha1, kind: %s, metadata: {name: x}, spec: {%s}}\n", tt.kind, tt.spec)))
			if err != nil {
				t.Fatal(err)
			}
			objs.Sort()
			all := advertise.Standings(&objs)
			if tor := all[kube.Ref{Kind: "BGPPeer", Name: "tor"}]; tor.Reason != "" || tor.Nodes != 2 {
				t.Errorf("the other object has %+v", tor)
			}
			got := all[kube.Ref{Kind: tt.kind, Name: "x"}]
			if got.Reason != tt.reason || got.Nodes != tt.nodes || !slices.EqualFunc(got.Faults, tt.faults, strings.HasPrefix) {
				t.Errorf("got %+v, want %q, %d nodes, %q", got, tt.reason, tt.nodes, tt.faults)
			}
		})
	}
}
