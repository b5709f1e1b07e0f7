package link

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }

var (
	v4 = netip.MustParseAddr("192.0.2.1")
	v6 = netip.MustParseAddr("2001:db8::1")
)

// recorder is a Port that notes what it is asked for.
type recorder struct {
	did  []string
	fail error
}

func (r *recorder) Hear(a netip.Addr) error { r.did = append(r.did, "hear "+a.String()); return r.fail }
func (r *recorder) Ignore(a netip.Addr)     { r.did = append(r.did, "ignore "+a.String()) }
func (r *recorder) Announce(a netip.Addr) error {
	r.did = append(r.did, "announce "+a.String())
	return nil
}
func (r *recorder) Probe(a netip.Addr) error { r.did = append(r.did, "probe "+a.String()); return nil }
func (r *recorder) Close()                   {}

// stage is a Speaker with one Port, at a time that the test moves.
type stage struct {
	*Speaker
	port recorder
	now  time.Time
}

func newStage() *stage {
	s := &stage{Speaker: NewSpeaker(), now: time.Unix(1000, 0)}
	s.SetPort("eth0", &s.port)
	return s
}

func (s *stage) set(turns ...announce.Turn) {
	s.Set(turns, func(*announce.Turn) []string { return []string{"eth0"} }, s.now)
}

// after moves the time in steps as Run makes them, and returns what was done.
func (s *stage) after(d time.Duration) string {
	s.port.did = nil
	for end := s.now.Add(d); !s.now.After(end); s.now = s.now.Add(50 * time.Millisecond) {
		s.Step(s.now)
	}
	return strings.Join(s.port.did, ", ")
}

func mine(silent ...string) announce.Turn {
	return announce.Turn{Addr: v4, Announcer: "self", Mine: true, Silent: silent, Services: []string{"d/web"}}
}

func theirs(node string) announce.Turn { return announce.Turn{Addr: v4, Announcer: node} }

// A new address is asked for before it is announced, then said several times, and let go when it is another's.
func TestSpeaker(t *testing.T) {
	s := newStage()
	s.set(mine())
	if got, want := s.after(200*time.Millisecond), "hear 192.0.2.1, probe 192.0.2.1, probe 192.0.2.1"; got != want {
		t.Errorf("waiting: %s, want %s", got, want)
	}
	if s.Answers(v4, "eth0") {
		t.Error("it answers for an address that it still asks for")
	}
	if got, want := s.after(time.Minute), strings.TrimSuffix(strings.Repeat("announce 192.0.2.1, ", 1+len(repeats)), ", "); got != want {
		t.Errorf("announced: %s, want %s", got, want)
	}
	if !s.Answers(v4, "eth0") || s.Answers(v6, "eth0") || s.Answers(v4, "eth1") {
		t.Error("it answers for something else than what it announces")
	}
	s.set(mine()) // the same again
	if got := s.after(time.Minute); got != "" {
		t.Errorf("again: %s", got)
	}
	s.set(theirs("other"))
	if got := strings.Join(s.port.did, ", "); got != "probe 192.0.2.1, ignore 192.0.2.1" || s.Answers(v4, "eth0") || len(s.Claims()) != 0 {
		t.Errorf("let go: %s, %v", got, s.Claims())
	}
}

// A node that rests, and announces the address all the same, takes clients with it. When it is gone the address is
// announced again.
func TestRestingIsGone(t *testing.T) {
	s := newStage()
	resting := mine("first")
	resting.Resting = []string{"first"}
	s.set(mine("first"))
	s.set(resting)
	s.after(time.Minute)
	s.set(resting)
	if got := s.after(time.Minute); got != "" {
		t.Errorf("while it rests: %s", got)
	}
	s.set(mine("first"))
	if got, want := s.after(time.Minute), strings.TrimSuffix(strings.Repeat("announce 192.0.2.1, ", 1+len(repeats)), ", "); got != want {
		t.Errorf("when it is gone: %s, want %s", got, want)
	}
	s.set(mine("first"))
	if got := s.after(time.Minute); got != "" {
		t.Errorf("while it is gone: %s", got)
	}
}

// A node that was out of reach, and does not know it, announces its address again once another gives that up, which
// clients ask since. Nobody else is told anything.
func TestBackAgain(t *testing.T) { synctest.Test(t, testBackAgain) }

