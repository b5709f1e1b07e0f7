package scale

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/keeper"
)

// flowCapacity is how many flows the agent has room for. The test uses nine tenths of it: a fuller table evicts flows.
const flowCapacity = 1 << 17

// peerPatience is after how many times Options.Watch an agent gives up calling a new peer that does not answer.
const peerPatience = 3

// Memory measures the suite "memory". The process must be root of a user namespace that owns its network namespace; see
// package userns.
func Memory(ctx context.Context, o Options) ([]bench.Row, error) {
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	f := newFigures("memory")
	for range o.Rounds {
		for _, part := range []func(context.Context, Options, *figures) error{pods, flows, peers} {
			if err := part(ctx, o, f); err != nil {
				return nil, fmt.Errorf("memory: %w", err)
			}
		}
	}
	return f.rows(), nil
}

// quietNode makes a node with an agent that knows one other node, and has no pods.
func quietNode(ctx context.Context, o Options, args ...string) (n *node, r resident, err error) {
	if n, err = newNode(o); err != nil {
		return nil, r, err
	}
	err = os.WriteFile(filepath.Join(n.manifests, "nodes.yaml"), []byte(nodesYAML), 0o644)
	if err == nil {
		err = n.start(args...)
	}
	if err == nil {
		err = n.ready(ctx)
	}
	if err == nil {
		r, err = n.settled(ctx)
	}
	if err != nil {
		_ = n.close() // err says what matters
		return nil, r, err
	}
	return n, r, nil
}

// settled returns the agent's memory once it has stopped changing.
func (n *node) settled(ctx context.Context) (resident, error) {
	if err := n.settle(ctx); err != nil {
		return resident{}, err
	}
	return n.memory()
}

// pods measures an agent without pods and with silent pods, and the processor time that it takes with them.
func pods(ctx context.Context, o Options, f *figures) error {
	name := fmt.Sprintf("idle, %d pods", o.Pods)
	o.Progress(name)
	n, empty, err := quietNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.close()
	f.resident("idle, 0 pods", empty)
	for i := range o.Pods {
		if _, err := n.addPod(ctx, byte(10+i)); err != nil {
			return err
		}
	}
	full, err := n.settled(ctx)
	if err != nil {
		return err
	}
	f.resident(name, full)
	f.add("per pod", "agent", "KB", float64(full.rss-empty.rss)/1e3/float64(o.Pods))
	return n.idle(ctx, name, f)
}

// resident adds the figures of a process's memory.
func (f *figures) resident(name string, r resident) {
	f.add(name+" RSS", "agent", "MB", megabytes(r.rss))
	f.add(name+" anonymous", "agent", "MB", megabytes(r.anon))
	f.add(name+" program", "agent", "MB", megabytes(r.file))
	f.add(name+" shared", "agent", "MB", megabytes(r.shmem))
}

// idle measures the share of one processor that the agent takes while nothing happens.
func (n *node) idle(ctx context.Context, name string, f *figures) error {
	before, err := processorTime(n.cmd.Process.Pid)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := pause(ctx, n.o.Watch); err != nil {
		return err
	}
	after, err := processorTime(n.cmd.Process.Pid)
	if err != nil {
		return err
	}
	f.add(name+" processor", "agent", "%", 100*(after-before).Seconds()/time.Since(begin).Seconds())
	return nil
}

// flows measures the memory of a flow. A pod begins the flows by sending to as many ports. Their number is counted in
// the memory that the agent leaves behind.
func flows(ctx context.Context, o Options, f *figures) error {
	o.Progress("per flow")
	n, _, err := quietNode(ctx, o, "--flows", strconv.Itoa(flowCapacity))
	if err != nil {
		return err
	}
	defer n.close()
	p, err := n.addPod(ctx, 10)
	if err != nil {
		return err
	}
	before, err := n.settled(ctx)
	if err != nil {
		return err
	}
	if err := send(ctx, p, flowCapacity*9/10); err != nil {
		return err
	}
	after, err := n.settled(ctx)
	if err != nil {
		return err
	}
	n.kill()
	count, err := n.flows()
	if err != nil {
		return err
	}
	f.add("per flow", "agent", "B", float64(after.rss-before.rss)/float64(count))
	return nil
}

// send makes a pod send a datagram from one port to each of count ports and addresses of a node that does not listen.
func send(ctx context.Context, p *pod, count int) error {
	conn, err := listen(p.ns, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	const ports, burst = 50_000, 100
	to := netip.MustParseAddr("10.128.0.1")
	for i := range count {
		if i > 0 && i%ports == 0 {
			to = to.Next()
		}
		if _, err := conn.WriteToUDPAddrPort([]byte("!"), netip.AddrPortFrom(to, uint16(1024+i%ports))); err != nil {
			return fmt.Errorf("begin a flow: %w", err)
		}
		if i%burst == 0 { // the queue of the TAP holds a thousand packets
			if err := pause(ctx, time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// flows counts the flows of the agent that was killed.
func (n *node) flows() (int, error) {
	item, err := n.keep.Get("flows")
	if err != nil {
		return 0, err
	}
	defer item.File.Close()
	mem, err := keeper.Map(item.File)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(mem) }() // cannot fail for memory that was mapped
	t, err := flow.Open(mem, flow.Options{})
	if err != nil {
		return 0, err
	}
	if s := t.Stats(); s.Kept > 0 {
		return s.Kept, nil
	}
	return 0, fmt.Errorf("the agent has tracked no flow; it says:\n%s", n.said())
}

// peers measures the memory and processor time that another node takes which is known with its key and does not answer:
// while the agent calls it, and after the agent has given up calling it.
func peers(ctx context.Context, o Options, f *figures) error {
	name := fmt.Sprintf("idle, %d peers", o.Peers)
	o.Progress(name)
	n, empty, err := quietNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.close()
	data, err := peerNodes(o.Peers)
	if err != nil {
		return err
	}
	rename, err := put(n.manifests, "peers.yaml", data)
	if err != nil {
		return err
	}
	if err := rename(); err != nil {
		return err
	}
	if err := n.idle(ctx, fmt.Sprintf("calling %d peers", o.Peers), f); err != nil {
		return err
	}
	if err := pause(ctx, peerPatience*o.Watch); err != nil {
		return err
	}
	full, err := n.settled(ctx)
	if err != nil {
		return err
	}
	f.resident(name, full)
	f.add("per peer", "agent", "KB", float64(full.rss-empty.rss)/1e3/float64(o.Peers))
	return n.idle(ctx, name, f)
}

// peerNodes returns Nodes with keys, podCIDRs and endpoints of their own.
func peerNodes(count int) ([]byte, error) {
	const nodeYAML = `apiVersion: v1
kind: Node
metadata:
  name: peer-%[1]d
  annotations:
    tapestry.dev/wireguard-public-key: %[2]s
    tapestry.dev/wireguard-endpoint: %[3]s
spec:
  podCIDRs:
  - %[4]s
status:
  addresses:
  - type: InternalIP
    address: %[5]s
---
`
	var b strings.Builder
	addr, cidr := netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("10.200.0.0")
	for i := range count {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		public := base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
		fmt.Fprintf(&b, nodeYAML, i, public, netip.AddrPortFrom(addr, translate.WireGuardPort), netip.PrefixFrom(cidr, 24), addr)
		addr = addr.Next()
		next := cidr.As4()
		next[2]++
		if next[2] == 0 {
			next[1]++
		}
		cidr = netip.AddrFrom4(next)
	}
	return []byte(b.String()), nil
}
