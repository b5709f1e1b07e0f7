package steps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"tapestry.dev/tapestry/test/inspect"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/probe"
)

func podToPod(ctx context.Context, c *Cluster) (string, error) {
	err := families(func(v6 bool) error {
		own := c.ips["client"].of(v6)
		for _, network := range []string{"tcp", "udp"} {
			if err := c.sees(ctx, lab.Pod("client"), network, at(c.ips["web-1"].of(v6), 9000), seen{"web-1", own}); err != nil {
				return err
			}
		}
		local := netip.MustParseAddr("127.0.0.1")
		if v6 {
			local = netip.IPv6Loopback()
		}
		err := c.sees(ctx, lab.Pod("client"), "tcp", at(local, 9000), seen{"client", local})
		return err
	})
	return fmt.Sprintf("client %s and %s reach web-1 with their own addresses, TCP and UDP; and itself over localhost", c.ips["client"].v4, c.ips["client"].v6), err
}

const canary = "canary-7d1f-in-clear-text"

func acrossNodes(ctx context.Context, c *Cluster) (string, error) {
	const rounds = 50
	captures := map[string]*background{}
	for _, node := range []string{"node-1", "node-2"} {
		b, err := c.startHeld(ctx, lab.Node(node), "capture", "--interface", "eth0", "--canary", canary)
		if err != nil {
			return "", err
		}
		defer b.letGo()
		captures[node] = b
	}
	err := families(func(v6 bool) error {
		for _, network := range []string{"tcp", "udp"} {
			addr := at(c.ips["web-2"].of(v6), 9000)
			a, err := c.ask(ctx, lab.Pod("client"), network, addr, "--body", canary, "--times", fmt.Sprint(rounds/5))
			if err != nil {
				return err
			}
			if a.Pod != "web-2" || !strings.HasPrefix(a.Client, bracket(c.ips["client"].of(v6))) || a.Got != canary {
				return fmt.Errorf("%s: %s saw %s say %q", addr, a.Pod, a.Client, a.Got)
			}
		}
		return nil
	})
	var seen inspect.Traffic
	for node, b := range captures {
		b.letGo()
		if werr := b.wait(ctx, &seen); werr != nil {
			return "", errors.Join(err, werr)
		}
		switch {
		case seen.Canaries > 0:
			err = errors.Join(err, fmt.Errorf("%s: %d frames on the underlay held the canary in clear text", node, seen.Canaries))
		case seen.Other > 0:
			err = errors.Join(err, fmt.Errorf("%s: %d frames on the underlay were neither WireGuard, ARP nor ND: %v", node, seen.Other, seen.Samples))
		case seen.WireGuardData < 2*rounds:
			err = errors.Join(err, fmt.Errorf("%s: only %d WireGuard data packets on the underlay for at least %d sent", node, seen.WireGuardData, 2*rounds))
		}
	}
	return fmt.Sprintf("%d WireGuard data packets on the wire, %d ARP and ND, nothing else, canary not seen", seen.WireGuardData, seen.ARP+seen.ND), err
}

// bracket returns the beginning of an "address:port" with this address.
func bracket(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]:"
	}
	return a.String() + ":"
}

func clusterIP(ctx context.Context, c *Cluster) (string, error) {
	var spread map[string]int
	err := families(func(v6 bool) error {
		vip := c.ips["svc/web"].of(v6)
		for _, network := range []string{"tcp", "udp"} {
			if err := c.sees(ctx, lab.Pod("client"), network, at(vip, 81), seen{"", c.ips["client"].of(v6)}); err != nil {
				return err
			}
			var err error
			if spread, err = c.askMany(ctx, lab.Pod("client"), network, at(vip, 81), 40); err != nil {
				return err
			}
			if spread["web-1"] == 0 || spread["web-2"] == 0 || len(spread) != 2 {
				return fmt.Errorf("40 %s connections went to %v, want some to web-1 and some to web-2", network, spread)
			}
		}
		var got probe.Fetched
		if err := c.probe(ctx, lab.Pod("client"), &got, "get", fmt.Sprintf("http://%s/", at(vip, 80))); err != nil {
			return err
		}
		if got.Status != 200 {
			return fmt.Errorf("named targetPort: status %d, %s", got.Status, got.Error)
		}
		return nil
	})
	return fmt.Sprintf("port 81 → 9000, port 80 → \"http\"; 40 connections: %d to web-1, %d to web-2", spread["web-1"], spread["web-2"]), err
}

