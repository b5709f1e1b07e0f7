package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// counters prints the counters of the agent behind a socket: SOCKET.
func counters(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := (&localapi.Client{Path: args[0]}).Counters(ctx)
	if err != nil {
		return err
	}
	return print(list)
}

func (c *cluster) counters(t *testing.T, node string) counter.List {
	t.Helper()
	return decode[counter.List](t, c.run(t, lab.Node(node), "counters", filepath.Join(rpc.NodeDir(c.Dir, node), "api.sock")))
}

// transferPort is the port of transfers and sinks in pods, and servicePort the port of their Services.
const (
	transferPort = 7000
	servicePort  = 82
)

// transferService returns a NodePort Service for one pod's transferPort.
func transferService(pod string, nodePort int) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s-transfer}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: %s}
  ports:
  - {name: line, port: %d, targetPort: %d, nodePort: %d}
  - {name: datagram, port: %d, targetPort: %d, nodePort: %d, protocol: UDP}
`, pod, pod, servicePort, transferPort, nodePort, servicePort, transferPort, nodePort)
}

// TestOffloadsOff runs agents without the kernel's offloads, and compares what arrives on every kind of path.
func TestOffloadsOff(t *testing.T) {
	const size = 2 << 20
	for _, test := range []struct {
		name, flags, taps string
		partial           bool // checksums between the nodes
	}{
		{"all", "--tap-csum=false --tap-tso4=false --tap-tso6=false --tap-uso=false --udp-gso=false --udp-gro=false --tunnel-csum=false", "none", false},
		{"ipv4", "--tap-tso4=false --udp-gso=false", "csum,tso6,uso", true},
		{"ipv6-udp", "--tap-tso6=false --tap-uso=false --udp-gro=false", "csum,tso4", true},
		{"tunnel", "--tunnel-csum=false", "csum,tso4,tso6,uso", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := up(t, "no-"+test.name, baseYAML+transferService("near", 30091)+transferService("far", 30092), strings.Fields(test.flags)...)
			for node, taps := range map[string]int{"node-1": 3, "node-2": 2} { // its pods, and its own
				got := c.counters(t, node).Of("tapestry_taps")
				if n := got[test.taps]; n != float64(taps) || len(got) != 1 {
					t.Errorf("%s: TAPs by offloads: %v, want %d with %s", node, got, taps, test.taps)
				}
			}
			c.transfersEverywhere(t, size)
			c.datagramsArrive(t)
			for _, node := range []string{"node-1", "node-2"} {
				list := c.counters(t, node)
				drops, link := list.Of("tapestry_drops_total"), list.Of("tapestry_link_total")
				if drops["tap-down"] > 0 || drops["bad-offload"] > 0 || link["send-errors"] > 0 {
					t.Errorf("%s dropped packets: %v %v", node, drops, link)
				}
				// Most packets that cross nodes, there and back and in both families, are full-size segments of
				// payload.
				sent := link["sent-partial"]
				if test.partial && sent < 4*size/1420 || !test.partial && sent > 0 {
					t.Errorf("%s sent %v packets with partial checksums, want many: %v", node, sent, test.partial)
				}
			}
		})
	}
}

// transfersEverywhere sends and receives size bytes over every kind of path, in both families.
func (c *cluster) transfersEverywhere(t *testing.T, size int) {
	t.Helper()
	listen := ":" + strconv.Itoa(transferPort)
	for _, where := range []lab.Target{lab.Pod("near"), lab.Pod("far"), lab.Outside()} {
		defer c.begin(t, where, "transfer-serve", listen).end(t)
	}
	for _, v6 := range []bool{false, true} {
		client := lab.Pod("client")
		for _, path := range []struct {
			name string
			from lab.Target
			to   string
		}{
			{"on one node", client, at(c.addr(t, "near", v6), transferPort)},
			{"across nodes", client, at(c.addr(t, "far", v6), transferPort)},
			{"ClusterIP here", client, at(c.addr(t, "svc/near-transfer", v6), servicePort)},
			{"ClusterIP there", client, at(c.addr(t, "svc/far-transfer", v6), servicePort)},
			{"NodePort, pod here", lab.Outside(), at(c.addr(t, "node-1", v6), 30091)},
			{"NodePort, pod there", lab.Outside(), at(c.addr(t, "node-1", v6), 30092)},
			{"egress", client, at(c.addr(t, "outside", v6), transferPort)},
			{"from the node", lab.Node("node-1"), at(c.addr(t, "far", v6), transferPort)},
		} {
			got := decode[transferred](t, c.run(t, path.from, "transfer", path.to, strconv.Itoa(size)))
			if !got.There || !got.Back || got.Bytes != int64(size) {
				t.Errorf("%s, to %s: what arrived is not what was sent: %+v", path.name, path.to, got)
			}
		}
	}
}

// datagramsArrive sends UDP superframes on the same node, across nodes, and through Services. A few may be lost, but
// none may be damaged.
func (c *cluster) datagramsArrive(t *testing.T) {
	t.Helper()
	const count = 2000
	for _, v6 := range []bool{false, true} {
		for _, path := range []struct{ server, addr string }{
			{"near", at(c.addr(t, "near", v6), transferPort)},
			{"far", at(c.addr(t, "far", v6), transferPort)},
			{"far", at(c.addr(t, "svc/far-transfer", v6), servicePort)},
		} {
			into := c.begin(t, lab.Pod(path.server), "sink", ":"+strconv.Itoa(transferPort))
			c.run(t, lab.Pod("client"), "flood", path.addr, "80", strconv.Itoa(count))
			got := decode[drained](t, into.end(t))
			if got.Broken > 0 || got.Datagrams != got.Distinct || got.Distinct < count/2 {
				t.Errorf("%s: of %d datagrams arrived %+v", path.addr, count, got)
			}
		}
	}
}
