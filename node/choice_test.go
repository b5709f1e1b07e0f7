package node_test

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// tally is what pods have been asked by UDP. Each conversation has a text of its own, by which it is told from others.
type tally struct {
	mu  sync.Mutex
	who map[string]string // the pod that was asked, by text
}

// serve makes a pod note each conversation, and answer it unless it is silent.
func (y *tally) serve(t *testing.T, p *nodetest.Pod, silent bool) {
	t.Helper()
	for _, a := range p.Addrs {
		pc, err := p.ListenPacket(netip.AddrPortFrom(a, 8080))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pc.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				n, client, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				y.mu.Lock()
				y.who[string(buf[:n])] = p.Name
				y.mu.Unlock()
				if !silent {
					_, _ = pc.WriteTo(answer(p.Name, client, buf[:n]), client)
				}
			}
		}()
	}
}

// asked returns which pod was asked the text, "" if none was.
func (y *tally) asked(text string) string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.who[text]
}

// arrives sends the text until a pod has it, and returns which. It sends again since WireGuard may lose its first
// packets; that is the same conversation, and so goes to the same pod.
func (y *tally) arrives(t *testing.T, text string, send func() error) (name string) {
	t.Helper()
	await.Until(t, "a pod gets "+text, func() bool {
		if name = y.asked(text); name != "" {
			return true
		}
		if err := send(); err != nil {
			t.Fatal(err)
		}
		return false
	})
	return name
}

// dialNodePort connects a client on a node's localhost to a node port.
func dialNodePort(t *testing.T, m *nodetest.Member, network string, port uint16) client {
	t.Helper()
	at, ok := m.HostSocket(network, port)
	if !ok {
		t.Fatalf("nobody listens for the node port %d, %s", port, network)
	}
	conn, err := net.DialTimeout(network, at.String(), await.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{conn, network}
}

// unequal serves the Service web with node port 30080 from two pods on each of two nodes. One of the four, which it
// returns, takes everything and answers nothing.
func unequal(t *testing.T, m balance.Method) (c *nodetest.Cluster, y *tally, pods []*nodetest.Pod, silent *nodetest.Pod) {
	t.Helper()
	c, y = nodetest.New(t, 2), &tally{who: map[string]string{}}
	for i := range 4 {
		p := c.Members[i%2].Pod(byte(10 + i))
		y.serve(t, p, i == 1)
		pods = append(pods, p)
	}
	s := web(30080, pods...)
	s.Balance = m
	c.Serve(s)
	return c, y, pods, pods[1]
}

// TestChoiceOfUnequal: how 200 conversations that stay open are shared out among four pods of which one never answers,
// from a pod and from outside through a node port alike. Only the method that goes by answers avoids the silent one;
// least connections gives each as many as the others have open.
func TestChoiceOfUnequal(t *testing.T) {
	const n, each = 200, 50
	// By chance a pod's part has a standard deviation of 6.1: six of them are passed once in a billion.
	const chance = 37
	for _, tc := range []struct {
		method balance.Method
		off    int // by how much a pod's part may differ from the equal one; -1: it is not looked at
		silent int // what the silent one may get at most; -1: as any other
	}{
		{balance.RoundRobin, 0, -1},
		{balance.Random, chance, -1},
		{balance.LeastConnections, 10, -1},
		{balance.Maglev, chance, -1},
		{balance.Hash, chance, -1},
		{balance.EWMA, -1, 3}, // the others differ by how quick this machine was
	} {
		t.Run(tc.method.String(), func(t *testing.T) {
			c, y, pods, silent := unequal(t, tc.method)
			from := c.Members[0].Pod(3)
			vip := netip.AddrPortFrom(c.Members[0].Config().Services.Services.At(0).ClusterIPs[0], 80)
			for way, open := range map[string]func() client{
				"a pod":     func() client { return dial(t, from, "udp", vip) },
				"node port": func() client { return dialNodePort(t, c.Members[0], "udp", 30080) },
			} {
				got := map[string]int{}
				for i := range n {
					conn, text := open(), fmt.Sprint(way, " ", i)
					name := y.arrives(t, text, func() error {
						_, err := conn.Write([]byte(text))
						return err
					})
					got[name]++
					if name == silent.Name {
						continue
					}
					if _, err := conn.ask(text); err != nil { // an answer may be lost as well, so it asks again
						t.Fatal(err)
					}
				}
				t.Logf("%s: %v, silent is %s", way, got, silent.Name)
				for _, p := range pods {
					if d := got[p.Name] - each; tc.off >= 0 && (d > tc.off || -d > tc.off) {
						t.Errorf("%s: %s got %d of %d, want %d more or less than %d at most", way, p.Name, got[p.Name], n, tc.off, each)
					}
				}
				if tc.silent >= 0 && got[silent.Name] > tc.silent {
					t.Errorf("%s: the silent one got %d of %d, want %d at most", way, got[silent.Name], n, tc.silent)
				}
			}
		})
	}
}
