package e2e

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// usedUp is what the helper use-up prints.
type usedUp struct {
	// Held is how many connections there were before one failed with Error, after Millis.
	Held   int
	Error  string
	Millis int64
}

// useUp connects to a server again and again until a connection fails, and holds all of them until its input ends.
func useUp(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	var out usedUp
	for out.Error == "" {
		began := time.Now()
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", args[0])
		if err != nil {
			out.Error, out.Millis = err.Error(), time.Since(began).Milliseconds()
			break
		}
		defer c.Close()
		out.Held++
	}
	started()
	<-ctx.Done()
	return print(out)
}

// TestPortsUsedUp has a pod use up all ports of its node towards a server outside. It is told at once, as by its own
// kernel, and so is another pod that wants that server. Other servers, and connections that are there, notice nothing.
func TestPortsUsedUp(t *testing.T) {
	c := up(t, "e2e-ports-used-up", nodesYAML+podYAML("hog", "node-1")+podYAML("other", "node-1"))
	c.begin(t, lab.Outside(), "serve-outside", "server", "9300")
	c.begin(t, lab.Outside(), "serve-outside", "another", "9301")
	noPort := func() float64 {
		list, err := (&localapi.Client{Path: rpc.NodeDir(c.Dir, "node-1") + "/api.sock"}).Counters(c.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return list.Of("tapestry_outside_refused_total")["host-ports"]
	}
	for _, v6 := range []bool{false, true} {
		server, another := at(c.addr(t, "outside", v6), 9300), at(c.addr(t, "outside", v6), 9301)
		c.reaches(t, lab.Pod("other"), "tcp", server, "server")
		c.reaches(t, lab.Pod("other"), "tcp", another, "another")
		talking := c.talk(t, lab.Pod("other"), server)
		c.set(t, "node-1", "net/ipv4/ip_local_port_range", "40000 40019")
		before := noPort()
		hog := c.begin(t, lab.Pod("hog"), "use-up", server)
		await.Until(t, "that there is no port to be counted", func() bool { return noPort() > before })
		if a := c.ask(t, lab.Pod("other"), "tcp", server, "--timeout", "10s"); a.Error == "" || a.Error == "timeout" || a.Error == "refused" {
			t.Errorf("another pod gets %q of %s, want that the server cannot be reached", a.Error, server)
		}
		c.answered(t, lab.Pod("other"), "tcp", another, "another")
		out := decode[usedUp](t, hog.end(t))
		if out.Held == 0 || out.Error != "dial tcp "+server+": connect: "+syscall.EHOSTUNREACH.Error() {
			t.Errorf("the pod got %d connections, and then after %d ms: %s", out.Held, out.Millis, out.Error)
		}
		t.Logf("%s: the pod got %d connections, and was told after %d ms: %s", server, out.Held, out.Millis, out.Error)
		c.set(t, "node-1", "net/ipv4/ip_local_port_range", "32768 60999")
		c.reaches(t, lab.Pod("hog"), "tcp", server, "server")
		talking.unharmed(t)
	}
}
