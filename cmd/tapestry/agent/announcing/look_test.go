package announcing

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/announce"
)

// many returns a world of n addresses on 100 nodes, of which this one announces some.
func many(n int) *world {
	w := newWorld()
	at, ranked := netip.MustParseAddr("198.18.0.0"), []string{"other", "self"}
	for i := range 98 {
		ranked = append(ranked, fmt.Sprintf("n%02d", i))
	}
	for i := range n {
		w.plan.Links = append(w.plan.Links, announce.Link{Addr: at, Services: []string{"d/s"}, Ranked: announce.Rank(at, ranked[i%2:])})
		at = at.Next()
	}
	return w
}

// A Plan is read again only when it is another one, when another node answers than did, or when this node is fit for
// something else. Nobody changes a Plan otherwise: here that shows whether it was read.
func TestLookReadsWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.node.answered = time.Now()
		step := 0
		mark := func() string { return w.plan.Links[0].Services[0] }
		check := func(what string, anew bool) {
			t.Helper()
			step++
			w.plan.Links[0].Services = []string{fmt.Sprintf("d/%d", step)}
			turns, _, err := w.look(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if (turns[0].Services[0] == mark()) != anew {
				t.Errorf("%s: the Plan was read: %v, want %v", what, !anew, anew)
			}
		}
		check("the first time", true)
		check("nothing", false)
		time.Sleep(announce.Patience - time.Nanosecond)
		check("time passes", false)
		w.node.answered = time.Now()
		check("a node answers again", false)
		time.Sleep(announce.Patience)
		check("a node is silent", true)
		check("it stays silent", false)
		w.unfit = "pods are lost"
		check("this node is not fit", true)
		check("it stays so", false)
		plan := w.plan
		w.o.Plan = func() *announce.Plan { return &plan }
		w.plan.Links = plan.Links
		check("another Plan", true)
	})
}

// BenchmarkLook is what an announcer's question costs an agent that has 5,000 or 50,000 addresses on 100 nodes: while
// nothing changes, and when a node begins or ceases to answer.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int{5000, 50_000} {
		w := many(n)
		w.node.answered = time.Now()
		for name, silent := range map[string]time.Duration{"nothing": 0, "a node": announce.Patience} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, err := w.linkState(w.node.answered.Add(time.Duration(i%2) * silent)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
