package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/hostaddr"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/services/dns"
	"tapestry.dev/tapestry/share/descriptors"
)

// socketKey is the key under which the keeper holds the tunnel's socket. Other keys are flowsKey, tcpKey, udpKey,
// sessionsKey, hosttap.Key and those with the prefixes pods.KeyPrefix, keeper.ListenPrefix and keeper.SocketPrefix.
const socketKey = "wireguard"

// fixed returns what the flags and the state directory define for the whole life of this process.
func (a *agent) fixed() (h node.Held, err error) {
	h = node.Held{
		NoGSO: !a.offloads.udpGSO, NoGRO: !a.offloads.udpGRO, NoOffloads: a.offloads.disabled(), UDPIdle: a.udpIdle,
		IngressPorts: a.ingressPorts(), IngressConns: a.ingressConns, Descriptors: a.plan, HostAddrs: hostaddr.Watch, DenyEgress: a.denyEgress, Routed: a.routed, NodePorts: a.nodePorts, ProxyUIDs: a.hostProxy.users,
		Upstreams: a.upstreams, DNS: a.names.choices(), Healthy: func() bool { return a.progress.Alive() == nil }, Log: a.log,
	}
	if a.flowLog > 0 {
		h.FlowLog = flowlog.New(a.flowLog)
	}
	h.Key, err = overlay.LoadOrCreateKey(filepath.Join(a.state, "wireguard.key"))
	return h, err
}

// findHost adds the host TAP to what the keeper held, when the keeper had lost it and the device is still there. What
// stands in the way is told later, as the healer tries again.
func (a *agent) findHost(items []keeper.Item) []keeper.Item {
	if slices.ContainsFunc(items, func(it keeper.Item) bool { return it.Key == hosttap.Key }) || hosttap.Find(nil, a.kept) != nil {
		return items
	}
	it, err := a.kept.Get(hosttap.Key)
	if err != nil {
		return items
	}
	a.log.Warn("the keeper had lost the host TAP; it is attached again", "interface", hosttap.Name)
	return append(items, it)
}

// adopt takes over the flow memory, relayed connections and the tunnel's socket from the keeper. What is missing it
// makes, and has the keeper hold it.
func (a *agent) adopt(ctx context.Context, items []keeper.Item) error {
	byKey := map[string]*os.File{}
	for _, it := range items {
		byKey[it.Key] = it.File
	}
	var parts errgroup.Group // this process and the keeper work at the same time
	parts.Go(func() (err error) {
		a.held.Flows, err = openFlows(byKey[flowsKey], a.agentConfig.flows, func(f *os.File) error { return a.kept.Put(flowsKey, nil, f) })
		return err
	})
	parts.Go(func() error { return a.holdRelays(ctx, byKey) })
	if err := parts.Wait(); err != nil {
		return err
	}
	if s := a.held.Flows.Stats(); s.Kept > 0 || s.Discarded > 0 || s.Unfit > 0 || s.Reformatted {
		a.log.Info("found the flows of the agent before", "kept", s.Kept, "torn", s.Discarded, "without room", s.Unfit, "lost", s.Reformatted)
	}
	if a.held.Socket = byKey[socketKey]; a.held.Socket != nil {
		a.held.Resumes = true
		return nil
	}
	var err error
	if a.held.Socket, err = overlay.OpenSocket(uint16(a.listenPort)); err != nil {
		return err
	}
	return a.kept.Put(socketKey, nil, a.held.Socket)
}

// openPods opens the journal of addresses.
func (a *agent) openPods() (err error) {
	a.pods, err = pods.New(pods.Options{
		Journal: filepath.Join(a.state, "addresses"), Rest: a.addressRest, Keeper: a.kept, Most: a.plan.Of(descriptors.Pods),
		Fixed: a.source.PodIPs, Claimed: a.claimed, Now: time.Now, Log: a.log,
		// The Registry calls it only after pods can be attached.
		Changed: func() { a.follower.Remap() },
	})
	return err
}

// claimed reports whether a living Pod object says that it has one of the addresses. The Registry calls it only after
// pods can be attached.
func (a *agent) claimed(namespace, name string, addrs []netip.Addr) bool {
	objs := a.follower.Objects()
	return objs != nil && pods.Claimed(objs.Pods, a.node, namespace, name, addrs)
}

// upstreams returns the DNS servers for names outside the cluster.
func (a *agent) upstreams() ([]netip.AddrPort, error) {
	if len(a.dnsUpstreams) == 0 {
		return dns.ResolvConf("/etc/resolv.conf")
	}
	var out []netip.AddrPort
	for _, s := range a.dnsUpstreams {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("--dns-upstream %q: expected an address, with or without a port", s)
			}
			ap = netip.AddrPortFrom(ip, 53)
		}
		out = append(out, ap)
	}
	return out, nil
}
