package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
	"tapestry.dev/tapestry/test/serve"
)

// plainUDP answers datagrams at a port on all addresses of both families until the input ends: PORT NAME SIZE. As most
// servers do, it leaves to the kernel which address an answer leaves from. An answer has at least SIZE bytes.
func plainUDP(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	var size int
	if _, err := fmt.Sscan(args[2], &size); err != nil {
		return err
	}
	for _, network := range []string{"udp4", "udp6"} {
		pc, err := net.ListenPacket(network, ":"+args[0])
		if err != nil {
			return err
		}
		defer pc.Close()
		go func() {
			buf := make([]byte, 4096)
			for {
				n, client, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				var a serve.Answer
				a.Pod, a.Proto, a.Client, a.Got = args[1], "udp", client.String(), strings.TrimSpace(string(buf[:n]))
				text, _ := json.Marshal(a)
				_, _ = pc.WriteTo(append(text, strings.Repeat(" ", max(1, size-len(text)-1))+"\n"...), client)
			}
		}()
	}
	started()
	<-ctx.Done()
	return nil
}

// TestHostServers asks UDP servers of nodes from pods of the same node and of the other, and from the nodes, by the
// node's address and by a Service for hostNetwork pods. The server's kernel chooses the address that an answer leaves
// from, which is not the one that was asked. The client must hear it from the one that was
// (kubernetes/kubernetes#95565).
func TestHostServers(t *testing.T) {
	hosts := ""
	for _, name := range []string{"host-1", "host-2"} {
		hosts += strings.Replace(podYAML(name, "node"+name[4:]), "spec:\n", "spec:\n  hostNetwork: true\n", 1) +
			strings.ReplaceAll(serviceYAML(name, name, 0), "targetPort: 9000", "targetPort: 9100") +
			strings.ReplaceAll(serviceYAML(name+"-large", name, 0), "targetPort: 9000", "targetPort: 9101")
	}
	c := up(t, "hostservers", nodesYAML+podYAML("client", "node-1")+hosts)
	for _, name := range []string{"host-1", "host-2"} {
		node := "node" + name[4:]
		c.begin(t, lab.Node(node), "plain-udp", "9100", name, "0")
		c.begin(t, lab.Node(node), "plain-udp", "9101", name, "5000") // in several fragments
	}
	want := map[string]string{} // who answers at an address
	for _, v6 := range []bool{false, true} {
		for _, host := range []string{"host-1", "host-2"} {
			node := c.addr(t, "node"+host[4:], v6)
			want[at(node, 9100)], want[at(node, 9101)] = host, host
			want[at(c.addr(t, "svc/"+host, v6), 81)], want[at(c.addr(t, "svc/"+host+"-large", v6), 81)] = host, host
		}
	}
	addrs := slices.Collect(maps.Keys(want))
	for _, where := range []lab.Target{lab.Pod("client"), lab.Node("node-1")} {
		got := decode[map[string]probe.Answer](t, c.run(t, where, append([]string{"ask-udp"}, addrs...)...))
		for to, host := range want {
			if a := got[to]; a.Error != "" || a.Pod != host {
				t.Errorf("%v asks %s: answered by %q, %q; want it to be %s", where, to, a.Pod, a.Error, host)
			}
		}
	}
}

// askUDP asks servers at several addresses at once, and prints their answers by address.
func askUDP(ctx context.Context, addrs []string) error {
	answers := map[string]probe.Answer{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, addr := range addrs {
		asking.Go(func() {
			a := probe.Ask(ctx, probe.Request{Network: "udp", Addr: addr, Timeout: 30 * time.Second})
			mu.Lock()
			defer mu.Unlock()
			answers[addr] = a
		})
	}
	asking.Wait()
	return print(answers)
}
