package bfd

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
)

var (
	one, two   = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::2")
	fast, slow = announce.BFD{Transmit: 100, Receive: 300, Multiplier: 5}, announce.BFD{Transmit: 300, Receive: 200, Multiplier: 3}
)

// Routers without BFD are not watched, and one at several ports once, by the shorter times.
func TestWanted(t *testing.T) {
	peer := func(addr netip.Addr, port uint16, b announce.BFD) announce.Peer {
		return announce.Peer{Address: netip.AddrPortFrom(addr, port), BFD: b}
	}
	both := announce.BFD{Transmit: 100, Receive: 200, Multiplier: 3}
	for name, tt := range map[string]struct {
		peers []announce.Peer
		want  map[netip.Addr]announce.BFD
	}{
		"none":             {nil, map[netip.Addr]announce.BFD{}},
		"without BFD":      {[]announce.Peer{peer(one, 179, announce.BFD{})}, map[netip.Addr]announce.BFD{}},
		"two":              {[]announce.Peer{peer(one, 179, fast), peer(two, 179, slow)}, map[netip.Addr]announce.BFD{one: fast, two: slow}},
		"two ports":        {[]announce.Peer{peer(one, 179, fast), peer(one, 1179, slow)}, map[netip.Addr]announce.BFD{one: both}},
		"the other way":    {[]announce.Peer{peer(one, 179, slow), peer(one, 1179, fast)}, map[netip.Addr]announce.BFD{one: both}},
		"one port without": {[]announce.Peer{peer(one, 179, slow), peer(one, 1179, announce.BFD{})}, map[netip.Addr]announce.BFD{one: slow}},
	} {
		if got := Wanted(tt.peers); !maps.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// A session ends when it is not wanted any longer, begins when it is new, and is made anew when its times are others.
func TestSteps(t *testing.T) {
	have := func(list map[netip.Addr]announce.BFD) map[netip.Addr]*watch {
		w := map[netip.Addr]*watch{}
		for addr, times := range list {
			w[addr] = &watch{times: times}
		}
		return w
	}
	none, first := map[netip.Addr]announce.BFD{}, map[netip.Addr]announce.BFD{one: fast}
	both, other := map[netip.Addr]announce.BFD{one: fast, two: fast}, map[netip.Addr]announce.BFD{one: slow, two: fast}
	for name, tt := range map[string]struct {
		have, want map[netip.Addr]announce.BFD
		end, begin []netip.Addr
	}{
		"nothing":     {none, none, nil, nil},
		"all stay":    {both, both, nil, nil},
		"the first":   {none, both, nil, []netip.Addr{one, two}},
		"another one": {first, both, nil, []netip.Addr{two}},
		"one goes":    {both, first, []netip.Addr{two}, nil},
		"all go":      {both, none, []netip.Addr{one, two}, nil},
		"other times": {both, other, []netip.Addr{one}, []netip.Addr{one}},
	} {
		if end, begin := steps(have(tt.have), tt.want); !slices.Equal(end, tt.end) || !slices.Equal(begin, tt.begin) {
			t.Errorf("%s: end %v and begin %v, want %v and %v", name, end, begin, tt.end, tt.begin)
		}
	}
}

// A router is lost when its session was up and is not, once for each time, and never when it was not up. What is wrong
// is told when there has been no session for a while.
func TestSee(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for name, tt := range map[string]struct {
		states string // one for each second: d, i, u, and - where GoBGP does not know the session
		lost   string // in which seconds the router is lost
		told   string // in which seconds a problem is told, as first-last
	}{
		"never up":          {"dddddddddddddddddd", "", "15-17"},
		"never up, unknown": {"------------------", "", "15-17"},
		"heard one way":     {"diddididididididid", "", "15-17"},
		"comes up":          {"ddiuuuuuuuuuuuuuuuuuuuu", "", ""},
		"goes down":         {"diuuddiuuu", "4", ""},
		"goes to init":      {"diuuiuuu", "4", ""},
		"is gone":           {"diuu---", "4", ""},
		"again and again":   {"uduuiduu", "1 4", ""},
		"stays down":        {"uuddddddddddddddddddu", "2", "17-19"},
	} {
		have := map[netip.Addr]*watch{one: {state: Down, down: start}}
		var lost, told []string
		for i, c := range tt.states {
			now := start.Add(time.Duration(i) * time.Second)
			states := map[netip.Addr]State{two: Up} // one that is not watched
			if c != '-' {
				states[one] = map[rune]State{'d': Down, 'i': Init, 'u': Up}[c]
			}
			for _, addr := range see(have, states, now) {
				if addr != one {
					t.Errorf("%s: %s is lost, and not watched", name, addr)
				}
				lost = append(lost, second(i))
			}
			if text := have[one].problem(one, now); strings.Contains(text, "no BFD session with the router at 192.0.2.1 for more than 15s") {
				told = append(told, second(i))
			} else if text != "" {
				t.Errorf("%s: %s", name, text)
			}
		}
		span := ""
		if len(told) > 0 {
			span = told[0] + "-" + told[len(told)-1]
		}
		if got := strings.Join(lost, " "); got != tt.lost || span != tt.told {
			t.Errorf("%s: lost in %q and told in %q, want %q and %q", name, got, span, tt.lost, tt.told)
		}
	}
}

func second(i int) string { return strings.TrimSuffix((time.Duration(i) * time.Second).String(), "s") }