func testBackAgain(t *testing.T) {
	for _, a := range []netip.Addr{v4, v6} {
		turn := func(node string, mine bool, silent ...string) announce.Turn {
			return announce.Turn{Addr: a, Announcer: node, Mine: mine, Silent: silent}
		}
		first, second := newStage(), newStage()
		first.now, second.now = time.Now().Add(-time.Minute), time.Now().Add(-time.Minute)
		first.set(turn("first", true))
		first.after(time.Minute)
		second.set(turn("first", false))
		second.set(turn("second", true, "first"))
		second.after(time.Minute)

		second.port.did = nil
		second.set(turn("first", false))
		if got, want := strings.Join(second.port.did, ", "), fmt.Sprintf("probe %s, ignore %s", a, a); got != want {
			t.Errorf("the second gives it up: %s, want %s", got, want)
		}
		f, err := (&speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}, mark: mark("second")}).probe(a)
		if err != nil {
			t.Fatal(err)
		}
		e := &ether{ifi: net.Interface{Name: "eth0"}, speech: speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, mark: mark("first")}, speaker: first.Speaker}
		parse := e.speech.parseARP
		if a.Is6() {
			parse = e.speech.parseNDP
		}
		h, ok := parse(f)
		if !ok {
			t.Fatalf("%x is not understood", f)
		}
		e.hear(new(askers), &h, time.Now())
		if got, want := first.after(time.Minute), "announce "+a.String(); got != want {
			t.Errorf("the first, back again: %q, want %q", got, want)
		}
		second.set(turn("second", true, "first"))
		second.after(time.Minute)
		second.port.did = nil
		second.set() // no Service is there any longer
		if got, want := strings.Join(second.port.did, ", "), "ignore "+a.String(); got != want {
			t.Errorf("nobody's: %s, want %s", got, want)
		}
	}
}

// An address whose announcer is silent is announced at once; one that its announcer gives back is asked for.
func TestTakeover(t *testing.T) {
	for _, tt := range []struct {
		before announce.Turn
		now    announce.Turn
		first  string
	}{
		{theirs("other"), mine("other"), "announce"},
		{theirs("other"), mine(), "probe"},
		{theirs("other"), mine("third"), "probe"},
		{theirs(""), mine(), "probe"},
	} {
		s := newStage()
		s.set(tt.before)
		s.after(time.Second)
		s.set(tt.now)
		if got := s.after(0); got != "hear 192.0.2.1, "+tt.first+" 192.0.2.1" {
			t.Errorf("from %+v to %+v: %s", tt.before, tt.now, got)
		}
	}
}

// Somebody else's address is left alone for as long as he is heard, and asked for now and then.
func TestSpeakerConflict(t *testing.T) {
	s := newStage()
	s.set(mine())
	s.after(time.Second)
	who := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	s.Conflict(v4, "eth0", who, s.now)
	if s.Answers(v4, "eth0") {
		t.Error("it answers for an address that another has")
	}
	c := s.Claims()[0]
	if c.State != announce.Conflict || !strings.Contains(c.Problem, "192.0.2.1 is answered for by 02:00:00:00:00:09 on eth0, which is no node of this cluster") {
		t.Errorf("%+v", c)
	}
	got := s.after(25 * time.Second)
	if got != "probe 192.0.2.1, probe 192.0.2.1" {
		t.Errorf("meanwhile: %s", got)
	}
	s.Conflict(v4, "eth0", who, s.now) // he answers the probe
	if got := s.after(25 * time.Second); strings.Contains(got, "announce") {
		t.Errorf("meanwhile: %s", got)
	}
	if got := s.after(10 * time.Second); !strings.Contains(got, "announce") || !s.Answers(v4, "eth0") || s.Claims()[0].Problem != "" {
		t.Errorf("afterwards: %s, %+v", got, s.Claims())
	}
	s.Conflict(v6, "eth0", who, s.now) // not ours
}

