package node_test

import (
	"context"
	"flag"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
)

// server answers connections to a pod until it is told to end: then it closes its socket at once, and answers whom it
// has accepted, as a server does that shuts down in order.
type server struct {
	pod  *nodetest.Pod
	ends func()
}

func startServer(t *testing.T, p *nodetest.Pod) server {
	t.Helper()
	l, err := p.Listen(netip.AddrPortFrom(p.Addrs[0], 8080))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go converse(p.Name, c)
		}
	}()
	ends := sync.OnceFunc(func() { _ = l.Close() })
	t.Cleanup(ends)
	return server{p, ends}
}

// rollout replaces ten pods of a Service, five on each of two nodes, one after the other, while clients on a third node
// connect. Each pod closes its socket when its own node knows that it terminates (or, if known is false, does not know
// even that), and is gone before any other node hears of it. It returns how many of at least n connections failed.
func rollout(t *testing.T, n int64, known bool) (asked, failed int64) {
	c := nodetest.New(t, 3)
	clients := []*nodetest.Pod{c.Members[0].Pod(3), c.Members[0].Pod(4)}
	var old []server
	for i := range 10 {
		old = append(old, startServer(t, c.Members[1+i%2].Pod(byte(10+i))))
	}
	pods := func(list []server) (pods []*nodetest.Pod) {
		for _, s := range list {
			pods = append(pods, s.pod)
		}
		return pods
	}
	only4 := func(s *services.Service) *services.Service {
		s.ClusterIPs = s.ClusterIPs[:1]
		return s
	}
	s := only4(web(0, pods(old)...))
	c.Serve(s)
	to := netip.AddrPortFrom(s.ClusterIPs[0], 80)
	once(t, clients[0], "tcp", to) // the tunnels are up

	ctx, stop := context.WithCancel(t.Context())
	var total, bad atomic.Int64
	var done [8]atomic.Int64 // by client
	// Those that began before the node knew have been accepted when each client has begun twice since: a server gets
	// its signal from the kubelet, which takes longer than a handshake.
	handshakes := func() {
		var before [len(done)]int64
		for i := range done {
			before[i] = done[i].Load()
		}
		await.Until(t, "handshakes that have begun are over", func() bool {
			for i := range done {
				if done[i].Load() < before[i]+2 {
					return false
				}
			}
			return true
		})
	}
	var wg sync.WaitGroup
	for i := range done {
		wg.Go(func() {
			for ctx.Err() == nil {
				dialing, cancel := context.WithTimeout(context.Background(), await.Patience)
				conn, err := clients[i%2].Dial(dialing, "tcp", to)
				cancel()
				if err == nil {
					_, err = client{conn, "tcp"}.ask("hello")
					_ = conn.Close()
				}
				total.Add(1)
				done[i].Add(1)
				if err != nil {
					bad.Add(1)
					t.Logf("connection %d: %v", total.Load(), err)
				}
			}
		})
	}
	fresh := old
	for i := range old {
		goes := old[i]
		node := c.Members[1+i%2]
		fresh = append(fresh[1:], startServer(t, node.Pod(byte(30+i))))
		// All nodes learn of the new pod, and the last one that is gone.
		c.Serve(only4(web(0, append(pods(fresh), goes.pod)...)))
		before := total.Load()
		await.Until(t, "connections go to all", func() bool { return total.Load() >= before+n/20 })
		if known {
			changed(t, node, ends(goes.pod))
		}
		handshakes()
		goes.ends()
		before = total.Load()
		await.Until(t, "connections come while other nodes lag", func() bool { return total.Load() >= before+n/40 })
		if known {
			changed(t, node, left(goes.pod))
		}
		handshakes() // what the pod was asked is answered
		if !node.Detach("default/" + goes.pod.Name) {
			t.Fatal("it was not attached")
		}
		before = total.Load()
		await.Until(t, "connections come while other nodes lag", func() bool { return total.Load() >= before+n/40 })
	}
	stop()
	wg.Wait()
	return total.Load(), bad.Load()
}

var rolloutConnections = flag.Int64("rollout-connections", 2000, "how many connections come during TestRolloutWithoutPreStop")

// TestRolloutWithoutPreStop: no connection fails while ten pods are replaced, although none of them waits
// before it closes its socket, and the clients' node hears of it late. Where the pod's own node is late as well, some
// fail.
func TestRolloutWithoutPreStop(t *testing.T) {
	began, n := time.Now(), *rolloutConnections
	if asked, failed := rollout(t, n, true); failed != 0 || asked < n {
		t.Errorf("%d of %d connections failed, want none of %d", failed, asked, n)
	} else {
		t.Logf("%d of %d failed, in %v", failed, asked, time.Since(began).Round(time.Millisecond))
	}
	if asked, failed := rollout(t, 500, false); failed == 0 {
		t.Errorf("none of %d connections failed without steering: this test shows nothing", asked)
	} else {
		t.Logf("without steering %d of %d failed", failed, asked)
	}
}
