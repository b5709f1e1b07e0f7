package announcing

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/overlay"
)

// fake is a node with one peer.
type fake struct {
	until    time.Time
	since    time.Time // an hour ago if zero
	answered time.Time
	passing  map[string]bool
	askers   map[string]bool
	gateways []map[netip.Addr]string // as they were set
}

func (f *fake) SetGateways(g map[netip.Addr]string) { f.gateways = append(f.gateways, g) }

func (f *fake) AnswerBeats(until time.Time) { f.until = until }

func (f *fake) PassOver(nodes map[string]bool) { f.passing = nodes }

func (f *fake) Askers(time.Time) map[string]bool { return f.askers }

func (f *fake) Beats() []overlay.Beat {
	since := f.since
	if since.IsZero() {
		since = time.Now().Add(-time.Hour)
	}
	return []overlay.Beat{{Name: "other", Since: since, Answered: f.answered}}
}

// world is an Announcing with what it looks at.
type world struct {
	*Announcing
	node  fake
	plan  announce.Plan
	unfit string
	early bool
}

func newWorld() *world {
	w := &world{plan: announce.Plan{
		Node: "self", Links: []announce.Link{{Addr: netip.MustParseAddr("192.0.2.1"), Services: []string{"d/web"}, Ranked: []string{"other", "self"}}},
		Peers:  []announce.Peer{{Name: "tor"}},
		Routes: []announce.Route{{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Peer: "tor"}},
	}}
	w.Announcing = New(Options{
		NodeAddrs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("172.31.0.11")} },
		Name:      "self", Kinds: []Kind{L2, BGP}, Plan: func() *announce.Plan { return &w.plan }, Unfit: func() string { return w.unfit },
		Node: func() Node {
			if w.early {
				return nil
			}
			return &w.node
		},
	})
	return w
}

// A failover takes less than a second, whether a node dies or its announcer alone, and an agent that starts again is
// silent for less than what others wait.
func TestTimes(t *testing.T) {
	node := announce.Patience + announce.AskEvery
	announcer := announce.Asked + node
	restart := 300*time.Millisecond + announce.AskEvery + 2*overlay.BeatEvery
	if node > 700*time.Millisecond || announcer > 900*time.Millisecond || restart > announce.Patience-200*time.Millisecond {
		t.Errorf("a dead node is passed over after %s, a dead announcer after %s; a restart takes %s of %s", node, announcer, restart, announce.Patience)
	}
}

// The state changes when something else is to be announced, and only then. While the announcer asks, other nodes are
// answered.
func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.early = true
		if _, err := w.linkState(time.Now()); err == nil {
			t.Error("an agent without a node says what to announce")
		}
		w.early = false
		w.node.answered = time.Now()
		ask := func() uint64 {
			s, err := w.linkState(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return s[0].Generation
		}
		first := ask()
		if !w.node.until.Equal(time.Now().Add(announce.Asked)) {
			t.Errorf("others are answered until %s", w.node.until)
		}
		if ask() != first || w.turns[0].Announcer != "other" {
			t.Errorf("%+v", w.turns)
		}
		time.Sleep(announce.Patience)
		second := ask()
		if second == first || w.turns[0].Announcer != "self" {
			t.Errorf("%+v", w.turns)
		}
		w.unfit, w.node.until = "pods are lost", time.Time{}
		if ask() == second || w.turns[0].Announcer != "" || !w.node.until.IsZero() {
			t.Errorf("a node that is not fit announces: %+v", w.turns)
		}
	})
}

// A node that comes and goes is passed over and told so, while this one could announce in its place; and this one
// leaves its address to the node that passes it over.
func TestRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		answers := func(does bool, d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(announce.AskEvery) {
				if does {
					w.node.answered = time.Now()
				}
				if _, err := w.linkState(time.Now()); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 3 {
			answers(true, 2*time.Second)
			if got := w.turns[0]; got.Announcer != "other" || w.node.passing != nil {
				t.Fatalf("%+v, passed over are %v", got, w.node.passing)
			}
			answers(false, time.Second)
		}
		answers(true, 4*time.Second)
		if got := w.turns[0]; got.Announcer != "self" || !slices.Equal(got.Resting, []string{"other"}) || !w.node.passing["other"] {
			t.Errorf("the third time: %+v, passed over are %v", got, w.node.passing)
		}
		w.unfit = "pods are lost"
		if answers(true, announce.AskEvery); w.turns[0].Announcer != "other" || len(w.node.passing) > 0 {
			t.Errorf("not fit: %+v, passed over are %v", w.turns[0], w.node.passing)
		}
		w.unfit = ""
		answers(true, 5*time.Second)
		if got := w.turns[0]; got.Announcer != "other" || len(w.node.passing) > 0 {
			t.Errorf("after five seconds: %+v, passed over are %v", got, w.node.passing)
		}

		w.plan.Links[0].Ranked = []string{"self", "other"}
		plan := w.plan
		w.Announcing.o.Plan = func() *announce.Plan { return &plan }
		for _, passes := range []bool{false, true, false} {
			w.node.askers = map[string]bool{"other": passes}
			answers(true, announce.AskEvery)
			if got := w.turns[0]; got.Mine == passes {
				t.Errorf("it is passed over %t: %+v", passes, got)
			}
		}
	})
}