// A second machine that has the address is no other problem, but makes it last.
func TestTwoStrangers(t *testing.T) {
	s := newStage()
	s.set(mine())
	s.after(time.Second)
	first := ""
	for i := range byte(4) {
		s.Conflict(v4, "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 8 + i%2}, s.now)
		c := s.Claims()[0]
		if i == 0 {
			first = c.Problem
		}
		if c.State != announce.Conflict || c.Problem != first {
			t.Errorf("%s is told as %q, first %q", c.State, c.Problem, first)
		}
		s.after(20 * time.Second)
	}
}

// When another node has announced the address of this one, it is announced again, after a while and not too often. The
// node that comes first has the last word.
func TestOverhear(t *testing.T) { synctest.Test(t, testOverhear) }

func testOverhear(t *testing.T) {
	begin := func(turn announce.Turn) *stage {
		s := newStage()
		s.now = time.Now().Add(-time.Minute)
		s.set(turn)
		s.after(time.Minute)
		return s
	}
	const once = "announce 192.0.2.1"
	other := &speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}, mark: mark("other")}
	for _, tt := range []struct {
		name string
		turn announce.Turn
		mac  net.HardwareAddr
		want string
	}{
		{"the first", mine(), other.mac, once},
		{"the second, against the third", mine("first"), other.mac, once},
		{"the second, against the first", mine("first", "other"), other.mac, ""},
		{"itself", mine(), net.HardwareAddr{2, 0, 0, 0, 0, 1}, ""},
	} {
		s := begin(tt.turn)
		e := &ether{ifi: net.Interface{Name: "eth0"}, speech: speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, mark: mark("self")}, speaker: s.Speaker}
		frames, err := (&speech{mac: tt.mac, mark: other.mark}).announcement(v4)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			h, ok := e.speech.parseARP(f)
			if !ok {
				t.Fatalf("%x is not understood", f)
			}
			e.hear(new(askers), &h, time.Now())
		}
		if got := s.after(100 * time.Millisecond); got != "" {
			t.Errorf("%s, at once: %s", tt.name, got)
		}
		if got := s.after(time.Minute); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}

	s := begin(mine())
	began, times := s.now, 0
	for s.now.Sub(began) < time.Minute {
		s.Overhear(v4, "eth0", number("other"), s.now)
		times += strings.Count(s.after(150*time.Millisecond), once)
	}
	if times != 6 {
		t.Errorf("against somebody who never gives up it is announced %d times in a minute, want 6", times)
	}
	s = begin(mine())
	s.Overhear(v4, "eth0", number("other"), s.now)
	s.Conflict(v4, "eth0", other.mac, s.now)
	if got := s.after(9 * time.Second); got != "" {
		t.Errorf("an address that is a stranger's: %s", got)
	}
}

// An interface that is not there, or refuses, is told, and used when it can be.
func TestSpeakerPorts(t *testing.T) {
	s := newStage()
	s.SetPort("eth0", nil)
	s.set(mine())
	s.after(time.Second)
	if c := s.Claims()[0]; c.State != announce.Failed || c.Problem != "192.0.2.1 cannot be announced on eth0: this node has no such interface, or it cannot be used" {
		t.Errorf("%+v", c)
	}
	s.port.fail = errors.New("no right")
	s.SetPort("eth0", &s.port)
	s.after(time.Second)
	if c := s.Claims()[0]; c.State != announce.Failed || !strings.HasSuffix(c.Problem, ": no right") {
		t.Errorf("%+v", c)
	}
	s.port.fail = nil
	s.after(time.Second)
	if c := s.Claims()[0]; c.State != announce.Announced || c.Problem != "" {
		t.Errorf("%+v", c)
	}
	again := &recorder{}
	s.SetPort("eth0", again)
	s.Step(time.Now().Add(time.Hour))
	if !slices.Equal(again.did, []string{"hear 192.0.2.1", "announce 192.0.2.1"}) {
		t.Errorf("another interface of the name was told %v", again.did)
	}
}

// What an interface says it understands, and what others say it knows as theirs.
func TestFrames(t *testing.T) {
	ours := &speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, mark: mark("self")}
	other := &speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}, mark: []byte("              ")}
	for _, a := range []netip.Addr{v4, v6} {
		parse := ours.parseARP
		if a.Is6() {
			parse = ours.parseNDP
		}
		for _, s := range []*speech{ours, other} {
			frames, err := s.announcement(a)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range frames {
				h, ok := parse(f)
				if !ok || h.addr != a || h.asks || (h.by == number("self")) != (s == ours) || (h.by == "") != (s == other) || h.from.String() != s.mac.String() || len(f) < leastLen {
					t.Errorf("announcement of %s: %+v, %v", a, h, ok)
				}
			}
			f, err := s.probe(a)
			if err != nil {
				t.Fatal(err)
			}
			h, ok := parse(f)
			if !ok || h.addr != a || !h.asks || !h.asker.IsUnspecified() || (h.by == number("self")) != (s == ours) {
				t.Errorf("probe for %s: %+v, %v", a, h, ok)
			}
			f, err = ours.answer(&h)
			if err != nil {
				t.Fatal(err)
			}
			if h, ok = parse(f); !ok || h.addr != a || h.asks || h.by != number("self") {
				t.Errorf("answer about %s: %+v, %v", a, h, ok)
			}
		}
	}
	if got := solicitedNode(netip.MustParseAddr("2001:db8::a1b2:c3d4")); got != netip.MustParseAddr("ff02::1:ffb2:c3d4") || multicastMAC(got).String() != "33:33:ff:b2:c3:d4" {
		t.Errorf("%s, %s", got, multicastMAC(got))
	}
}

