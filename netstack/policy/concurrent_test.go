package policy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/roll"
)

// TestWhileCompiling: Tables judge while their successors are made of what they share, pods of this node and others,
// and each answers by its own Config.
func TestWhileCompiling(t *testing.T) {
	const states = 300
	web := one(law.Rule{AnyPort: true, Parties: []law.Party{{Namespaces: &law.Selector{}, Pods: law.Selector{where("state", law.In, "even")}}}})
	there := one(web.Ingress.List...)
	there.Namespace = "c"
	c := Config{Policies: []*Policy{web, there}, Own: []*Pod{own("a", "own")}, Others: roll.Of(elsewhere("b", 0), elsewhere("c", 1))}
	type made struct {
		*Table
		state int
	}
	var now atomic.Pointer[made]
	var compiler Compiler
	next := func(state int) {
		parity := label("state", "even")
		if state%2 == 1 {
			parity.Value = fmt.Sprint("odd", state)
		}
		c.Others = c.Others.With(roll.Edit[*Pod]{At: 0, To: elsewhere("b", 0, parity, label("n", fmt.Sprint(state)))})
		if state%50 == 0 {
			again := *there
			c.Policies = []*Policy{web, &again}
		}
		now.Store(&made{compiler.Compile(c), state})
	}
	next(0)
	var judging sync.WaitGroup
	for _, f := range []Flow{
		{Src: at("10.1.0.0"), Proto: packet.TCP, Port: 80, Toward: End{Kind: OwnPod, Name: "a/own"}},
		{Src: at("10.1.0.0"), Dst: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Both: true},
	} {
		judging.Go(func() {
			for last := -1; last < states-1; {
				m := now.Load()
				for range 3 {
					if r := m.Judge(&f); (r.Verdict == Permit) != (m.state%2 == 0) {
						t.Errorf("state %d: %+v", m.state, r)
						return
					}
				}
				last = m.state
			}
		})
	}
	for state := 1; state < states; state++ {
		next(state)
	}
	judging.Wait()
}
