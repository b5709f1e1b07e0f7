package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
	"tapestry.dev/tapestry/test/probe"
)

// spokenYAML has two nodes with a pod of a local Service each, the router outside, and a machine that is no member of
// the cluster, to be the client. Nodes get addresses in the order of their names, .11 and .12 those of the cluster.
var spokenYAML = nodesYAML + podYAML("near", "node-1") + podYAML("far", "node-2") + `---
apiVersion: v1
kind: Node
metadata: {name: visitor, labels: {tapestry.dev/external: "true"}}
---
apiVersion: tapestry.dev/v1alpha1
kind: AddressPool
metadata: {name: public}
spec: {addresses: [198.18.7.0/28, "2001:db8:1b::/124"]}
---
apiVersion: tapestry.dev/v1alpha1
kind: BGPPeer
metadata: {name: router}
spec: {address: 172.31.0.1, peerASN: 64513, myASN: 65000, holdTimeSeconds: 9}
---
apiVersion: tapestry.dev/v1alpha1
kind: BGPAdvertisement
metadata: {name: hosts}
spec: {pools: [public]}
` + announcedService("web", "web", 1, "Local")

// routerBIRD has one session with each node, for both families, and its kernel send connections to all next hops.
const routerBIRD = `router id 172.31.0.1;
protocol device {}
protocol kernel { merge paths on; ipv4 { import none; export all; }; }
protocol kernel { merge paths on; ipv6 { import none; export all; }; }
template bgp nodes { local 172.31.0.1 as 64513; passive yes; ipv4 { import all; export none; }; ipv6 { import all; export none; }; }
protocol bgp node1 from nodes { neighbor 172.31.0.11 as 65000; }
protocol bgp node2 from nodes { neighbor 172.31.0.12 as 65000; }
`

// spoken is a lab whose nodes speak BGP with the router outside, which runs BIRD. Its state is in dir.
type spoken struct {
	*cluster
	dir string
}

// TestLoadBalancerByBGP has a router learn a load balancer's addresses from two nodes with host TAPs. A client behind
// the router connects by either node to its pod, which sees the client's own address. When a node is cordoned, and when
// the other has no endpoint any more, the router loses that node as the next hop and no other, and the connections by
// the one that stays go on.
func TestLoadBalancerByBGP(t *testing.T) {
	announcer, bird := built(t), program(t, "bird")
	program(t, "birdc")
	yaml := strings.NewReplacer("labels: {app: near}", "labels: {app: web}", "labels: {app: far}", "labels: {app: web}").Replace(spokenYAML)
	c := &spoken{upWith(t, 2*testTime, lab.Options{Name: "bgp", LoadBalancers: balancers, Announced: []string{"bgp"}}, yaml), t.TempDir()}
	c.between(t)
	config := filepath.Join(c.dir, "bird.conf")
	if err := os.WriteFile(config, []byte(routerBIRD), 0o600); err != nil {
		t.Fatal(err)
	}
	c.begin(t, lab.Outside(), "keep", bird, "-f", "-c", config, "-s", filepath.Join(c.dir, "ctl"), "-P", filepath.Join(c.dir, "pid"))
	for _, node := range []string{"node-1", "node-2"} {
		c.begin(t, lab.Node(node), "keep", announcer, "--node", node, "--agent", rpc.AnnounceSocket(c.Dir, node))
	}
	c.routedBy(t, "node-1", "node-2")
	t.Logf("birdc show protocols:\n%s\nbirdc show route:\n%s\nip route:\n%s%s", c.bird(t, "protocols"), c.bird(t, "route"),
		c.run0(t, lab.Outside(), "ip", "route", "show", "198.18.7.1"), c.run0(t, lab.Outside(), "ip", "-6", "route", "show", "2001:db8:1b::1"))
	for _, v6 := range []bool{false, true} {
		own := clientAddrs[v6]
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]bool{}
			await.Until(t, network+" by either node", func() bool {
				a := c.ask(t, lab.Node("visitor"), network, balancer(1, v6, 80), "--timeout", "2s")
				if a.Error == "" && hostOf(a.Client) != own {
					t.Errorf("%s: the pod %s sees %s, want the client's own address %s", network, a.Pod, a.Client, own)
				}
				seen[a.Pod] = a.Error == ""
				return seen["near"] && seen["far"]
			})
		}
	}

	stay := c.cling(t, "far")
	c.edit(t, strings.Replace(yaml, "metadata: {name: node-1}\n", "metadata: {name: node-1}\nspec: {unschedulable: true}\n", 1))
	c.routedBy(t, "node-2")
	c.onlyBy(t, "far")
	t.Logf("node-1 is cordoned: the longest silence of connections by node-2 was %s", stay.unharmed(t))

	c.edit(t, yaml)
	c.routedBy(t, "node-1", "node-2")
	stay = c.cling(t, "near")
	c.edit(t, strings.Replace(yaml, strings.Replace(podYAML("far", "node-2"), "app: far", "app: web", 1), "", 1))
	c.routedBy(t, "node-1")
	c.onlyBy(t, "near")
	t.Logf("node-2 has no endpoint: the longest silence of connections by node-1 was %s", stay.unharmed(t))
}

