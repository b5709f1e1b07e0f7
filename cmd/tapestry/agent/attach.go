package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/cmd/tapestry/agent/pods"
	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/hostport"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
)

// Keys under which the keeper holds the node's descriptors, beside those of pods.KeyPrefix.
const (
	flowsKey  = "flows"
	socketKey = "wireguard"
	hostKey   = hostport.Key // put there by whoever made the host TAP
)

// adopt takes over the flow memory and the tunnel's socket, or makes them and has the keeper hold them.
func (a *agent) adopt(items []keeper.Item) error {
	byKey := map[string]*os.File{}
	for _, it := range items {
		byKey[it.Key] = it.File
	}
	memory := byKey[flowsKey]
	if memory == nil {
		var err error
		if memory, err = keeper.NewMemory("tapestry-flows", flow.Size(a.agentConfig.flows)); err != nil {
			return err
		}
		if err := a.kept.Put(flowsKey, nil, memory); err != nil {
			return err
		}
	}
	mem, err := keeper.Map(memory)
	if err != nil {
		return err
	}
	_ = memory.Close() // the mapping keeps it
	if a.flows, err = flow.Open(mem, flow.Options{}); err != nil {
		return err
	}
	if s := a.flows.Stats(); s.Kept > 0 || s.Discarded > 0 || s.Reformatted {
		a.log.Info("found the flows of the agent before", "kept", s.Kept, "torn", s.Discarded, "lost", s.Reformatted)
	}
	if a.socket = byKey[socketKey]; a.socket != nil {
		return nil
	}
	if a.socket, err = overlay.OpenSocket(uint16(a.listenPort)); err != nil {
		return err
	}
	return a.kept.Put(socketKey, nil, a.socket)
}

// attachKept attaches the TAPs that were there before this agent.
func (a *agent) attachKept(items []keeper.Item) {
	var ofPods []keeper.Item
	for _, it := range items {
		switch {
		case it.Key == hostKey:
			if err := a.attachHost(it); err != nil {
				a.log.Error("the host's TAP was not attached", "err", err)
				_ = it.File.Close()
			}
		case strings.HasPrefix(it.Key, keeper.ListenPrefix):
			_ = it.File.Close() // hostListener gets its own
		case strings.HasPrefix(it.Key, pods.KeyPrefix):
			ofPods = append(ofPods, it)
		}
	}
	a.pods.Restore(ofPods)
}

func (a *agent) attachHost(it keeper.Item) error {
	var m hostport.Meta
	if err := json.Unmarshal(it.Meta, &m); err != nil {
		return err
	}
	want := hostport.Addrs(a.config.Load().PodCIDRs)
	slices.SortFunc(want, netip.Addr.Compare)
	slices.SortFunc(m.Addrs, netip.Addr.Compare)
	if !slices.Equal(m.Addrs, want) {
		return fmt.Errorf("the host Port has the addresses %v, and the node's ranges are such that it should have %v: let the init step put it right, by deleting the agent's pod", m.Addrs, want)
	}
	return a.attachDevice(netstack.PortConfig{Name: hostKey, Kind: netstack.HostPort, MAC: tap.HostMAC, Addrs: m.Addrs}, it.File)
}

func (a *agent) attachPod(pod cni.Pod, f *os.File) error {
	mac, err := net.ParseMAC(pod.MAC)
	if err != nil || len(mac) != len(packet.MAC{}) {
		return fmt.Errorf("attach pod %s: %q is no Ethernet address", pod.String(), pod.MAC)
	}
	c := netstack.PortConfig{Name: pod.String(), Kind: netstack.PodPort, MAC: packet.MAC(mac), Addrs: pod.Addrs}
	if b := pod.Bandwidth; b != nil {
		c.Limit = tap.Rate{Bits: b.IngressRate, Burst: b.IngressBurst}
	}
	return a.attachDevice(c, f)
}

func (a *agent) attachDevice(c netstack.PortConfig, f *os.File) error {
	dev, err := tap.NewDevice(f, tap.Options{Disable: a.offloads.disabled(), Poller: a.poller})
	if err != nil {
		return fmt.Errorf("attach %s: %w", c.Name, err)
	}
	for _, r := range dev.Refused() {
		a.log.Warn("a TAP goes without an offload that this kernel refused", "port", c.Name, "offload", r.Offload, "err", r.Err)
	}
	if err := a.node.Attach(c, dev); err != nil {
		_ = dev.Close()
		return err
	}
	return nil
}

// ports joins pods to the packet path, which is there with the first snapshot.
type ports struct{ a *agent }

var _ pods.Ports = ports{}

// AttachPod implements pods.Ports.
func (p ports) AttachPod(pod cni.Pod, f *os.File) error { return p.a.attachPod(pod, f) }

// Detach implements pods.Ports.
func (p ports) Detach(name string) bool { return p.a.node.Detach(name) }

// Attached implements pods.Ports.
func (p ports) Attached(name string) bool { return p.a.node.Attached(name) }

// Local implements pods.Ports.
func (p ports) Local(ip netip.Addr) bool { return p.a.node.Local(ip) }

// openPods reads the journal of addresses.
func (a *agent) openPods() (err error) {
	a.pods, err = pods.New(pods.Options{
		Journal: filepath.Join(a.agentConfig.state, "addresses"), Rest: a.addressRest, Ports: ports{a}, Keeper: a.kept,
		Config: a.config.Load, Fixed: a.source.PodIPs, Now: time.Now, Log: a.log, Changed: a.remap,
	})
	return err
}

// attacher is what the agent's socket does besides what pods does.
type attacher struct{ a *agent }

var _ cni.Attacher = attacher{}

// Add implements cni.Attacher.
func (t attacher) Add(_ context.Context, pod cni.Pod, f *os.File) error { return t.a.pods.Add(pod, f) }

// Del implements cni.Attacher.
func (t attacher) Del(_ context.Context, pod cni.Pod) error { return t.a.pods.Del(pod) }

// Status implements cni.Attacher.
func (t attacher) Status(context.Context) (cni.Status, error) {
	s := cni.Status{Ready: true, Node: t.a.agentConfig.node, PublicKey: t.a.key.Public().String()}
	for _, problem := range t.a.currentProblems() {
		s.Problems = append(s.Problems, problem.String())
	}
	return s, nil
}