// A group that could not be joined is joined when it can be.
func TestJoinAgain(t *testing.T) {
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lo, err := net.InterfaceByName("lo") // it has the number 1 in each namespace
	if err != nil {
		t.Fatal(err)
	}
	e := openPort(*lo, "self", NewSpeaker(), func() {}, slog.New(slog.DiscardHandler))
	defer e.Close()
	group := solicitedNode(v6)
	join := func() (err error) {
		_ = ns.Do(func() error { err = e.join(group); return nil })
		return err
	}
	for range 2 { // lo is down, so there is no ::1
		if err := join(); err == nil || e.members[group] != 0 {
			t.Fatalf("joined %d times: %v", e.members[group], err)
		}
	}
	if err := tap.SetUp(ns, "lo"); err != nil {
		t.Fatal(err)
	}
	for want := 1; want <= 2; want++ {
		if err := join(); err != nil || e.groups == nil || e.members[group] != want {
			t.Fatalf("joined %d times: %v", e.members[group], err)
		}
	}
}

// What arrives in a VLAN on the interface is of another network: who has the address there does not have it here.
func TestOtherVLAN(t *testing.T) {
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := tap.SetUp(ns, "lo"); err != nil {
		t.Fatal(err)
	}
	wire, err := tap.Create(ns, tap.Config{Name: "eth0", Owner: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer wire.Close()
	for _, a := range []netip.Addr{v4, v6} {
		s := NewSpeaker()
		var e *ether
		if err := ns.Do(func() error {
			ifi, err := net.InterfaceByName("eth0")
			if err == nil {
				e = openPort(*ifi, "self", s, func() {}, slog.New(slog.DiscardHandler))
				s.SetPort("eth0", e)
				s.Set([]announce.Turn{{Addr: a, Announcer: "self", Mine: true}}, func(*announce.Turn) []string { return []string{"eth0"} }, time.Now())
				err = e.Hear(a)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		say := func(host byte, tag ...byte) {
			frames, err := (&speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, host}, mark: []byte("              ")}).announcement(a)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range frames {
				b := append(make([]byte, 10), f[:12]...) // after the virtio-net header
				if _, err := wire.Write(append(append(b, tag...), f[12:]...)); err != nil {
					t.Fatal(err)
				}
			}
		}
		say(8, 0x81, 0x00, 0x00, 0x0a) // VLAN 10
		say(9)
		await.Until(t, "somebody was heard", func() bool { return s.Claims()[0].State == announce.Conflict })
		if c := s.Claims()[0]; !strings.Contains(c.Problem, "answered for by 02:00:00:00:00:09") {
			t.Errorf("%s", c.Problem)
		}
	}
}

// FuzzFrames: no frame is taken for more than it is, whoever sent it.
func FuzzFrames(f *testing.F) {
	s := &speech{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, mark: mark("self")}
	for _, a := range []netip.Addr{v4, v6} {
		frames, err := s.announcement(a)
		if err != nil {
			f.Fatal(err)
		}
		probe, err := s.probe(a)
		if err != nil {
			f.Fatal(err)
		}
		for _, frame := range append(frames, probe) {
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		for i, parse := range []func([]byte) (heard, bool){s.parseARP, s.parseNDP} {
			h, ok := parse(frame)
			if !ok {
				continue
			}
			if len(h.from) != 6 || h.addr.Is4() != (i == 0) {
				t.Errorf("%+v", h)
			}
			if _, err := s.answer(&h); h.asks && err != nil && h.addr.Is4() {
				t.Errorf("no answer to %+v: %v", h, err)
			}
		}
	})
}
