package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
)

// lead is a proxy that makes every connection and datagram that it gets anew, until the input ends: AT TO. It prints
// how many connections there were, and how many datagrams.
func lead(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	in, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close(); in.Close() })
	var conns, datagrams atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		ways := map[string]net.Conn{}
		buf := make([]byte, 1<<16)
		for {
			n, from, err := in.ReadFrom(buf)
			if err != nil {
				return
			}
			datagrams.Add(1)
			if ways[from.String()] == nil {
				if ways[from.String()], err = net.Dial("udp", args[1]); err != nil {
					return
				}
			}
			_, _ = ways[from.String()].Write(buf[:n])
		}
	})
	started()
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		conns.Add(1)
		go func() {
			defer c.Close()
			on, err := net.Dial("tcp", args[1])
			if err != nil {
				return
			}
			defer on.Close()
			go func() { defer c.Close(); _, _ = io.Copy(c, on) }()
			_, _ = io.Copy(on, c)
		}()
	}
	wg.Wait()
	return print([2]int64{conns.Load(), datagrams.Load()})
}

const circleYAML = `---
apiVersion: v1
kind: Service
metadata: {name: circle}
spec: {type: NodePort, ports: [{name: t, port: 80, nodePort: 30183}, {name: u, port: 80, protocol: UDP, nodePort: 30183}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: circle-1, labels: {kubernetes.io/service-name: circle}}
addressType: IPv4
endpoints: [{addresses: [OUTSIDE]}]
ports: [{name: t, port: 20183}, {name: u, port: 20183, protocol: UDP}]
`

// TestCircle: the endpoint of a Service is a proxy outside that leads back to the Service's node port. No circle
// begins: nothing is dialled outside for who comes by a node port. A pod that asks the Service gets as far as the
// proxy, once.
func TestCircle(t *testing.T) {
	const outside = "172.31.0.1" // of the namespace outside
	c := up(t, "circle", baseYAML+strings.ReplaceAll(circleYAML, "OUTSIDE", outside))
	node, service := at(c.addr(t, "node-1", false), 30183), at(c.addr(t, "svc/circle", false), 80)
	for _, k := range []struct {
		from   lab.Target
		to     string
		rounds int64 // for each time that the client asks
	}{
		{lab.Node("node-2"), node, 0},
		{lab.Pod("client"), service, 1},
	} {
		proxy := c.begin(t, lab.Outside(), "lead", outside+":20183", node)
		for _, network := range []string{"tcp", "udp"} {
			if got := c.ask(t, k.from, network, k.to, "--timeout", "5s"); got.Error == "" {
				t.Errorf("%s: an answer from nobody: %+v", network, got)
			}
		}
		rounds := decode[[2]int64](t, proxy.end(t))
		t.Logf("from %v a connection went %d rounds, and a datagram %d", k.from, rounds[0], rounds[1])
		for _, n := range rounds {
			if n > 8*k.rounds || n < k.rounds { // a client may ask again
				t.Errorf("from %v: rounds of connections and datagrams: %d, want %d each", k.from, rounds, k.rounds)
				break
			}
		}
	}
	// All that was dialled by a node port is given up in the end.
	await.Until(t, "the connections are gone", func() bool {
		return c.counters(t, "node-1").Of("tapestry_host_port_conversations")["tcp"] == 0
	})
}
