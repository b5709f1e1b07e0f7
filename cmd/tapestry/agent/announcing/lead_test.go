package announcing

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/announce"
)

// The node is told the gateway of each egress address when that changes, and only then, and not before it has answered.
// This node is one while its announcer asks, as others are while they answer. Where there is none, that is told of the
// address, if pods here use it.
func TestLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := netip.MustParseAddr("203.0.113.50")
		w.plan.Links = slices.Insert(w.plan.Links, 0, announce.Link{Addr: a, Egress: "shop", Used: true, Ranked: []string{"other", "self"}})
		w.early = true
		w.lead(time.Now(), w.node.SetGateways)
		w.early = false
		times := 0
		is := func(want string) {
			t.Helper()
			w.lead(time.Now(), w.node.SetGateways)
			w.lead(time.Now(), w.node.SetGateways)
			times++
			if got := w.node.gateways; len(got) != times || !maps.Equal(got[len(got)-1], map[netip.Addr]string{a: want}) {
				t.Fatalf("the gateways were %v, want %d times, at last %q", got, times, want)
			}
		}
		unsettled := func() {
			t.Helper()
			w.lead(time.Now(), w.node.SetGateways)
			times = 1
			if got := w.node.gateways; len(got) != 1 || len(got[0]) != 0 {
				t.Fatalf("the gateways are %v before one has answered", got)
			}
		}
		lacking := func() (told bool) {
			for _, p := range w.Problems() {
				told = told || strings.Contains(p.String(), "EgressAddress shop: on node self: its pods do not reach anything outside from 203.0.113.50, since none of the nodes that can be its gateway answers (other, self)")
			}
			return told
		}
		w.node.since = time.Now()
		unsettled()
		w.node.answered = time.Now()
		is("other")
		w.node.since = time.Now().Add(time.Nanosecond) // as of one that is watched anew
		w.lead(time.Now(), w.node.SetGateways)
		if len(w.node.gateways) != times {
			t.Errorf("a gateway that may answer yet is replaced: %v", w.node.gateways)
		}
		w.node.since = time.Time{}
		time.Sleep(announce.Patience)
		is("") // nor does the announcer of this node ask
		if !lacking() {
			t.Errorf("it is not told that there is no gateway: %v", w.Problems())
		}
		w.plan.Links[0].Used = false
		if lacking() {
			t.Error("it is told of an address that no pod here uses")
		}
		w.plan.Links[0].Used = true
		if _, err := w.linkState(time.Now()); err != nil {
			t.Fatal(err)
		}
		is("self")
		time.Sleep(announce.Asked + announce.Patience)
		is("")
		if _, err := w.linkState(time.Now()); err != nil {
			t.Fatal(err)
		}
		is("self")
		w.unfit = "pods are lost"
		is("")
		w.unfit = ""
		w.node.answered = time.Now()
		is("other")
		w.plan.Links = w.plan.Links[1:]
		w.lead(time.Now(), w.node.SetGateways)
		if got := w.node.gateways[len(w.node.gateways)-1]; len(got) != 0 {
			t.Errorf("without egress addresses there are the gateways %v", got)
		}
	})
}

// What the announcer says of an egress address is told of its object.
func TestEgressTold(t *testing.T) {
	w := newWorld()
	a := netip.MustParseAddr("203.0.113.50")
	w.plan.Links = []announce.Link{{Addr: a, Egress: "shop", Ranked: []string{"self"}}}
	w.claims, w.claimsAt = []announce.Claim{{Addr: a, State: announce.Conflict, Problem: "somebody else has it"}}, time.Now()
	if list := w.Problems(); len(list) != 1 || list[0].String() != "EgressAddress shop: on node self: somebody else has it" {
		t.Errorf("the problems are %v", list)
	}
}
