package node_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
)

// TestChangesLoseNothing: while the nodes get new states of the cluster without a pause, a client sends single
// datagrams and opens connections, each from a new port. Endpoints come and go, ready and not, but all of them serve
// on; so each is answered, and no node drops a packet.
func TestChangesLoseNothing(t *testing.T) {
	const rounds = 100
	c := nodetest.New(t, 2)
	from, near, far := c.Members[0].Pod(3), c.Members[0].Pod(4), c.Members[1].Pod(4)
	serve(t, near, 8080)
	serve(t, far, 8080)
	c.Serve(webAt(near, far))
	var to []netip.AddrPort
	for family, vip := range webAt().ClusterIPs {
		to = append(to, netip.AddrPortFrom(far.Addrs[family], 8080), netip.AddrPortFrom(near.Addrs[family], 8080), netip.AddrPortFrom(vip, 80))
		if _, err := dial(t, from, "udp", to[len(to)-3]).ask("hello"); err != nil { // WireGuard may lose its first packets
			t.Fatal(err)
		}
	}
	before := []map[string]uint64{c.Members[0].Packets().Drops, c.Members[1].Packets().Drops}

	var changing sync.WaitGroup
	defer changing.Wait()
	stop := make(chan struct{})
	defer close(stop)
	changing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			one := []*nodetest.Pod{near, far}[i/3%2]
			w := webAt(near, far)
			switch i % 3 {
			case 1:
				w.Endpoints[i/3%2].Ready = false
			case 2:
				w = webAt(one)
			}
			c.Members[0].SetHostAddrs(netip.AddrFrom4([4]byte{192, 0, 2, byte(50 + i%100)}))
			c.Serve(w)
		}
	})
	for range rounds {
		for _, at := range to {
			once(t, from, "udp", at)
			once(t, from, "tcp", at)
		}
	}
	for i, m := range c.Members {
		for reason, n := range m.Packets().Drops {
			if n != before[i][reason] {
				t.Errorf("%s: %d packets dropped as %s", m.Name, n-before[i][reason], reason)
			}
		}
	}
}

// webAt is web without a node port. Its endpoints are known by their addresses alone, so connections go on when one
// leaves the Service.
func webAt(pods ...*nodetest.Pod) *services.Service {
	s := web(0, pods...)
	for i := range s.Endpoints {
		s.Endpoints[i].ID = s.Endpoints[i].Addr.String()
	}
	return s
}

// once opens a connection, sends once and waits for the answer.
func once(t *testing.T, from *nodetest.Pod, network string, at netip.AddrPort) {
	t.Helper()
	c := dial(t, from, network, at)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	if _, err := c.Write([]byte("hello\x00")); err != nil {
		t.Fatalf("%s %s: %v", network, at, err)
	}
	if _, err := c.Read(make([]byte, 100)); err != nil {
		t.Fatalf("%s %s: %v", network, at, err)
	}
}