// clientAddrs are the addresses of the client, by whether they are of IPv6. Those of the router beside it end in 1.
var clientAddrs = map[bool]string{false: "172.31.99.2", true: "fd00:172:99::2"}

// between puts the machine outside between the client and the nodes: it is the only way from one to the others. That
// all are on one link is kept from them.
func (c *spoken) between(t *testing.T) {
	t.Helper()
	client, router := lab.Node("visitor"), lab.Outside()
	for _, key := range []string{"ipv4/conf/all/send_redirects", "ipv4/conf/eth0/send_redirects"} {
		c.run0(t, router, "sh", "-c", "echo 0 > /proc/sys/net/"+key)
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/fib_multipath_hash_policy", "ipv6/fib_multipath_hash_policy"} {
		c.run0(t, router, "sh", "-c", "echo 1 > /proc/sys/net/"+key)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		c.set(t, "visitor", "net/"+family+"/conf/all/accept_redirects", "0")
		c.set(t, "visitor", "net/"+family+"/conf/eth0/accept_redirects", "0")
	}
	c.run0(t, client, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
	for v6, length := range map[bool]string{false: "/24", true: "/64"} {
		own := clientAddrs[v6]
		gateway := strings.TrimSuffix(own, "2") + "1"
		c.run0(t, router, "ip", "addr", "add", gateway+length, "dev", "eth0")
		c.run0(t, client, "ip", "addr", "add", own+length, "dev", "eth0")
		c.run0(t, client, "ip", "route", "replace", "default", "via", gateway)
	}
}

// bird returns what BIRD shows of something.
func (c *spoken) bird(t *testing.T, what ...string) string {
	t.Helper()
	// What BIRD says before it is ready is of no use, and no fault.
	out, _, _, err := c.Output(c.ctx, lab.Outside(), append([]string{program(t, "birdc"), "-s", filepath.Join(c.dir, "ctl"), "show"}, what...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// routedBy waits until the router's kernel has these nodes and no others as next hops, for both families.
func (c *spoken) routedBy(t *testing.T, nodes ...string) {
	t.Helper()
	var got []string
	var table string
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the router had %v last, of %v:\n%s", got, nodes, table)
		}
	})
	for _, v6 := range []bool{false, true} {
		var want []string
		for _, n := range nodes {
			want = append(want, c.addr(t, n, v6).String())
		}
		addr := hostOf(balancer(1, v6, 80))
		await.Until(t, fmt.Sprintf("the router to have %s by %v alone", addr, nodes), func() bool {
			got, table = nil, c.bird(t, "route", "all")+c.bird(t, "protocols", "all")
			words := strings.Fields(c.run0(t, lab.Outside(), "ip", map[bool]string{false: "-4", true: "-6"}[v6], "route", "show", addr))
			for i, w := range words {
				if w == "via" {
					got = append(got, words[i+1])
				}
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		})
	}
}

// onlyBy makes sure that new connections of the client all come to one pod.
func (c *spoken) onlyBy(t *testing.T, pod string) {
	t.Helper()
	const count = 20
	for _, v6 := range []bool{false, true} {
		seen := decode[map[string]int](t, c.run(t, lab.Node("visitor"), "spread", strconv.Itoa(count), balancer(1, v6, 80)))
		if seen[pod] != count {
			t.Errorf("IPv6 %t: of %d new connections came %v, want all to %s", v6, count, seen, pod)
		}
	}
}

// cling has the client keep connections to one pod.
func (c *spoken) cling(t *testing.T, pod string) conversations {
	t.Helper()
	return conversations{c.begin(t, lab.Node("visitor"), "cling", pod, balancer(1, false, 80), balancer(1, true, 80))}
}

// program returns the path of a program that the machine must have.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not here: this test has BIRD for a router, 'apt-get install bird2'", name)
	return ""
}

// built builds tapestry-bgp.
func built(t *testing.T) (exe string) {
	t.Helper()
	exe = filepath.Join(t.TempDir(), "tapestry-bgp")
	if out, err := exec.Command("go", "build", "-o", exe, "tapestry.dev/tapestry/cmd/tapestry-bgp").CombinedOutput(); err != nil {
		t.Fatalf("build the announcer: %v: %s", err, out)
	}
	return exe
}

// keep runs a program until the input ends, which kills it: PROGRAM ARG...
func keep(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	started()
	if err := cmd.Wait(); ctx.Err() == nil {
		return fmt.Errorf("%s has ended: %w", args[0], err)
	}
	return nil
}

// cling keeps a few connections to a pod, of those to each server that come to it, and has questions answered on all of
// them until the input ends, and some more: POD ADDR...
func cling(ctx context.Context, args []string) error {
	const each = 3
	letGo := untilInputEnds(ctx)
	out := map[string]probe.Held{}
	var mu sync.Mutex
	var held sync.WaitGroup
	for _, addr := range args[1:] {
		for n := 0; n < each && letGo.Err() == nil; {
			c, err := new(net.Dialer).DialContext(letGo, "tcp", addr)
			if err != nil {
				return err
			}
			in := bufio.NewReader(c)
			if _, err := in.ReadString('\n'); err != nil { // the greeting
				return err
			}
			pod, err := askOver(c, in)
			if err != nil {
				return err
			}
			if pod != args[0] {
				_ = c.Close()
				continue
			}
			n++
			held.Go(func() {
				defer c.Close()
				h := hold(letGo, c, in)
				mu.Lock()
				defer mu.Unlock()
				out[c.LocalAddr().String()] = h
			})
		}
	}
	started()
	held.Wait()
	return print(out)
}

// hold has questions answered over a connection until letGo is done, and some more.
func hold(letGo context.Context, c net.Conn, in *bufio.Reader) (h probe.Held) {
	for more := 10; more > 0; {
		begun := time.Now()
		if _, err := askOver(c, in); err != nil {
			h.Error = err.Error()
			return h
		}
		h.Rounds++
		h.WorstMillis = max(h.WorstMillis, float64(time.Since(begun).Microseconds())/1000)
		if letGo.Err() != nil {
			more--
		}
	}
	return h
}

// askOver has a question answered over a connection to a server, and returns the pod's name.
func askOver(c net.Conn, in *bufio.Reader) (pod string, err error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, "again"); err != nil {
		return "", err
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	var a probe.Answer
	err = json.Unmarshal([]byte(line), &a)
	return a.Pod, err
}