func TestRouteState(t *testing.T) {
	w := newWorld()
	ask := func() (uint64, int) {
		s, err := w.routeState(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		_, routes, _, _ := w.bgp()
		return s[0].Generation, len(routes)
	}
	first, n := ask()
	if again, _ := ask(); again != first || n != 1 {
		t.Errorf("%d, then %d; %d routes", first, again, n)
	}
	w.unfit = "pods are lost"
	second, n := ask()
	if second == first || n != 0 {
		t.Errorf("a node that is not fit has %d routes", n)
	}
}

// What announcers say is told about the objects, counted, and forgotten when they say nothing more.
func TestTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.claims, w.claimsAt = []announce.Claim{{State: announce.Conflict, Services: []string{"d/web"}, Problem: "somebody else has it"}}, time.Now()
		w.sessions, w.sessionsAt = []announce.Session{{Peer: "tor", State: "established", Routes: 3, Problem: "its password is wrong"}}, time.Now()
		var got []string
		for _, p := range w.Problems() {
			got = append(got, p.String())
			if wants := map[string]string{"BGPPeer": kube.SessionFault}[p.Object.Kind]; p.Reason != wants {
				t.Errorf("%s has the reason %q, want %q", p, p.Reason, wants)
			}
		}
		want := "BGPPeer tor: on node self: its password is wrong|Service d/web: on node self: somebody else has it"
		if strings.Join(got, "|") != want {
			t.Errorf("got  %s\nwant %s", strings.Join(got, "|"), want)
		}
		list := w.Counters()
		if n := list.Of("tapestry_l2_addresses")["conflict"]; n != 1 {
			t.Errorf("%v conflicts", n)
		}
		if n := list.Of("tapestry_bgp_session_up")["tor"]; n != 1 {
			t.Errorf("%v sessions", n)
		}
		time.Sleep(away + time.Second)
		got = nil
		for _, p := range w.Problems() {
			got = append(got, p.String())
		}
		if len(got) != 2 || !strings.Contains(got[0], "Node self: the announcer tapestry-bgp does not ask") || !strings.Contains(got[1], "tapestry-l2") {
			t.Errorf("got %q", got)
		}
	})
}

// An announcer works from when it asks until it has not asked for a while.
func TestWorking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		check := func(when string, want ...Kind) {
			t.Helper()
			if got := w.Working(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		check("nobody has asked")
		if _, err := w.linkState(time.Now()); err != nil {
			t.Fatal(err)
		}
		check("one has asked", L2)
		time.Sleep(away - time.Second)
		if _, err := w.routeState(time.Now()); err != nil {
			t.Fatal(err)
		}
		check("both have", BGP, L2)
		time.Sleep(2 * time.Second)
		check("the first asks no longer", BGP)
		time.Sleep(away)
		check("neither does")
	})
}

// An announcer has the tables of its own kind, and does not count as one of the other.
func TestUsers(t *testing.T) {
	own := uint32(os.Geteuid())
	for _, tt := range []struct {
		users   map[Kind][]uint32
		l2, bgp bool
	}{
		{nil, true, true},
		{map[Kind][]uint32{L2: {own + 1}, BGP: {own + 1, own}}, false, true},
		{map[Kind][]uint32{L2: {own}, BGP: {own + 1}}, true, false},
	} {
		w := newWorld()
		w.o.Users = tt.users
		s := w.Server(localapi.Options{Log: slog.New(slog.DiscardHandler)})
		c := &localapi.Client{Path: filepath.Join(t.TempDir(), "agent.sock")}
		l, err := localapi.Listen(c.Path, s.Options)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(ctx, l) }()
		check := func(what string, err error, may bool) {
			t.Helper()
			if (err == nil) != may || err != nil && !strings.Contains(err.Error(), fmt.Sprintf("is not for user %d: only user", own)) {
				t.Errorf("%v: %s: %v", tt.users, what, err)
			}
		}
		_, err = localapi.LinkState.Ask(ctx, c)
		check("l2-state", err, tt.l2)
		_, err = localapi.Turns.Ask(ctx, c)
		check("l2", err, tt.l2)
		_, err = localapi.Claims.Ask(ctx, c)
		check("l2-claims", err, tt.l2)
		check("to tell l2-claims", localapi.Claims.Tell(ctx, c, []announce.Claim{{State: announce.Conflict}}), tt.l2)
		_, err = localapi.RouteState.Ask(ctx, c)
		check("bgp-state", err, tt.bgp)
		_, err = localapi.Routes.Ask(ctx, c)
		check("bgp", err, tt.bgp)
		_, err = localapi.BGPPeers.Ask(ctx, c)
		check("bgp-peers", err, tt.bgp)
		_, err = localapi.Sessions.Ask(ctx, c)
		check("bgp-sessions", err, tt.bgp)
		check("to tell bgp-sessions", localapi.Sessions.Tell(ctx, c, []announce.Session{{Peer: "tor"}}), tt.bgp)
		cancel()
		<-done
		if w.node.until.IsZero() == tt.l2 || w.asked[L2].IsZero() == tt.l2 || w.asked[BGP].IsZero() == tt.bgp || (len(w.claims) > 0) != tt.l2 || (len(w.sessions) > 0) != tt.bgp {
			t.Errorf("%v: others are answered until %s, asked have %v, told are %v and %v", tt.users, w.node.until, w.asked, w.claims, w.sessions)
		}
	}
}
