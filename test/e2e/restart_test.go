package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/test/lab"
)

const (
	// restartsVariable says how often TestRestart restarts the agent and how many connections there are of each kind,
	// as 10x1000. recordVariable names a document whose record of the measurement it replaces.
	restartsVariable = "TAPESTRY_RESTARTS"
	recordVariable   = "TAPESTRY_RESTARTS_RECORD"

	// lastClients is how many pods are clients, and lastOutside from how many addresses clients outside come: nobody
	// gets more of a node's connections than is left to all others.
	lastClients = 2
	lastOutside = 8
	// mostSockets bounds the UDP sockets of each kind: an agent that may have 20,000 descriptors keeps 781 for pods
	// that speak to the outside, and 937 for clients of node ports.
	mostSockets = 400
	// mostRest is the time between two restarts at most.
	mostRest = 6 * time.Second
)

// restartNumbers returns how many connections of each kind TestRestart keeps, and how often the agent restarts.
func restartNumbers(t *testing.T) (connections, restarts int) {
	connections, restarts = 24, 4
	if s := os.Getenv(restartsVariable); s != "" {
		if _, err := fmt.Sscanf(s, "%dx%d", &restarts, &connections); err != nil || connections%lastClients != 0 {
			t.Fatalf("%s=%s: expected RESTARTSxCONNECTIONS, as in 10x1000", restartsVariable, s)
		}
	}
	return connections, restarts
}

// lastYAML has a server on each node, clients, and Services of every kind that lead to the servers.
func lastYAML() string {
	text := nodesYAML
	for _, server := range [][2]string{{"near", "node-1"}, {"far", "node-2"}} {
		text += strings.Replace(podYAML(server[0], server[1]), "labels: {", "labels: {last: both, ", 1)
	}
	for i := range lastClients {
		text += podYAML(fmt.Sprint("client-", i), "node-1")
	}
	service := func(name, notes, spec string, nodePort string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %[1]s, annotations: {%[2]s}}\nspec:\n  %[3]s\n"+
			"  ports: [{name: tcp, port: %[4]d%[5]s}, {name: udp, port: %[4]d, protocol: UDP%[5]s}]\n", name, notes, spec, lastPort, nodePort)
	}
	pool := "---\napiVersion: tapestry.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: %s}\nspec: {%s, autoAssign: false}\n"
	const lb = "type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n  selector: {last: both}"
	return text + service("near-last", "", "type: NodePort\n  selector: {app: near}", ", nodePort: 30091") +
		service("far-last", "", "type: NodePort\n  selector: {app: far}", ", nodePort: 30092") +
		fmt.Sprintf(pool, "nodes", "nodes: {}") + fmt.Sprintf(pool, "routed", "addresses: [198.18.7.0/24]") +
		service("at-node", "tapestry.dev/address-pool: nodes", lb, "") + service("routed", "tapestry.dev/load-balancer-ips: 198.18.7.1", lb, "")
}

// restartRow is a row of the table: what it is about, which helper has it, and where that finds the server.
type restartRow struct {
	name, network string
	outside       bool // the clients are
	addr          string
	got           lasted
}