func hairpin(ctx context.Context, c *Cluster) (string, error) {
	var a probe.Answer
	err := families(func(v6 bool) (err error) {
		if a, err = c.ask(ctx, lab.Pod("client"), "tcp", at(c.ips["svc/self"].of(v6), 81)); err == nil && a.Pod != "client" {
			err = fmt.Errorf("answered by %s", a.Pod)
		}
		return err
	})
	return "client → Service self → client, which sees " + a.Client, err
}

// clientPort is a client's port. It lies below those that Linux gives to clients by itself, so that no other connection
// of the client has it (net.ipv4.ip_local_port_range).
const clientPort = "20404"

func onePort(ctx context.Context, c *Cluster) (string, error) {
	err := families(func(v6 bool) error {
		var held []*background
		for _, svc := range []string{"one", "two", "three"} {
			b, err := c.hold(ctx, lab.Pod("client"), "--local-port", clientPort, at(c.ips["svc/"+svc].of(v6), 81))
			if err != nil {
				return fmt.Errorf("through Service %s: %w", svc, err)
			}
			held = append(held, b)
		}
		for _, b := range held {
			b.letGo()
		}
		for _, b := range held {
			var h probe.Held
			if err := b.wait(ctx, &h); err != nil {
				return err
			}
			if h.Error != "" {
				return fmt.Errorf("%d rounds: %s", h.Rounds, h.Error)
			}
		}
		return nil
	})
	return "port " + clientPort + " held three connections to one backend at the same time", err
}

func refused(ctx context.Context, c *Cluster) (string, error) {
	var slowest float64
	err := families(func(v6 bool) error {
		for _, network := range []string{"tcp", "udp"} {
			var a probe.Answer
			addr := at(c.ips["svc/nobody"].of(v6), 81)
			if err := c.probe(ctx, lab.Pod("client"), &a, "ask", network, addr); err != nil {
				return err
			}
			if a.Error != "refused" {
				return fmt.Errorf("%s %s: %q, want it refused", network, addr, a.Error)
			}
			slowest = max(slowest, a.Millis)
		}
		return nil
	})
	if slowest > 1000 {
		err = errors.Join(err, fmt.Errorf("refused only after %.0f ms", slowest))
	}
	return fmt.Sprintf("TCP reset and ICMP unreachable within %.1f ms", slowest), err
}

const (
	// newConnections limits how long new connections may still go to a backend that is no longer ready. It does not
	// count the time in which the machine lets nobody run.
	newConnections = 100 * time.Millisecond
	// watchOn is how long new connections are watched on when it is known that a backend is not ready.
	watchOn = 4 * newConnections
)

