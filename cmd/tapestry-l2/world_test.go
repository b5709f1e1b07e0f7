package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/cmd/tapestry/agent/announcing"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }

var (
	addr4    = netip.MustParseAddr("192.0.2.1")
	addr6    = netip.MustParseAddr("2001:db8::1")
	taken    = netip.MustParseAddr("192.0.2.2") // by a stranger
	echoPort = uint16(7000)
)

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lan is a bridge with hosts, each in a namespace of its own.
type lan struct {
	t  *testing.T
	ns *tap.Namespace
}

func newLAN(t *testing.T) *lan {
	ns, err := tap.NewNamespace()
	must(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	must(t, tap.NewBridge(ns, "br", 1500))
	return &lan{t, ns}
}

// host adds a host with its addresses on eth0, and routes to the addresses that are announced.
func (l *lan) host(n int) *tap.Namespace {
	l.t.Helper()
	ns, err := tap.NewNamespace()
	must(l.t, err)
	l.t.Cleanup(func() { _ = ns.Close() })
	port := fmt.Sprintf("port%d", n)
	must(l.t, tap.NewVeth(tap.End{Namespace: ns, Name: "eth0"}, tap.End{Namespace: l.ns, Name: port}, 1500))
	must(l.t, tap.SetBridge(l.ns, port, "br"))
	// A kernel answers for the addresses of all interfaces otherwise, and an address of IPv6 is not ready at once.
	must(l.t, tap.SetSysctl(ns, "net/ipv4/conf/all/arp_ignore", "1"))
	must(l.t, tap.SetSysctl(ns, "net/ipv6/conf/eth0/accept_dad", "0"))
	must(l.t, tap.SetUp(ns, "lo"))
	must(l.t, tap.SetUp(ns, "eth0"))
	must(l.t, tap.AddAddr(ns, "eth0", netip.PrefixFrom(nodeAddr(n), 24)))
	must(l.t, tap.AddAddr(ns, "eth0", netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}), 64)))
	return ns
}

// plug takes a host off the bridge, or puts it back.
func (l *lan) plug(n int, in bool) {
	l.t.Helper()
	h, err := l.ns.Handle()
	must(l.t, err)
	defer h.Close()
	link, err := h.LinkByName(fmt.Sprintf("port%d", n))
	must(l.t, err)
	if in {
		must(l.t, h.LinkSetUp(link))
	} else {
		must(l.t, h.LinkSetDown(link))
	}
}

func nodeAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 0, byte(n)}) }

func nodeName(n int) string { return fmt.Sprintf("node-%d", n) }

// machine is a node: a mesh, what the agent knows of announcements, the announcer, and a server at the addresses.
type machine struct {
	t    *testing.T
	n    int
	ns   *tap.Namespace
	key  overlay.PrivateKey
	sock *os.File
	dir  string

	mesh *overlay.Mesh
	told *announcing.Announcing
	end  []func() // of the agent
	stop func()   // ends the announcer
}

type cluster struct {
	t        *testing.T
	lan      *lan
	machines []*machine
	addrs    []netip.Addr
}

func newCluster(t *testing.T, nodes int, addrs ...netip.Addr) *cluster {
	t.Helper()
	c := &cluster{t: t, lan: newLAN(t), addrs: addrs}
	for n := 1; n <= nodes; n++ {
		sock, err := overlay.OpenSocket(0)
		must(t, err)
		m := &machine{t: t, n: n, ns: c.lan.host(n), key: overlay.NewPrivateKey(), sock: sock, dir: t.TempDir()}
		for _, a := range addrs {
			must(t, tap.AddAddr(m.ns, "lo", netip.PrefixFrom(a, a.BitLen())))
			m.serve(a)
		}
		c.machines = append(c.machines, m)
	}
	for _, m := range c.machines {
		c.startAgent(m)
		m.startAnnouncer()
	}
	t.Cleanup(func() {
		for _, m := range c.machines {
			m.kill()
			_ = m.sock.Close()
		}
	})
	return c
}

// serve answers datagrams to an address with the node's name.
func (m *machine) serve(a netip.Addr) {
	var conn net.PacketConn
	must(m.t, m.ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", netip.AddrPortFrom(a, echoPort).String())
		return err
	}))
	m.t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte(nodeName(m.n)), from)
		}
	}()
}

// plan is what is announced, as a node sees it.
func (c *cluster) plan(m *machine) *announce.Plan {
	p := &announce.Plan{Node: nodeName(m.n)}
	var nodes []string
	for _, o := range c.machines {
		nodes = append(nodes, nodeName(o.n))
	}
	for _, a := range c.addrs {
		p.Links = append(p.Links, announce.Link{Addr: a, Services: []string{"d/web"}, Ranked: announce.Rank(a, nodes)})
	}
	return p
}

