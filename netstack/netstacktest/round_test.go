package netstacktest_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

var (
	// nodeRanges are the node's own, which lie in routedRanges: those that the host routes into its host TAP.
	nodeRanges   = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00::/64")}
	routedRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")}
	// nobodys are addresses of routedRanges that no node has.
	nobodys = []netip.Addr{netip.MustParseAddr("10.244.200.1"), netip.MustParseAddr("fd00:0:0:200::1")}
)

// hostTAP makes a real host TAP in the tests' own network, and returns its descriptor.
func hostTAP(t *testing.T) *os.File {
	t.Helper()
	k := keeper.New()
	t.Cleanup(func() {
		_ = k.Close()
		if err := hosttap.Remove(nil); err != nil {
			t.Error(err)
		}
	})
	if err := hosttap.Ensure(nil, k, hosttap.Config{PodCIDRs: nodeRanges, Pods: routedRanges, MTU: 1420, Owner: os.Geteuid()}); err != nil {
		t.Fatal(err)
	}
	it, err := k.Get(hosttap.Key)
	if err != nil {
		t.Fatal(err)
	}
	return it.File
}

// roundPath makes a node with a real host TAP, before its first Config. The node owns f.
func roundPath(t *testing.T, f *os.File) *netstack.Path {
	t.Helper()
	flows, err := flow.Open(make([]byte, flow.Size(64)), flow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path, err := netstack.New(netstack.Options{Flows: flows, MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = path.Close() })
	dev, err := tap.NewDevice(f, tap.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := path.Attach(netstack.AttachmentConfig{Name: hosttap.Key, Kind: netstack.HostTAP, MAC: tap.HostMAC, Addrs: hosttap.Addrs(nodeRanges)}, dev); err != nil {
		_ = dev.Close()
		t.Fatal(err)
	}
	return path
}

func setRound(t *testing.T, path *netstack.Path, cluster []netip.Prefix) {
	t.Helper()
	if err := path.Set(netstack.Config{PodCIDRs: nodeRanges, ClusterCIDRs: cluster, MTU: 1420}, nothing{}, nil); err != nil {
		t.Fatal(err)
	}
}

// refusedOnce waits for a socket's error, and fails when more than a few packets went on meanwhile.
func refusedOnce(t *testing.T, path *netstack.Path, fd int) error {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for giveUp := netstacktest.GiveUp(t); fds[0].Revents == 0; {
		if _, err := unix.Poll(fds, 20); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if s := path.Stats(); s.Verdicts[netstack.ToStack.String()] > 20 {
			t.Fatalf("the packet goes round: %v, %+v", s, path.Stack().Stats().UDP.Sockets)
		}
		select {
		case <-giveUp:
			t.Fatalf("no error came: %v", path.Stats())
		default:
		}
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		t.Fatal(err)
	}
	return unix.Errno(code)
}

// What a pod sends to an address that the host routes into its host TAP, and that nobody has, is refused. It goes out
// of a host socket once at the most, when the node does not know of the range, and not at all when it does.
func TestNothingGoesRound(t *testing.T) {
	for _, c := range []struct {
		name    string
		cluster []netip.Prefix
		dialled uint64 // host sockets that may be used for one packet
	}{
		{"the range is known", routedRanges, 0},
		{"the range is not known", nodeRanges, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := roundPath(t, hostTAP(t))
			ns, _, _ := pod(t, path, 10, 0)
			setRound(t, path, c.cluster)
			out := func() uint64 { return path.Stats().Verdicts[netstack.ToStack.String()] }
			before, packets := out(), uint64(0)
			for _, to := range nobodys {
				for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
					packets++
					fd, err := socket(t, ns, kind, netip.AddrPortFrom(to, 9))
					if kind == unix.SOCK_DGRAM && err == nil {
						_, err = unix.Write(fd, []byte("once"))
					}
					if err != nil && !errors.Is(err, unix.EINPROGRESS) {
						t.Fatal(err)
					}
					if err := refusedOnce(t, path, fd); !errors.Is(err, unix.EHOSTUNREACH) {
						t.Errorf("%s, socket type %d: %v, want no route to host", to, kind, err)
					}
				}
			}
			// A packet is counted after it was handled, when the pod may have heard of it already.
			await.Until(t, "all are counted", func() bool { return out()-before >= packets*c.dialled })
			if n := out() - before; n > packets*c.dialled {
				t.Errorf("%d packets went out of host sockets for %d of a pod, want %d for each", n, packets, c.dialled)
			}
			if held := path.Stack().Stats().UDP.Sockets.Held; uint64(held) > 2*c.dialled {
				t.Errorf("%d host sockets are open", held)
			}
		})
	}
}

// Frames that wait in the host TAP while there is no agent are refused when one reads them.
func TestFramesOfBefore(t *testing.T) {
	path := roundPath(t, hostTAP(t))
	const each = 5
	for _, to := range nobodys {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range each {
			if _, err := c.Write([]byte("waits")); err != nil {
				t.Fatal(err)
			}
		}
	}
	setRound(t, path, nodeRanges)
	giveUp, tick := netstacktest.GiveUp(t), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		s := path.Stats()
		if out := s.Verdicts[netstack.ToStack.String()]; out > 0 {
			t.Fatalf("%d packets of the host went out of host sockets: %v", out, s)
		}
		if s.Drops[netstack.NoRoute.String()] >= each*uint64(len(nobodys)) {
			break
		}
		select {
		case <-tick.C:
		case <-giveUp:
			t.Fatalf("not all were refused: %v", s)
		}
	}
}