func failover(ctx context.Context, c *Cluster) (string, error) {
	var slowest time.Duration
	err := families(func(v6 bool) error {
		for _, network := range []string{"tcp", "udp"} {
			took, err := c.unready(ctx, network, v6)
			if err != nil {
				return fmt.Errorf("%s: %w", network, err)
			}
			slowest = max(slowest, took)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	took, err := c.dies(ctx)
	return fmt.Sprintf("last new connection to it %d ms after it was known to be unready, TCP and UDP; last failure %d ms after it was killed", slowest.Milliseconds(), took.Milliseconds()), err
}

// unready makes web-2 unready. It returns the time from the moment when the lab knows to the last new connection that
// still went to web-2.
func (c *Cluster) unready(ctx context.Context, network string, v6 bool) (took time.Duration, err error) {
	vip := at(c.ips["svc/web"].of(v6), 81)
	health := func(path string) error {
		var got probe.Fetched
		return c.probe(ctx, lab.Pod("web-2"), &got, "get", "http://127.0.0.1:8080"+path)
	}
	watching, err := c.watch(ctx, lab.Pod("client"), network, vip, "web-1", "web-2")
	if err != nil {
		return 0, err
	}
	defer watching.letGo()
	// This UDP client keeps its port, so its flow has to move.
	var moving *background
	if network == "udp" {
		if moving, err = c.start(ctx, lab.Pod("client"), "follow", "--for", "3s", "--until-not", "web-2", vip); err != nil {
			return 0, err
		}
	}
	if err := health("/unready"); err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, health("/ready"), c.served(ctx, network, vip, "web-2"))
	}()
	if err := c.WaitFor(ctx, func(s *lab.Status) bool { return !ready(s, "web-2") }); err != nil {
		return 0, err
	}
	seen, err := watching.seenAfter(ctx)
	if err != nil {
		return 0, err
	}
	if len(seen.Errors) > 0 {
		return 0, fmt.Errorf("new connections went to %v, want none to fail: %v", seen.Counts, seen.Errors)
	}
	if took = seen.Late("web-2"); took > newConnections {
		return took, fmt.Errorf("a new connection went to web-2 %v after it was known to be unready, want at most %v", took, newConnections)
	}
	if moving == nil {
		return took, nil
	}
	var f probe.Followed
	if err := moving.wait(ctx, &f); err != nil {
		return took, err
	}
	if !f.Moved {
		return took, fmt.Errorf("a UDP client stayed on web-2: %+v", f)
	}
	return took, nil
}

// seenAfter marks the moment for a probe that watches, and returns what the probe saw until a while after it.
func (b *background) seenAfter(ctx context.Context) (seen probe.Spread, err error) {
	if err := b.mark(); err != nil {
		return seen, err
	}
	select {
	case <-time.After(watchOn):
	case <-ctx.Done():
		return seen, ctx.Err()
	}
	b.letGo()
	if err = b.wait(ctx, &seen); err != nil {
		return seen, err
	}
	if _, served := seen.LateMillis["web-1"]; !served {
		return seen, fmt.Errorf("no new connection went to web-1: %v %v", seen.Counts, seen.Errors)
	}
	return seen, nil
}

// served waits until new connections reach a pod, since the agents learn about it a moment after the lab.
func (c *Cluster) served(ctx context.Context, network, addr, pod string) error {
	for {
		count, err := c.askMany(ctx, lab.Pod("client"), network, addr, 20)
		if err != nil || count[pod] > 0 {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is ready again, but %s %s is still served by %v", pod, network, addr, count)
		}
	}
}

// dies kills the server of web-2, which the lab starts again. It returns the time from the server's death to the last
// connection that failed because of it.
func (c *Cluster) dies(ctx context.Context) (time.Duration, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return 0, err
	}
	restarts := 0
	kill := []string{"kill", "-KILL"}
	for i := range st.Pods {
		if p := &st.Pods[i]; p.Name == "web-2" {
			restarts = p.Restarts
			for _, pid := range p.PIDs {
				kill = append(kill, strconv.Itoa(pid))
			}
		}
	}
	vip := at(c.ips["svc/web"].v4, 81)
	watching, err := c.watch(ctx, lab.Pod("client"), "tcp", vip, "web-1", "web-2")
	if err != nil {
		return 0, err
	}
	defer watching.letGo()
	// Pods share the lab's PID namespace.
	if _, stderr, code, err := c.Output(ctx, lab.Outside(), kill...); err != nil || code != 0 {
		return 0, errors.Join(err, fmt.Errorf("kill web-2: exit status %d: %s", code, stderr))
	}
	seen, err := watching.seenAfter(ctx)
	if err != nil {
		return 0, err
	}
	took := seen.Late("")
	if took > newConnections {
		return took, fmt.Errorf("a connection failed %v after the backend died, want at most %v: %v", took, newConnections, seen.Errors)
	}
	if err := c.WaitFor(ctx, func(s *lab.Status) bool {
		for i := range s.Pods {
			if p := &s.Pods[i]; p.Name == "web-2" {
				return p.Ready && p.Restarts > restarts
			}
		}
		return false
	}); err != nil {
		return took, err
	}
	return took, c.served(ctx, "tcp", vip, "web-2")
}

func ready(s *lab.Status, pod string) bool {
	for i := range s.Pods {
		if s.Pods[i].Namespace == "default" && s.Pods[i].Name == pod {
			return s.Pods[i].Ready
		}
	}
	return false
}