func (c *cluster) startAgent(m *machine) {
	c.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	stack := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(n), 1}) }
	mesh, err := overlay.New(overlay.Options{
		PrivateKey: m.key, Socket: m.sock, StackAddrs: []netip.Addr{stack(m.n)}, Receive: func(uint64, [][]byte) {}, Logger: log,
	})
	must(c.t, err)
	plan := c.plan(m)
	watched := plan.Watched()
	var peers []overlay.Peer
	for _, o := range c.machines {
		if o == m {
			continue
		}
		at := netip.MustParseAddrPort(fmt.Sprint("127.0.0.1:", portOf(o.sock)))
		_, watch := slices.BinarySearch(watched, nodeName(o.n))
		peers = append(peers, overlay.Peer{
			ID: uint64(o.n), Name: nodeName(o.n), PublicKey: o.key.Public(), Endpoint: at, StackAddrs: []netip.Addr{stack(o.n)}, Tapestry: true, Watched: watch,
			Prefixes: []netip.Prefix{netip.PrefixFrom(stack(o.n), 24).Masked()},
		})
	}
	must(c.t, mesh.Set(overlay.Config{Peers: peers}))
	m.mesh = mesh
	m.told = announcing.New(announcing.Options{
		Name: nodeName(m.n), Kinds: []announcing.Kind{announcing.L2}, Node: func() announcing.Node { return mesh },
		Plan: func() *announce.Plan { return plan }, Unfit: func() string { return "" }, NodeAddrs: func() []netip.Addr { return []netip.Addr{nodeAddr(m.n)} },
	})
	s := m.told.Server(localapi.Options{Log: log})
	l, err := localapi.Listen(m.socket(), s.Options)
	must(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx, l) }()
	m.end = []func(){cancel, func() { <-done }, mesh.Close}
}

func portOf(f *os.File) uint16 {
	c, err := net.FilePacketConn(f)
	if err != nil {
		panic(err)
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

func (m *machine) socket() string { return filepath.Join(m.dir, "api.sock") }

func (m *machine) stopAgent() {
	for _, f := range m.end {
		f()
	}
	m.end = nil
}

func (m *machine) startAnnouncer() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.ns.Do(func() error {
			if code := program.Run(ctx, []string{"--node", nodeName(m.n), "--agent", m.socket()}, io.Discard, m.t.Output()); code != 0 {
				m.t.Errorf("the announcer of %s ended with %d", nodeName(m.n), code)
			}
			return nil
		})
	}()
	m.stop = func() { cancel(); <-done }
}

// kill ends agent and announcer.
func (m *machine) kill() {
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
	m.stopAgent()
}

// answer is one answer that a client got.
type answer struct {
	node string
	at   time.Time
}

// client asks an address again and again who answers there.
type client struct {
	mu   sync.Mutex
	list []answer
}

func (c *cluster) client(ns *tap.Namespace, a netip.Addr) *client {
	c.t.Helper()
	var conn net.Conn
	must(c.t, ns.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(a, echoPort).String())
		return err
	}))
	out := &client{}
	done := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			_, _ = conn.Write([]byte("who"))
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	both.Go(func() {
		buf := make([]byte, 100)
		for {
			n, err := conn.Read(buf)
			select {
			case <-done:
				return
			default:
			}
			if err != nil { // an ICMP error; the next answer may come all the same
				continue
			}
			out.mu.Lock()
			out.list = append(out.list, answer{string(buf[:n]), time.Now()})
			out.mu.Unlock()
		}
	})
	c.t.Cleanup(func() { close(done); _ = conn.Close(); both.Wait() })
	return out
}

// since returns the answers since a time.
func (c *client) since(from time.Time) []answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, _ := slices.BinarySearchFunc(c.list, from, func(a answer, t time.Time) int { return a.at.Compare(t) })
	return slices.Clone(c.list[i:])
}

// by reports whether the last answer is a node's, and not older than that.
func (c *client) by(node string, from time.Time) bool {
	l := c.since(from)
	return len(l) > 0 && l[len(l)-1].node == node
}

// gap returns the longest time without an answer.
func gap(from time.Time, list []answer) (longest time.Duration) {
	for _, a := range list {
		longest, from = max(longest, a.at.Sub(from)), a.at
	}
	return longest
}

func (c *cluster) outside() *tap.Namespace {
	ns := c.lan.host(100)
	for _, p := range []string{"192.0.2.0/24", "2001:db8::/64"} {
		must(c.t, tap.AddRoute(ns, "eth0", tap.Route{Dst: netip.MustParsePrefix(p)}))
	}
	return ns
}

// machine returns the node that is n-th for an address.
func (c *cluster) machine(a netip.Addr, n int) *machine {
	name := c.plan(c.machines[0]).Links[slices.Index(c.addrs, a)].Ranked[n]
	return c.machines[slices.IndexFunc(c.machines, func(m *machine) bool { return nodeName(m.n) == name })]
}

