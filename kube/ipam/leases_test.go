package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing"
)

// world is a node with Leases and a clock.
type world struct {
	*Leases
	t      *testing.T
	path   string
	ranges []netip.Prefix
	inUse  map[netip.Addr]bool
	now    time.Time
	rest   time.Duration
}

func newWorld(t *testing.T, ranges ...string) *world {
	w := &world{t: t, path: filepath.Join(t.TempDir(), "addresses"), inUse: map[netip.Addr]bool{}, now: time.Unix(1_800_000_000, 0), rest: time.Minute}
	w.setRanges(ranges...)
	w.open("")
	return w
}

func (w *world) setRanges(ranges ...string) {
	w.ranges = nil
	for _, r := range ranges {
		w.ranges = append(w.ranges, netip.MustParsePrefix(r))
	}
}

// open opens the journal as the next agent does. The reported damage must contain damage.
func (w *world) open(damage string) {
	w.t.Helper()
	if w.Leases != nil {
		w.Close()
	}
	var err error
	var told string
	w.Leases, told, err = Open(w.path, Options{
		Ranges: func() []netip.Prefix { return w.ranges }, Rest: w.rest,
		InUse: func(a netip.Addr) bool { return w.inUse[a] }, Now: func() time.Time { return w.now },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if damage == "" && told != "" || !strings.Contains(told, damage) {
		w.t.Errorf("told %q, want %q", told, damage)
	}
	w.t.Cleanup(func() { w.Close() })
}

func key(container string) Key { return Key{container, "eth0"} }

func (w *world) acquire(container string, want ...string) ([]netip.Addr, error) {
	l := Lease{Key: key(container), Network: "net", Namespace: "default", Name: "pod-" + container}
	for _, a := range want {
		l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
	}
	got, err := w.Acquire(l)
	return got.Addrs, err
}

// gets asserts the addresses that container gets.
func (w *world) gets(container, addrs string, want ...string) {
	w.t.Helper()
	got, err := w.acquire(container, want...)
	if err != nil || text(got) != addrs {
		w.t.Errorf("%s gets %s, %v; want %s", container, text(got), err, addrs)
	}
}

func (w *world) release(container string) {
	w.t.Helper()
	if err := w.Release(key(container)); err != nil {
		w.t.Error(err)
	}
}

func text(list []netip.Addr) string {
	var s []string
	for _, a := range list {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

func TestAcquire(t *testing.T) {
	w := newWorld(t, "10.1.0.0/29", "fd00:1::/64")
	w.gets("a", "10.1.0.3 fd00:1::3")
	w.gets("b", "10.1.0.4 fd00:1::4")
	w.gets("a", "10.1.0.3 fd00:1::3") // again
	w.inUse[netip.MustParseAddr("10.1.0.5")] = true
	w.gets("c", "10.1.0.6 fd00:1::5")
	var full *FullError
	if _, err := w.acquire("d"); !errors.As(err, &full) || full.Resting != 0 {
		t.Errorf("got %v", err)
	}
	w.release("a")
	w.release("a")
	w.now = w.now.Add(20 * time.Second)
	w.release("b")
	if _, err := w.acquire("d"); !errors.As(err, &full) || full.Resting != 2 || full.Wait != 40*time.Second {
		t.Errorf("got %v", err)
	} else if want := "no address of 10.1.0.0/29 is free: pods hold 2 and 2 were released a moment ago, the first of which can be had in 40s; delete pods, or give the node a larger podCIDR"; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if n := w.Resting(); n != 4 {
		t.Errorf("%d addresses rest, want 4", n)
	}
	w.now = w.now.Add(40 * time.Second)
	w.gets("d", "10.1.0.3 fd00:1::6")
	if n := w.Resting(); n != 2 {
		t.Errorf("%d addresses rest, want 2", n)
	}
	if l, ok := w.Get(key("d")); !ok || l.Name != "pod-d" || l.Network != "net" {
		t.Errorf("got %+v", l)
	}
	var held []string
	for _, l := range w.Held() {
		held = append(held, l.ContainerID)
	}
	if !slices.Equal(held, []string{"c", "d"}) {
		t.Errorf("held by %v", held)
	}
}

func TestFixed(t *testing.T) {
	w := newWorld(t, "10.1.0.0/28", "fd00:1::/64")
	w.gets("a", "10.1.0.9 fd00:1::3", "10.1.0.9")
	w.gets("b", "10.1.0.10 fd00:1::99", "fd00:1::99")
	w.gets("c", "10.1.0.5 fd00:1::5", "10.1.0.5", "fd00:1::5")
	for want, message := range map[string]string{
		"10.1.0.9":    "address 10.1.0.9: is another pod's at the moment",
		"10.1.0.1":    "10.1.0.1 is kept for the node itself",
		"10.1.0.2":    "10.1.0.2 is kept for the node itself",
		"10.1.0.0":    "10.1.0.0 is kept for the node itself",
		"10.1.0.15":   "10.1.0.15 is kept for the node itself",
		"10.2.0.5":    "10.2.0.5 is outside of this node's pod ranges [10.1.0.0/28 fd00:1::/64]: choose",
		"fd00:2::5":   "fd00:2::5 is outside",
		"fd00:1::1":   "fd00:1::1 is kept",
		"fd00:1::99":  "is another pod's",
		"192.168.0.1": "is outside",
	} {
		if _, err := w.acquire("x", want); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: got %v, want %q", want, err, message)
		} else if taken := errors.Is(err, ErrTaken); taken != strings.Contains(message, "another pod's") {
			t.Errorf("%s: taken %v", want, taken)
		}
	}
	w.inUse[netip.MustParseAddr("10.1.0.7")] = true
	if _, err := w.acquire("x", "10.1.0.7"); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v", err)
	}
}

// A fixed address that another pod has left rests like any other, also over a restart. The pod that had it, made anew,
// has it at once.
func TestFixedRests(t *testing.T) {
	w := newWorld(t, "10.1.0.0/28", "fd00:1::/64")
	w.gets("a", "10.1.0.9 fd00:1::3", "10.1.0.9")
	w.release("a")
	refused := func(left string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if _, err := w.acquire("b", want); !errors.Is(err, ErrRests) || !strings.HasSuffix(err.Error(), "it can be had in "+left) {
				t.Errorf("%s: got %v, want it to rest for %s", want, err, left)
			}
		}
	}
	refused("1m0s", "10.1.0.9", "fd00:1::3")
	w.now = w.now.Add(20 * time.Second)
	w.open("")
	refused("40s", "10.1.0.9", "fd00:1::3")
	if got, err := w.Acquire(Lease{Key: key("x"), Network: "other", Namespace: "default", Name: "pod-a", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}); !errors.Is(err, ErrRests) {
		t.Errorf("a pod of another network: %v, %v", got, err)
	}
	w.gets("a", "10.1.0.9 fd00:1::4", "10.1.0.9")
	w.release("a")
	w.now = w.now.Add(59*time.Second + 800*time.Millisecond)
	refused("1s", "10.1.0.9", "fd00:1::4")
	w.now = w.now.Add(200 * time.Millisecond)
	w.gets("b", "10.1.0.9 fd00:1::5", "10.1.0.9", "fd00:1::5")
}

// The next sandbox of a pod takes the fixed address from the earlier one, which has not been released yet.
func TestFixedOfEarlierSandbox(t *testing.T) {
	w := newWorld(t, "10.1.0.0/28")
	fixed := []netip.Addr{netip.MustParseAddr("10.1.0.9")}
	l := Lease{Key: key("a"), Namespace: "default", Name: "web-0", Addrs: fixed}
	if _, err := w.Acquire(l); err != nil {
		t.Fatal(err)
	}
	w.inUse[fixed[0]] = true // the pod's attachment has the address
	l.Key = key("b")
	if got, err := w.Acquire(l); err != nil || text(got.Addrs) != "10.1.0.9" {
		t.Fatal(got, err)
	}
	w.release("a") // comes late, and changes nothing
	w.open("")
	if held := w.Held(); len(held) != 1 || held[0].ContainerID != "b" || text(held[0].Addrs) != "10.1.0.9" {
		t.Errorf("held: %v", held)
	}
	if n := w.Resting(); n != 0 {
		t.Errorf("%d addresses rest", n)
	}
}

func TestReopen(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24")
	w.gets("a", "10.1.0.3")
	w.gets("b", "10.1.0.4")
	w.release("a")
	w.now = w.now.Add(30 * time.Second)
	w.open("")
	w.gets("b", "10.1.0.4")
	w.gets("c", "10.1.0.5") // the search continues where it was
	if n := w.Resting(); n != 1 {
		t.Errorf("%d addresses rest", n)
	}
	w.setRanges("10.1.0.0/29")
	w.gets("d", "10.1.0.6")
	var full *FullError
	if _, err := w.acquire("e"); !errors.As(err, &full) || full.Wait != 30*time.Second {
		t.Errorf("got %v", err)
	}
	// The clock is set back by a day: the release counts as having just happened, and its rest ends.
	w.now = w.now.Add(-24 * time.Hour)
	w.open("")
	if _, err := w.acquire("e"); !errors.As(err, &full) || full.Wait != time.Minute {
		t.Errorf("got %v", err)
	}
	w.now = w.now.Add(time.Minute)
	w.gets("e", "10.1.0.3")
	// The clock is set forward by a year: resting addresses are free, held ones stay held.
	w.release("e")
	w.now = w.now.Add(365 * 24 * time.Hour)
	w.open("")
	w.gets("f", "10.1.0.3")
	w.gets("d", "10.1.0.6")
}

func TestRangeChanges(t *testing.T) {
	w := newWorld(t)
	if _, err := w.acquire("a"); err == nil || !strings.Contains(err.Error(), "no podCIDR") {
		t.Errorf("got %v", err)
	}
	w.setRanges("10.1.0.0/24")
	w.gets("a", "10.1.0.3")
	w.setRanges("10.2.0.0/24", "fd00:2::/120")
	w.gets("b", "10.2.0.3 fd00:2::3")
	w.gets("a", "10.1.0.3") // a held lease stays
	w.release("a")
	w.gets("a", "10.2.0.4 fd00:2::4")
	w.setRanges("10.1.0.0/24")
	w.gets("c", "10.1.0.4") // the other address rests
	for _, r := range []string{"10.3.0.0/30", "10.3.0.0/32", "fd00:3::/127", "fd00:3::/128"} {
		w.setRanges(r)
		var full *FullError
		if _, err := w.acquire("d"); !errors.As(err, &full) {
			t.Errorf("%s: got %v", r, err)
		}
	}
	w.setRanges("fd00:3::/126")
	w.gets("d", "fd00:3::3")
}

func TestKeep(t *testing.T) {
	w := newWorld(t, "10.1.0.0/24")
	w.gets("a", "10.1.0.3")
	w.gets("b", "10.1.0.4")
	known := []Lease{
		{Key: key("a"), Namespace: "default", Name: "pod-a", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.3")}},
		// So b is wrong.
		{Key: key("c"), Namespace: "default", Name: "pod-c", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.4")}},
		{Key: key("d"), Namespace: "default", Name: "pod-d", Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.9")}},
	}
	for i, want := range []int{2, 0} {
		if n, err := w.Keep(known); n != want || err != nil {
			t.Errorf("time %d: %d, %v", i, n, err)
		}
		w.open("")
		held := ""
		for _, l := range w.Held() {
			held += l.ContainerID + "=" + text(l.Addrs) + " "
		}
		if held != "a=10.1.0.3 c=10.1.0.4 d=10.9.0.9 " {
			t.Errorf("held: %s", held)
		}
	}
}

func TestParseAddrs(t *testing.T) {
	for in, want := range map[string]string{
		"": "", " ": "", "10.1.0.5": "10.1.0.5", " 10.1.0.5 , fd00::5": "10.1.0.5 fd00::5", "fd00::5,10.1.0.5": "fd00::5 10.1.0.5",
		"::ffff:10.1.0.5": "10.1.0.5",
	} {
		if got, err := ParseAddrs(in); err != nil || text(got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"10.1.0.300": `"10.1.0.300" is not an address: expected one like 10.244.1.5`, "10.1.0.5,": `"" is not an address`,
		"10.1.0.5,10.1.0.6": "10.1.0.6 is a second address of its family", "fe80::1%eth0": "is not an address",
	} {
		if _, err := ParseAddrs(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestCapacity(t *testing.T) {
	for cidr, want := range map[string]int{
		"10.1.0.0/24": 252, "10.1.0.0/29": 4, "10.1.0.0/30": 0, "10.1.0.0/32": 0, "fd00::/126": 1, "fd00::/127": 0, "fd00::/112": 65533, "fd00::/64": 1 << 30,
	} {
		r := netip.MustParsePrefix(cidr)
		if got := addressing.Capacity(r); got != want {
			t.Errorf("%s: %d, want %d", cidr, got, want)
		}
		if want > 1000 {
			continue
		}
		w := newWorld(t, cidr)
		for i := range want {
			if _, err := w.acquire(fmt.Sprint(i)); err != nil {
				t.Errorf("%s: pod %d: %v", cidr, i, err)
			}
		}
		if _, err := w.acquire("one too many"); err == nil {
			t.Errorf("%s: gives out more than %d", cidr, want)
		}
	}
}
