package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/userns"
)

// asAnnouncer in the environment has this executable be the announcer.
const asAnnouncer = "TAPESTRY_BGP_IS_ANNOUNCER"

func TestMain(m *testing.M) {
	if os.Getenv(asAnnouncer) != "" {
		main()
	}
	userns.Main(clean{m})
}

const frr = "/usr/lib/frr/bgpd"

// clean runs the tests with a directory for FRR that goes with them: each of its daemons makes one below it, and leaves
// it.
type clean struct{ *testing.M }

// frrState is where FRR's daemons make their directories.
const frrState = "/var/tmp/frr"

// Run mounts a file system over the directory, in the tests' own mount namespace, and takes away what it made for that.
func (c clean) Run() int {
	made := os.Mkdir(frrState, 0o755) == nil
	if err := unix.Mount("frr", frrState, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		fmt.Fprintf(os.Stderr, "mount a directory for FRR at %s: %v\n", frrState, err)
		return 1
	}
	code := c.M.Run()
	if err := unix.Unmount(frrState, unix.MNT_DETACH); err != nil {
		fmt.Fprintf(os.Stderr, "unmount FRR's directory %s: %v\n", frrState, err)
		return 1
	}
	if made {
		_ = os.Remove(frrState) // but not from under others' daemons, who have made theirs there meanwhile
	}
	return code
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// installed ends the test when a router is missing.
func installed(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + p)
		}
		if err != nil {
			t.Fatalf("%s is not here (%v): this test speaks BGP with FRR and BIRD, 'apt-get install frr bird2'", p, path)
		}
	}
}

// host is a namespace in which programs run until the test ends.
type host struct {
	t  *testing.T
	ns *tap.Namespace
}

// world is a node, in a namespace with the addresses of all routers that are on its link, whose programs run there,
// too.
type world struct {
	host
	dir  string
	told *announcing.Announcing

	announcer *exec.Cmd

	mu   sync.Mutex
	plan *announce.Plan
}

// node has no beats to tell.
type node struct{}

func (node) AnswerBeats(time.Time)            {}
func (node) PassOver(map[string]bool)         {}
func (node) Askers(time.Time) map[string]bool { return nil }
func (node) Beats() []overlay.Beat            { return nil }

var nodeAddrs = []netip.Addr{netip.MustParseAddr("172.31.0.11"), netip.MustParseAddr("fd00:31::11")}