// A client outside reaches an address at the node whose turn it is, of both families. When that node dies, the next
// takes the address over, and gives it back when the node is there again. That an agent starts again moves nothing.
func TestAnnounces(t *testing.T) {
	c := newCluster(t, 3, addr4, addr6)
	ns := c.outside()
	for _, a := range c.addrs {
		t.Run(a.String(), func(t *testing.T) {
			outside := c.client(ns, a)
			first, second := c.machine(a, 0), c.machine(a, 1)
			begun := time.Now()
			await.Until(t, "the first node to answer", func() bool { return outside.by(nodeName(first.n), begun) })

			restartMovesNothing(t, c, first, second, outside)

			ended := time.Now()
			first.stop()
			await.Until(t, "the second node to answer, since the announcer of the first has ended", func() bool { return outside.by(nodeName(second.n), ended) })
			t.Logf("the announcer alone ends: the next node answers after %s", time.Since(ended))
			first.startAnnouncer()
			await.Until(t, "the first node to answer, with another announcer", func() bool { return outside.by(nodeName(first.n), time.Now().Add(-50*time.Millisecond)) })

			killed := time.Now()
			first.kill()
			c.lan.plug(first.n, false)
			await.Until(t, "the second node to answer", func() bool { return outside.by(nodeName(second.n), killed) })
			// It is 0.7 s and the work where the machine is not busy with something else.
			if longest := gap(killed, outside.since(killed)); longest > 5*time.Second {
				t.Errorf("failover: no answer for %s", longest)
			} else {
				t.Logf("failover: no answer for %s", longest)
			}

			back := time.Now()
			c.lan.plug(first.n, true)
			c.startAgent(first)
			first.startAnnouncer()
			await.Until(t, "the first node to answer again", func() bool { return outside.by(nodeName(first.n), back) })
			t.Logf("back: no answer for %s", gap(back, outside.since(back)))
		})
	}
}

// restartMovesNothing starts the agent of the announcer again until it was silent for less than others wait, and sees
// to it that nothing moved then. The machine may be busy, so each restart is shorter than the one before.
func restartMovesNothing(t *testing.T, c *cluster, first, second *machine, outside *client) {
	t.Helper()
	answered := func() time.Time {
		for _, b := range second.mesh.Beats() {
			if b.Name == nodeName(first.n) {
				return b.Answered
			}
		}
		return time.Time{}
	}
	for i := range time.Duration(20) {
		// A slow restart moves the address, and it may do so only afterwards.
		await.Until(t, "the first node alone to answer for a while", func() bool {
			list := outside.since(time.Now().Add(-2 * time.Second))
			others := slices.ContainsFunc(list, func(a answer) bool { return a.node != nodeName(first.n) })
			return len(list) > 0 && !others && time.Since(answered()) < announce.Patience/4
		})
		began, last := time.Now(), answered()
		first.stopAgent()
		away := (300 - 10*i) * time.Millisecond // as long as an agent takes to start, at first
		time.Sleep(away)
		c.startAgent(first)
		await.Until(t, "the second node to hear of the first", func() bool { return answered().After(began.Add(away)) })
		silent := answered().Sub(last)
		await.Until(t, "the first node to answer", func() bool { return outside.by(nodeName(first.n), time.Now().Add(-50*time.Millisecond)) })
		list := outside.since(began)
		moved := slices.ContainsFunc(list, func(a answer) bool { return a.node != nodeName(first.n) })
		t.Logf("restart: the agent was silent for %s, moved %v, no answer for %s", silent, moved, gap(began, list))
		if silent < announce.Patience {
			if moved {
				t.Error("a restart of the agent moved an address")
			}
			return
		}
	}
	t.Error("no restart of the agent was over before others had waited for long enough")
}

// An address that somebody else answers for is told, and left to him.
func TestConflict(t *testing.T) {
	c := newCluster(t, 2, taken)
	stranger := c.lan.host(50)
	must(t, tap.AddAddr(stranger, "eth0", netip.PrefixFrom(taken, 32)))
	(&machine{t: t, n: 50, ns: stranger}).serve(taken)
	first := c.machine(taken, 0)
	var text string
	await.Until(t, "a conflict to be told", func() bool {
		for _, p := range first.told.Problems() {
			text = p.String()
			if strings.Contains(text, "is answered for by") {
				return true
			}
		}
		return false
	})
	if !strings.HasPrefix(text, "Service d/web: on node "+nodeName(first.n)+": 192.0.2.2 is answered for by ") {
		t.Error(text)
	}
	began := time.Now()
	outside := c.client(c.outside(), taken)
	await.Until(t, "a hundred answers", func() bool { return len(outside.since(began)) >= 100 })
	for _, a := range outside.since(began) {
		if a.node != nodeName(50) {
			t.Fatalf("%s answers for an address that another has", a.node)
		}
	}
}
