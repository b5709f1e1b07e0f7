package tcprelay

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

func TestQuota(t *testing.T) {
	a, b := packet.Addr{15: 1}, packet.Addr{15: 2}
	q := newQuota(2, 3)
	must := func(what string, got, want bool) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	must("the first", q.begin(a), true)
	must("the second", q.begin(a), true)
	must("a third that is not open", q.begin(a), false)
	must("another pod's", q.begin(b), true)
	q.opened(a)
	must("one after one opened", q.begin(a), true)
	q.opened(a)
	must("a fourth in all", q.begin(a), false)
	q.end(a, false)
	must("one after one that did not open", q.begin(a), true)
	q.end(a, true)
	q.end(a, true)
	q.end(a, false)
	q.end(b, false)
	if len(q.pods) != 0 {
		t.Errorf("left: %v", q.pods)
	}
}