// newWorld makes a node with an announcer, and the passwords by their keys.
func newWorld(t *testing.T, passwords map[string]string, peers ...announce.Peer) *world {
	t.Helper()
	ns, err := tap.NewNamespace()
	must(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	must(t, tap.SetUp(ns, "lo"))
	for _, a := range []string{"172.31.0.11/24", "172.31.0.1/24", "172.31.0.2/24", "172.31.0.3/24", "fd00:31::11/64", "fd00:31::2/64"} {
		must(t, tap.AddAddr(ns, "lo", netip.MustParsePrefix(a)))
	}
	return worldIn(host{t, ns}, nodeAddrs, passwords, peers...)
}

// worldIn makes the host a node with these addresses.
func worldIn(h host, addrs []netip.Addr, passwords map[string]string, peers ...announce.Peer) *world {
	t := h.t
	t.Helper()
	w := &world{host: h, dir: t.TempDir(), plan: &announce.Plan{Node: "node", Peers: peers}}
	for key, text := range passwords {
		must(t, os.WriteFile(filepath.Join(w.dir, key), []byte(text+"\n"), 0o600))
	}
	w.told = announcing.New(announcing.Options{
		Name: "node", Kinds: []announcing.Kind{announcing.BGP}, Node: func() announcing.Node { return node{} }, Unfit: func() string { return "" },
		NodeAddrs: func() []netip.Addr { return addrs },
		Plan:      func() *announce.Plan { w.mu.Lock(); defer w.mu.Unlock(); return w.plan },
	})
	s := w.told.Server(localapi.Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	socket := filepath.Join(w.dir, "agent.sock")
	l, err := localapi.Listen(socket, s.Options)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	both.Go(func() { _ = s.Serve(ctx, l) })
	t.Cleanup(func() { w.end(os.Interrupt); cancel(); both.Wait() })
	w.begin()
	return w
}

// begin starts the announcer, and end ends it by a signal.
func (w *world) begin() {
	self, err := os.Executable()
	must(w.t, err)
	w.announcer = exec.Command(self, "--node", "node", "--agent", filepath.Join(w.dir, "agent.sock"), "--passwords", w.dir)
	w.announcer.Env = append(os.Environ(), asAnnouncer+"=yes")
	w.announcer.Stderr = w.t.Output()
	must(w.t, w.ns.Start(w.announcer))
}

func (w *world) end(by os.Signal) {
	_ = w.announcer.Process.Signal(by)
	_ = w.announcer.Wait()
}

// announce has the node tell routers of prefixes.
func (w *world) announce(routes ...announce.Route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plan = &announce.Plan{Node: "node", Peers: w.plan.Peers, Routes: routes}
}

// start runs a router's program in the namespace until the test ends.
func (h host) start(name string, args ...string) *exec.Cmd {
	h.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = h.t.Output(), h.t.Output()
	must(h.t, h.ns.Start(cmd))
	var once sync.Once
	end := func() { once.Do(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) }
	h.t.Cleanup(end)
	return cmd
}

// ask returns what a program in the namespace prints.
func (h host) ask(name string, args ...string) string {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout = &out
	if err := h.ns.Start(cmd); err != nil {
		return err.Error()
	}
	_ = cmd.Wait() // what is not ready yet prints nothing of use
	return out.String()
}

// frr starts FRR's bgpd at an address.
func (h host) frr(at, config string) (show func(what string) string) {
	dir := h.t.TempDir()
	file := filepath.Join(dir, "bgpd.conf")
	must(h.t, os.WriteFile(file, []byte(config), 0o644))
	h.start(frr, "-f", file, "-Z", "-S", "-n", "-p", "179", "-l", at, "-A", "127.0.0.1", "-P", "0", "-i", filepath.Join(dir, "pid"), "--vty_socket", dir)
	return func(what string) string {
		return h.ask("vtysh", "--vty_socket", dir, "--config_dir", dir, "-d", "bgpd", "-c", what)
	}
}

// bird starts BIRD.
func (h host) bird(config string) (show func(what ...string) string) {
	dir := h.t.TempDir()
	file, socket := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	must(h.t, os.WriteFile(file, []byte(config), 0o644))
	h.start("bird", "-f", "-c", file, "-s", socket, "-P", filepath.Join(dir, "pid"))
	return func(what ...string) string { return h.ask("birdc", append([]string{"-s", socket}, what...)...) }
}

const frrConfig = `router bgp 64512
 bgp router-id 172.31.0.1
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 neighbor 172.31.0.11 remote-as 65000
 neighbor 172.31.0.11 passive
 neighbor 172.31.0.11 password secret
 address-family ipv4 unicast
  neighbor 172.31.0.11 activate
  network 10.99.0.0/16
 exit-address-family
 address-family ipv6 unicast
  neighbor 172.31.0.11 activate
 exit-address-family
`

const birdConfig = `router id 172.31.0.2;
protocol device {}
protocol bgp node {
  local fd00:31::2 port 1790 as 65000;
  neighbor fd00:31::11 as 65000;
  passive yes;
  multihop;
  ipv4 { import all; export none; extended next hop on; };
  ipv6 { import all; export none; };
}
`

func peers() []announce.Peer {
	return []announce.Peer{
		{Name: "frr", Address: netip.MustParseAddrPort("172.31.0.1:179"), Source: nodeAddrs[0], ASN: 64512, MyASN: 65000, PasswordKey: "frr", HoldTime: 9},
		{Name: "bird", Address: netip.MustParseAddrPort("[fd00:31::2]:1790"), Source: nodeAddrs[1], ASN: 65000, MyASN: 65000, HoldTime: 9},
	}
}

func route(prefix, peer string, communities ...string) announce.Route {
	return announce.Route{Prefix: netip.MustParsePrefix(prefix), Peer: peer, Services: []string{"d/web"}, Communities: communities}
}

// problem returns what the agent tells of a router.
func (w *world) problem(peer string) string {
	for _, p := range w.told.Problems() {
		if text := p.String(); strings.HasPrefix(text, "BGPPeer "+peer+":") {
			return text
		}
	}
	return ""
}

// FRR and BIRD get the routes that are for them, of both families, with their attributes, and lose those that are
// withdrawn. A session that another router spoils harms neither.
func TestRouters(t *testing.T) {
	t.Parallel()
	installed(t, frr, "vtysh", "bird", "birdc")
	garbage := announce.Peer{Name: "garbage", Address: netip.MustParseAddrPort("172.31.0.3:1791"), ASN: 64513, MyASN: 65000, HoldTime: 9}
	w := newWorld(t, map[string]string{"frr": "secret"}, append(peers(), garbage)...)
	spoiled := w.spoil(garbage.Address.String())
	inFRR, inBIRD := w.frr("172.31.0.1", frrConfig), w.bird(birdConfig)
	pref := uint32(250)
	toBIRD := route("192.0.2.1/32", "bird", "65000:7:8")
	toBIRD.LocalPref = &pref
	w.announce(route("192.0.2.1/32", "frr", "65000:100"), route("192.0.2.16/28", "frr"), route("2001:db8::1/128", "frr"), toBIRD, route("2001:db8::1/128", "bird"))

	type path struct {
		Valid    bool `json:"valid"`
		Path     string
		Nexthops []struct{ IP string }
	}
	paths := func(family, prefix string) (list []path) {
		var table struct{ Routes map[string][]path }
		_ = json.Unmarshal([]byte(inFRR("show bgp "+family+" unicast json")), &table)
		return table.Routes[prefix]
	}
	await.Until(t, "FRR to have the routes", func() bool {
		return len(paths("ipv4", "192.0.2.1/32")) == 1 && len(paths("ipv4", "192.0.2.16/28")) == 1 && len(paths("ipv6", "2001:db8::1/128")) == 1
	})
	for prefix, hop := range map[string]string{"192.0.2.1/32": "172.31.0.11", "2001:db8::1/128": "fd00:31::11"} {
		family := map[bool]string{true: "ipv4", false: "ipv6"}[netip.MustParsePrefix(prefix).Addr().Is4()]
		p := paths(family, prefix)[0]
		if p.Path != "65000" || len(p.Nexthops) == 0 || p.Nexthops[0].IP != hop {
			t.Errorf("FRR has %s as %+v, want the next hop %s", prefix, p, hop)
		}
	}
	if text := inFRR("show bgp ipv4 unicast 192.0.2.1/32"); !strings.Contains(text, "Community: 65000:100") {
		t.Errorf("FRR has no community:\n%s", text)
	}
	await.Until(t, "BIRD to have the routes", func() bool {
		text := inBIRD("show", "route", "all")
		return strings.Contains(text, "192.0.2.1/32") && strings.Contains(text, "2001:db8::1/128")
	})
	text := inBIRD("show", "route", "all")
	for _, want := range []string{"BGP.local_pref: 250", "(65000, 7, 8)", "BGP.next_hop: 172.31.0.11", "BGP.next_hop: fd00:31::11"} {
		if !strings.Contains(text, want) {
			t.Errorf("BIRD does not say %q:\n%s", want, text)
		}
	}
	t.Logf("vtysh, show bgp ipv4 unicast:\n%s\nshow bgp ipv6 unicast:\n%s\nbirdc, show route:\n%s", inFRR("show bgp ipv4 unicast"), inFRR("show bgp ipv6 unicast"), inBIRD("show", "route"))

	// The third router has resets and garbage for everybody who comes.
	await.Until(t, "a third attempt at the bad router", func() bool { return spoiled() >= 3 })
	w.announce(route("192.0.2.16/28", "frr"), toBIRD)
	await.Until(t, "FRR to have lost what is withdrawn", func() bool {
		return len(paths("ipv4", "192.0.2.1/32")) == 0 && len(paths("ipv6", "2001:db8::1/128")) == 0 && len(paths("ipv4", "192.0.2.16/28")) == 1
	})
	await.Until(t, "BIRD to have lost what is withdrawn", func() bool {
		text := inBIRD("show", "route", "all")
		return strings.Contains(text, "192.0.2.1/32") && !strings.Contains(text, "2001:db8::1/128")
	})
	await.Until(t, "the sessions to be told", func() bool {
		up := w.told.Counters().Of("tapestry_bgp_session_up")
		return up["frr"] == 1 && up["bird"] == 1 && up["garbage"] == 0
	})
	if ups := w.told.Counters().Of("tapestry_bgp_sessions_established_total"); ups["frr"] != 1 || ups["bird"] != 1 {
		t.Errorf("sessions were established %v times, want once each", ups)
	}
	await.Until(t, "the bad router to be told", func() bool {
		return strings.Contains(w.problem("garbage"), "there has been no session with the router at 172.31.0.3:1791 (AS 64513)")
	})
}

// spoil answers connections with resets and garbage in turns. It returns how many there were.
func (w *world) spoil(at string) (times func() int) {
	var l net.Listener
	must(w.t, w.ns.Do(func() (err error) { l, err = net.Listen("tcp", at); return err }))
	w.t.Cleanup(func() { _ = l.Close() })
	var mu sync.Mutex
	n := 0
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			n++
			reset := n%2 == 0
			mu.Unlock()
			if reset {
				_ = c.(*net.TCPConn).SetLinger(0)
			} else {
				_, _ = fmt.Fprint(c, strings.Repeat("\xff", 16)+"\xff\xff\x07garbage without end")
			}
			_ = c.Close()
		}
	}()
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// A password that the router does not have, or that is not in the Secret, is told.
func TestPasswords(t *testing.T) {
	t.Parallel()
	installed(t, frr, "vtysh")
	p := peers()[0]
	none := announce.Peer{Name: "none", Address: netip.MustParseAddrPort("172.31.0.2:179"), ASN: 64512, MyASN: 65000, PasswordKey: "forgotten", HoldTime: 9}
	w := newWorld(t, map[string]string{"frr": "wrong"}, p, none)
	show := w.frr("172.31.0.1", frrConfig)
	w.announce(route("192.0.2.1/32", "frr"))
	await.Until(t, "a missing password to be told", func() bool {
		return strings.Contains(w.problem("none"), `there is no password "forgotten": put it under this key into the Secret`)
	})
	await.Until(t, "a wrong password to be told", func() bool { return strings.Contains(w.problem("frr"), "has the same password") })
	must(t, os.WriteFile(filepath.Join(w.dir, "frr"), []byte("secret\n"), 0o600))
	await.Until(t, "the route, with the right password", func() bool { return strings.Contains(show("show bgp ipv4 unicast"), "192.0.2.1/32") })
	await.Until(t, "nothing to be told", func() bool { return w.problem("frr") == "" })
}

// While an announcer that was killed is started again, the router keeps the routes that it promised to keep, and loses
// those that are gone meanwhile.
func TestGracefulRestart(t *testing.T) {
	t.Parallel()
	installed(t, frr, "vtysh")
	p := peers()[0]
	p.GracefulRestart = 60
	w := newWorld(t, map[string]string{"frr": "secret"}, p)
	show := w.frr("172.31.0.1", frrConfig)
	kept, gone := route("192.0.2.1/32", "frr"), route("192.0.2.2/32", "frr")
	w.announce(kept, gone)
	has := func(want ...string) func() bool {
		return func() bool {
			text := show("show bgp ipv4 unicast")
			for _, line := range want {
				if !strings.Contains(text, line) {
					return false
				}
			}
			return true
		}
	}
	await.Until(t, "the routes", has("*> 192.0.2.1/32", "*> 192.0.2.2/32"))
	w.end(os.Kill)
	await.Until(t, "the routes to be kept as stale", has("S> 192.0.2.1/32", "S> 192.0.2.2/32"))
	w.announce(kept)
	w.begin()
	await.Until(t, "the route to be told again, and the other to be gone", func() bool {
		return has("*> 192.0.2.1/32")() && !has("192.0.2.2/32")()
	})
}

// A router that ends its session, as an operator has it do, is told the routes anew.
func TestRouterEndsSession(t *testing.T) {
	t.Parallel()
	installed(t, frr, "vtysh")
	w := newWorld(t, map[string]string{"frr": "secret"}, peers()[0])
	show := w.frr("172.31.0.1", frrConfig)
	w.announce(route("192.0.2.1/32", "frr"), route("2001:db8::1/128", "frr"))
	has := func() bool {
		return strings.Contains(show("show bgp ipv4 unicast"), "*> 192.0.2.1/32") && strings.Contains(show("show bgp ipv6 unicast"), "*> 2001:db8::1/128")
	}
	ups := func() float64 { return w.told.Counters().Of("tapestry_bgp_sessions_established_total")["frr"] }
	for n := range 2 {
		await.Until(t, "the routes of both families", has)
		await.Until(t, "the session to be counted", func() bool { return ups() == float64(n+1) })
		show("clear bgp *")
	}
	await.Until(t, "the routes of both families", has)
	await.Until(t, "the session to be counted", func() bool { return ups() == 3 })
	if text := w.problem("frr"); text != "" {
		t.Errorf("two ended sessions are told: %s", text)
	}
}
