package link

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

func machine(i int) net.HardwareAddr {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(mac[2:], uint32(i))
	return mac
}

// A machine that floods questions is answered a few times a second. All others are answered, also those that ask for
// many addresses, and those that come when forged machines have filled what is counted.
func TestAskers(t *testing.T) {
	var a askers
	now := time.Unix(1000, 0)
	ask := func(who, times int, addr netip.Addr) (answers int) {
		for range times {
			if a.may(machine(who), addr, now) {
				answers++
			}
		}
		return answers
	}
	for second := range 3 {
		if n := ask(1, 100_000, v4); n != perPeriod {
			t.Errorf("second %d: a flood got %d answers", second, n)
		}
		for other := 2; other < 50; other++ {
			if n := ask(other, 3, v4); n != 3 {
				t.Errorf("second %d: machine %d got %d of 3 answers", second, other, n)
			}
		}
		addr := v6
		for range 500 { // a router
			if addr = addr.Next(); ask(2, 1, addr) != 1 {
				t.Errorf("second %d: a question for %s was not answered", second, addr)
			}
		}
		for forged := range 2 * mostCounted {
			ask(1000+forged, 1, v4)
		}
		if n := ask(999, 3, v4); n != 3 {
			t.Errorf("second %d: among forged machines one got %d of 3 answers", second, n)
		}
		if len(a.counts) > mostCounted {
			t.Errorf("%d pairs are counted", len(a.counts))
		}
		now = now.Add(period)
	}
	if n := ask(1, 1, v4); n != 1 || len(a.counts) != 1 {
		t.Errorf("after the flood: %d answers, %d pairs are counted", n, len(a.counts))
	}
	now = now.Add(-time.Hour) // somebody set the clock
	if ask(1, 10, v4) == 0 {
		t.Error("nobody is answered when the clock went back")
	}
}

// A Port asks no more of its Speaker than askers let through: what a flood gets is not sent.
func TestFloodIsNotAnswered(t *testing.T) {
	s := newStage()
	s.set(mine())
	s.after(time.Second)
	e := &ether{ifi: net.Interface{Name: "eth0"}, speech: speech{mac: machine(0), mark: mark("self")}, speaker: s.Speaker}
	var a askers
	answered := map[string]int{}
	for i := range 1000 {
		who := machine(7)
		if i%200 == 0 {
			who = machine(8)
		}
		if e.answers(&a, &heard{asks: true, addr: v4, from: who}, s.now) {
			answered[who.String()]++
		}
	}
	if answered[machine(7).String()] != perPeriod || answered[machine(8).String()] != perPeriod {
		t.Errorf("answered: %v", answered)
	}
	if e.answers(&a, &heard{asks: true, addr: v6, from: machine(9)}, s.now) {
		t.Error("an address of nobody's is answered for")
	}
}