// TestRestart: what an agent translates and relays goes on while it is killed and replaced by another build, again and
// again, and Services change a hundred times a second. New connections wait for the next agent; only one that was
// accepted in the moment of a SIGKILL may be reset.
func TestRestart(t *testing.T) {
	count, restarts := restartNumbers(t)
	rest := min(mostRest, time.Duration(count)*6*time.Millisecond)
	limit := testTime + time.Duration(count)*200*time.Millisecond + time.Duration(restarts)*(10*time.Second+rest)
	other := anotherBuild(t)
	churn := newChurn(t)
	c := upWith(t, limit, lab.Options{Name: "restart", LoadBalancers: balancers[:1], Files: []string{churn.file}}, lastYAML())
	rows, fromOutside := c.restartRows(t)
	for _, where := range []lab.Target{lab.Pod("near"), lab.Pod("far"), lab.Outside()} {
		c.begin(t, where, "last-serve", fmt.Sprint(":", lastPort))
	}
	load := loadAverage()
	var clients []*helper
	for i := range lastClients {
		clients = append(clients, c.lasting(t, lab.Pod(fmt.Sprint("client-", i)), count/lastClients, count, "-", rows, false))
	}
	outside := c.lasting(t, lab.Outside(), count, count, fromOutside, rows, true)

	churn.begin(t, c.addr(t, "near", false), c.addr(t, "far", false))
	began, applied := time.Now(), uint64(0)
	builds := []string{theProduct(t), other}
	for i := range restarts {
		time.Sleep(rest) // what a restart stalls is told apart from what the one before has stalled
		applied += c.snapshots(t, "node-1")
		before := nodeOf(c.status(t), "node-1").PID
		if i%2 == 0 {
			if err := c.KillAgent(c.ctx, "node-1", syscall.SIGKILL, false); err != nil {
				t.Fatal(err)
			}
		} else if err := c.UpgradeAgent(c.ctx, "node-1", builds[(i/2+1)%2]); err != nil {
			t.Fatal(err)
		}
		pid := nodeOf(c.until(t, "another agent is ready", func(st *lab.Status) bool {
			n := nodeOf(st, "node-1")
			return n.PID != before && n.Agent == "ready"
		}), "node-1").PID
		if exe, want := strings.TrimSpace(c.run0(t, lab.Node("node-1"), "readlink", fmt.Sprintf("/proc/%d/exe", pid))), builds[(i+1)/2%2]; exe != want {
			t.Errorf("after restart %d the agent is %s, want %s", i+1, exe, want)
		}
	}
	changes, took := churn.end(), time.Since(began)
	churn.inForce(t, c)
	for _, h := range clients {
		collect(t, h, rows, false)
	}
	collect(t, outside, rows, true)

	head := fmt.Sprintf("%d restarts of node-1's agent, by turns by SIGKILL and by an update to another build; meanwhile %.0f changes of Services a second, "+
		"of which its agents applied %d snapshots.", restarts, float64(changes)/took.Seconds(), applied)
	table := restartTable(rows)
	t.Logf("%s\n%s", head, table)
	record(t, os.Getenv(recordVariable), c.told(t, load)+head+"\n\n"+table)
	for _, row := range rows {
		g := &row.got
		want := min(count, cmp.Or(map[string]int{"udp": mostSockets}[row.network], count))
		if g.Connections != want || g.Cut+g.Wrong+g.Moved+g.Late > 0 || g.AwakeMillis > 1000*stall.Seconds() || g.Refused+g.Reset > restarts || g.Bytes == 0 {
			t.Errorf("%s: %+v", row.name, row.got)
		}
		if g.Lost > g.Sent/2 {
			t.Errorf("%s: %d of %d datagrams were lost", row.name, g.Lost, g.Sent)
		}
	}
	log, err := os.ReadFile(filepath.Join(c.Dir, "nodes", "node-1", "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(log, []byte("found the relayed connections of the agent before")); n < restarts {
		t.Errorf("connections went on in %d of %d agents", n, restarts)
	}
}

// restartRows returns the rows without results, once clients outside can have them, and the addresses from which those
// come.
func (c *cluster) restartRows(t *testing.T) (rows []*restartRow, from string) {
	t.Helper()
	node, out := c.addr(t, "node-1", false), at(c.addr(t, "outside", false), lastPort)
	c.set(t, "node-1", "net/ipv4/conf/all/rp_filter", "1")
	c.run0(t, lab.Outside(), "ip", "route", "replace", balancers[0].String(), "via", node.String())
	var list []string
	for i := range lastOutside {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + i)})
		c.run0(t, lab.Outside(), "ip", "addr", "add", whole(a), "dev", "lo")
		list = append(list, a.String())
	}
	near, far := at(c.addr(t, "svc/near-last", false), lastPort), at(c.addr(t, "svc/far-last", false), lastPort)
	routed := at(addresstest.Prefixes("198.18.7.1/32")[0].Addr(), lastPort)
	return []*restartRow{
		{name: "ClusterIP, pod here", network: "tcp", addr: near},
		{name: "ClusterIP, pod elsewhere", network: "tcp", addr: far},
		{name: "NodePort, pod here", network: "tcp", outside: true, addr: at(node, 30091)},
		{name: "NodePort, pod elsewhere", network: "tcp", outside: true, addr: at(node, 30092)},
		{name: "LoadBalancer at the node's address, pods here and elsewhere", network: "tcp", outside: true, addr: at(node, lastPort)},
		{name: "LoadBalancer of a pool, routed, pods here and elsewhere", network: "tcp", outside: true, addr: routed},
		{name: "to the outside", network: "tcp", addr: out},
		{name: "UDP: ClusterIP, pod here", network: "udp", addr: near},
		{name: "UDP: ClusterIP, pod elsewhere", network: "udp", addr: far},
		{name: "UDP: NodePort, pod here", network: "udp", outside: true, addr: at(node, 30091)},
		{name: "UDP: NodePort, pod elsewhere", network: "udp", outside: true, addr: at(node, 30092)},
		{name: "UDP: to the outside", network: "udp", addr: out},
	}, strings.Join(list, ",")
}

// lasting begins the connections of clients in one place: count to each address, of all that there are.
func (c *cluster) lasting(t *testing.T, where lab.Target, count, all int, from string, rows []*restartRow, outside bool) *helper {
	t.Helper()
	sockets := min(count, mostSockets*count/all)
	args := []string{"last", fmt.Sprint(count), fmt.Sprint(sockets), fmt.Sprint(all), from}
	for _, row := range rows {
		if row.outside == outside {
			args = append(args, row.network+"/"+row.addr)
		}
	}
	return c.begin(t, where, args...)
}

// collect ends a helper, and adds to the rows what it has seen.
func collect(t *testing.T, h *helper, rows []*restartRow, outside bool) {
	t.Helper()
	got := decode[[]lasted](t, h.end(t))
	for _, row := range rows {
		if row.outside == outside {
			row.got, got = row.got.with(got[0]), got[1:]
		}
	}
}
