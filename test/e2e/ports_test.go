package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

// reconnected is what a client saw that always connects from the same port.
type reconnected struct {
	Answers map[string]int // by pod
	Errors  map[string]int
	// Last is the error of the last connection; "" after an answer.
	Last string
}

// reconnect runs COUNT clients that connect again and again, each from a port of its own, from PORT on, until the input
// ends; each makes its last connection after that. It prints what the clients saw, by port: COUNT PORT ADDR.
func reconnect(ctx context.Context, args []string) error {
	end := untilInputEnds(ctx)
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	first, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	out := make([]reconnected, count)
	var begun, done sync.WaitGroup
	begun.Add(count)
	for i := range out {
		done.Go(func() {
			r := reconnected{Answers: map[string]int{}, Errors: map[string]int{}}
			once := sync.OnceFunc(begun.Done)
			for over := false; !over; {
				over = end.Err() != nil
				pod, err := askFrom(ctx, first+i, args[2])
				if r.Last = ""; err != nil {
					r.Last = err.Error()
					r.Errors[r.Last]++
					continue
				}
				r.Answers[pod]++
				once()
			}
			out[i] = r
		})
	}
	begun.Wait()
	started()
	done.Wait()
	return print(out)
}

// askFrom asks a TCP server once from a port, and resets the connection, so that the kernel lets the port be used again
// at once.
func askFrom(ctx context.Context, port int, addr string) (pod string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := probe.Request{LocalPort: port}.Dialer().DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		return "", err
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	var a probe.Answer
	_, err = io.WriteString(c, "who are you\n")
	in := bufio.NewReader(c)
	if err == nil {
		_, err = in.ReadString('\n') // the greeting
	}
	if err == nil {
		err = json.NewDecoder(in).Decode(&a)
	}
	return a.Pod, err
}

// TestPortsOfDeadBackend: twelve clients on another node connect to a Service again and again, each from a port of its
// own. One of the Service's two pods dies at once, so that some SYNs come to an address that nobody has any more. None
// of the clients is bound to the dead pod by that, neither while it is gone nor when it is back (cilium/cilium#11742).
func TestPortsOfDeadBackend(t *testing.T) {
	const clients = 12
	nat := func(name string) string {
		return strings.NewReplacer("app: "+name, "app: nat", "PeriodSeconds: 1\n  containers", "PeriodSeconds: 0\n  containers").Replace(podYAML(name, "node-2"))
	}
	base := nodesYAML + podYAML("client", "node-1") + serviceYAML("nat", "nat", 0) + nat("nat-b")
	c := up(t, "ports", base+nat("nat-a"))
	vip := at(c.addr(t, "svc/nat", false), 81)
	// known waits until new connections go to these pods, and to no other.
	known := func(pods ...string) {
		t.Helper()
		c.until(t, fmt.Sprint("new connections go to ", pods), func(*lab.Status) bool {
			seen := decode[map[string]int](t, c.run(t, lab.Pod("client"), "spread", "30", vip))
			return len(seen) == len(pods) && !slices.ContainsFunc(pods, func(p string) bool { return seen[p] == 0 })
		})
	}
	known("nat-a", "nat-b")
	unreachable := 0
	// during has all clients connect while change happens.
	during := func(what string, change func()) {
		t.Helper()
		reconnecting := c.begin(t, lab.Pod("client"), "reconnect", fmt.Sprint(clients), "20500", vip)
		change()
		answers := 0
		for i, r := range decode[[]reconnected](t, reconnecting.end(t)) {
			if r.Last != "" {
				t.Errorf("%s: the client at port %d ends with %q: %v", what, 20500+i, r.Last, r.Errors)
			}
			for text, n := range r.Errors {
				if strings.Contains(text, unix.EHOSTUNREACH.Error()) {
					unreachable += n
				}
			}
			for _, n := range r.Answers {
				answers += n
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		t.Logf("%s: %d answers", what, answers)
	}
	for range 3 {
		during("nat-a dies", func() {
			// What the clients send while their agent stands still waits in the TAP, and is sent on before the agent
			// hears of the pod's death.
			c.signal(t, "node-1", syscall.SIGSTOP)
			c.write(t, base)
			c.until(t, "nat-a is gone", func(st *lab.Status) bool { return podOf(st, "nat-a").Name == "" })
			c.signal(t, "node-1", syscall.SIGCONT)
			c.ready(t)
			known("nat-b")
		})
		during("nat-a comes back", func() {
			c.edit(t, base+nat("nat-a"))
			known("nat-a", "nat-b")
		})
	}
	t.Logf("%d connections of clients found nobody at the address of the dead pod", unreachable)
}

// spread asks a TCP server COUNT times, each time from another port, and prints how often each pod answered, with ""
// for nobody: COUNT ADDR.
func spread(ctx context.Context, args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	seen := map[string]int{}
	for range count {
		seen[probe.Ask(ctx, probe.Request{Network: "tcp", Addr: args[1], Timeout: 2 * time.Second}).Pod]++
	}
	return print(seen)
}
