package advertise_test

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/advertise"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services"
)

// What a BGPPeer says of BFD: the defaults, the ranges, and what does not go with it, which leaves the session without.
func TestBFD(t *testing.T) {
	for name, tt := range map[string]struct {
		spec  string
		want  announce.BFD
		fault string // "" for none
		peers int
	}{
		"none":             {``, announce.BFD{}, "", 1},
		"defaults":         {`, bfd: {}`, announce.BFD{Transmit: 300, Receive: 300, Multiplier: 3}, "", 1},
		"all of it":        {`, bfd: {transmitMilliseconds: 100, receiveMilliseconds: 10000, multiplier: 50}`, announce.BFD{Transmit: 100, Receive: 10000, Multiplier: 50}, "", 1},
		"too fast":         {`, bfd: {transmitMilliseconds: 99}`, announce.BFD{}, "spec.bfd.transmitMilliseconds: 99 is out of range: expected 100 to 10000", 0},
		"too slow":         {`, bfd: {receiveMilliseconds: 10001}`, announce.BFD{}, "spec.bfd.receiveMilliseconds: 10001 is out of range", 0},
		"too few":          {`, bfd: {multiplier: 1}`, announce.BFD{}, "spec.bfd.multiplier: 1 is out of range: expected 2 to 50", 0},
		"multihop":         {`, bfd: {}, multihop: 2`, announce.BFD{}, "spec.bfd: is for routers on the same link, and is not used: remove it, or spec.multihop", 1},
		"a source":         {`, bfd: {}, sourceAddress: 203.0.113.9`, announce.BFD{}, "spec.bfd: leaves from the address that the kernel chooses, and is not used: remove it, or spec.sourceAddress", 1},
		"graceful restart": {`, bfd: {}, gracefulRestartSeconds: 9`, announce.BFD{}, "spec.bfd: has routes go as soon as the announcer ends, and is not used", 1},
		"restart of 0 s":   {`, bfd: {}, gracefulRestartSeconds: 0`, announce.BFD{Transmit: 300, Receive: 300, Multiplier: 3}, "", 1},
	} {
		objs, err := codec.Decode("x.yaml", []byte(`{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: tapestry.dev/v1alpha1, kind: BGPPeer, metadata: {name: tor}, spec: {address: 203.0.113.1, peerASN: 64512, myASN: 65000`+tt.spec+"}}\n"))
		if err != nil {
			t.Fatal(err)
		}
		objs.Sort()
		var stage advertise.Stage
		var report kube.Report
		plan := stage.Of("n1", &objs, roll.List[*services.Service]{}, nil, &report)
		var got announce.BFD
		if len(plan.Peers) == 1 {
			got = plan.Peers[0].BFD
		}
		var said []string
		for _, p := range report.Problems {
			said = append(said, p.String())
		}
		if text := strings.Join(said, "\n"); got != tt.want || len(plan.Peers) != tt.peers || !strings.Contains(text, tt.fault) || (text == "") != (tt.fault == "") {
			t.Errorf("%s: %+v of %d routers, and %q, want %+v of %d and %q", name, got, len(plan.Peers), text, tt.want, tt.peers, tt.fault)
		}
	}
}
