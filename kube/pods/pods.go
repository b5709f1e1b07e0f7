// Package pods keeps the pods of the agent's node: which are attached, which addresses they have, and which are being
// attached. It serves the attach socket (package cni), and joins the runtime, the addresses (package ipam), the
// keeper and the packet path.
package pods

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/kube/ipam"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	// prepareTime is how long prepared addresses wait for their pod.
	prepareTime = 2 * time.Minute
	// lookupTime limits the search for a pod's annotation.
	lookupTime = 5 * time.Second
	// reviewTime is the interval between two calls of review.
	reviewTime = 20 * time.Second
)

// Attacher is what the packet path does for pods. Attachments have the name of cni.Pod.String. *node.Node is an
// Attacher.
type Attacher interface {
	// AttachTAP makes an attachment, which owns f unless there is an error.
	AttachTAP(c netstack.AttachmentConfig, f *os.File) error
	// Detach removes an attachment, and reports whether there was one.
	Detach(name string) bool
	// Attached reports whether there is an attachment of that name whose device still exists.
	Attached(name string) bool
	// Local reports whether an attachment has the address.
	Local(a netip.Addr) bool
	// PodRanges returns the ranges from which new pods get addresses, at most one per family, and the pods' MTU in
	// bytes.
	PodRanges() (podCIDRs []netip.Prefix, mtu int)
}

// Keeper holds descriptors while agents come and go.
type Keeper interface {
	Put(key string, meta json.RawMessage, f *os.File) error
	Delete(key string) error
}

// KeyPrefix is the prefix of the keys under which the keeper holds the TAPs of pods.
const KeyPrefix = "pod/"

// Options is what a Registry needs of the agent; all fields are required.
type Options struct {
	// Journal is the path of the journal of addresses.
	Journal string
	// Rest is how long an address rests between two pods.
	Rest   time.Duration
	Keeper Keeper
	// Most is how many pods may be attached, each of which takes a descriptor; 0 means any number. Restore attaches all
	// that there are.
	Most int
	// Fixed returns the annotation tapestry.dev/pod-ips of a Pod; "" for a Pod that has none or is unknown.
	Fixed func(ctx context.Context, namespace, name string) (annotation string, err error)
	// Claimed reports whether a living Pod object says that it has one of the addresses.
	Claimed func(namespace, name string, addrs []netip.Addr) bool
	Now     func() time.Time
	Log     *slog.Logger
	// Changed is called after the result of HostPorts has changed, before the method that changed it returns. Restore
	// does not call it.
	Changed func()
}

// Registry holds the node's attached pods, their addresses, and the addresses that are prepared. Its methods are safe
// for concurrent use after Restore has returned; before, only HostPorts, Counters and Close may be called.
type Registry struct {
	o      Options
	leases *ipam.Leases

	mu       sync.Mutex // held during each change as a whole
	attacher Attacher   // nil before Restore
	attached map[string]cni.Pod
	prepared map[ipam.Key]time.Time // since when a lease has been waiting for its attachment
	changed  bool                   // the port mappings of attached pods have changed
}

// New reads the journal. Nothing is attached before Restore.
func New(o Options) (*Registry, error) {
	p := &Registry{o: o, attached: map[string]cni.Pod{}, prepared: map[ipam.Key]time.Time{}}
	var damage string
	var err error
	p.leases, damage, err = ipam.Open(o.Journal, ipam.Options{
		Ranges: func() []netip.Prefix { ranges, _ := p.attacher.PodRanges(); return ranges },
		Rest:   o.Rest, InUse: func(a netip.Addr) bool { return p.attacher.Local(a) }, Now: o.Now,
	})
	if err != nil {
		return nil, err
	}
	if damage != "" {
		o.Log.Warn("addresses of pods were forgotten; those of attached pods are known from the keeper", "damage", damage)
	}
	return p, nil
}

func leaseKey(pod *cni.Pod) ipam.Key {
	return ipam.Key{ContainerID: pod.ContainerID, IfName: pod.IfName}
}

// keptKey returns the key of a pod in the keeper. The item's meta says which pod it is.
func keptKey(pod *cni.Pod) string {
	key := KeyPrefix + pod.String()
	if len(key) > keeper.MaxKey {
		sum := sha256.Sum256([]byte(pod.String()))
		key = KeyPrefix + hex.EncodeToString(sum[:])
	}
	return key
}

// Restore connects the Registry to the packet path. It attaches the TAPs that the last agent had, and makes the
// journal agree with them.
func (p *Registry) Restore(a Attacher, items []keeper.Item) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attacher = a
	var known []ipam.Lease
	for _, it := range items {
		var pod cni.Pod
		err := json.Unmarshal(it.Meta, &pod)
		if err == nil {
			err = p.attachLocked(&pod, it.File)
		}
		switch {
		case err == nil:
			p.attached[pod.String()] = pod
			if pod.Network != "" {
				known = append(known, ipam.Lease{
					Key: leaseKey(&pod), Network: pod.Network, Namespace: pod.Namespace, Name: pod.Name, Addrs: pod.Addrs,
				})
			}
			continue
		case errors.Is(err, unix.EBADFD): // from TUNGETIFF, for a device that no longer exists
			p.o.Log.Info("a pod was deleted while no agent was running", "pod", pod.String(), "container", pod.ContainerID)
			err = errors.Join(p.o.Keeper.Delete(it.Key), p.leases.Release(leaseKey(&pod)))
			if err != nil {
				p.o.Log.Error("the TAP or the addresses of a deleted pod were not released", "pod", pod.String(), "err", err)
			}
		default:
			p.o.Log.Error("a kept TAP was not attached", "key", it.Key, "err", err)
		}
		_ = it.File.Close()
	}
	missing, err := p.leases.Keep(known)
	if missing > 0 {
		p.o.Log.Warn("addresses of attached pods were not in the journal, and are now", "pods", missing)
	}
	if err != nil {
		p.o.Log.Error("the journal of addresses is not up to date", "err", err)
	}
	now := p.o.Now()
	for _, l := range p.leases.Held() {
		if _, ok := p.findLocked(l.Key); !ok {
			p.prepared[l.Key] = now
		}
	}
}

// attachLocked makes the pod's attachment, which owns f unless there is an error.
func (p *Registry) attachLocked(pod *cni.Pod, f *os.File) error {
	mac, err := net.ParseMAC(pod.MAC)
	if err != nil || len(mac) != len(packet.MAC{}) {
		return fmt.Errorf("attach pod %s: %q is no Ethernet address", pod.String(), pod.MAC)
	}
	c := netstack.AttachmentConfig{Name: pod.String(), UID: pod.UID, Kind: netstack.PodTAP, MAC: packet.MAC(mac), Addrs: pod.Addrs}
	if b := pod.Bandwidth; b != nil {
		c.Limit = tap.Rate{Bits: b.IngressRate, Burst: b.IngressBurst}
	}
	return p.attacher.AttachTAP(c, f)
}

// findLocked returns the pod that is attached with this interface of this container.
func (p *Registry) findLocked(k ipam.Key) (cni.Pod, bool) {
	for _, pod := range p.attached {
		if k.ContainerID != "" && leaseKey(&pod) == k {
			return pod, true
		}
	}
	return cni.Pod{}, false
}

var _ cni.Allocator = (*Registry)(nil)

// Prepare implements cni.Allocator.
func (p *Registry) Prepare(ctx context.Context, want cni.Pod) (cni.Prepared, error) {
	fixed, err := p.fixedAddrs(ctx, &want)
	if err != nil {
		return cni.Prepared{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := leaseKey(&want)
	for _, pod := range p.attached {
		switch {
		case pod.ContainerID != want.ContainerID:
		case pod.IfName == want.IfName && pod.String() == want.String():
			same := slices.Equal(pod.PortMappings, want.PortMappings) && pod.Bandwidth.Equal(want.Bandwidth)
			want.Addrs, want.MAC, want.MTU = pod.Addrs, pod.MAC, pod.MTU
			return cni.Prepared{Pod: want, Attached: same}, nil
		default:
			return cni.Prepared{}, fmt.Errorf("the container is attached already, with %s as pod %s: a pod has one interface of this network", pod.IfName, pod.String())
		}
	}
	ranges, mtu := p.attacher.PodRanges()
	if l, ok := p.leases.Get(key); ok && (l.Namespace != want.Namespace || l.Name != want.Name || !within(ranges, l.Addrs)) {
		// The node's range has changed since, so the addresses would lead to another node.
		if err := p.leases.Release(key); err != nil {
			p.o.Log.Error("the journal of addresses is not up to date", "err", err)
		}
	}
	l, err := p.leases.Acquire(ipam.Lease{Key: key, Network: want.Network, Namespace: want.Namespace, Name: want.Name, Addrs: fixed})
	var full *ipam.FullError
	switch {
	case errors.As(err, &full), errors.Is(err, ipam.ErrTaken), errors.Is(err, ipam.ErrRests), errors.Is(err, unix.ENOSPC):
		return cni.Prepared{}, fmt.Errorf("%w: %w", cni.ErrTryLater, err)
	case err != nil:
		return cni.Prepared{}, err
	}
	p.prepared[key] = p.o.Now()
	mac := podMAC(l.Addrs[0])
	want.Addrs, want.MAC, want.MTU = l.Addrs, net.HardwareAddr(mac[:]).String(), mtu
	return cni.Prepared{Pod: want}, nil
}

// fixedAddrs returns the addresses that the runtime asks for, or else those in the pod's annotation.
func (p *Registry) fixedAddrs(ctx context.Context, want *cni.Pod) ([]netip.Addr, error) {
	if len(want.Addrs) > 0 {
		return want.Addrs, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	annotation, err := p.o.Fixed(ctx, want.Namespace, want.Name)
	if err != nil {
		return nil, fmt.Errorf("%w: find out whether the pod has fixed addresses: %w", cni.ErrTryLater, err)
	}
	list, err := ipam.ParseAddrs(annotation)
	if err != nil {
		return nil, fmt.Errorf("metadata.annotations[tapestry.dev/pod-ips]: %w", err)
	}
	return list, nil
}

// podMAC derives a locally administered unicast address, so that an address of the node always has the same MAC.
func podMAC(a netip.Addr) packet.MAC {
	if a.Is4() {
		b := a.As4()
		return packet.MAC{0x0a, 0x58, b[0], b[1], b[2], b[3]}
	}
	h := sha256.Sum256(a.AsSlice())
	return packet.MAC{0x0a, 0x59, h[0], h[1], h[2], h[3]}
}

func within(ranges []netip.Prefix, addrs []netip.Addr) bool {
	return !slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
	})
}

// Add attaches a pod. The keeper holds a duplicate of f before the pod is attached, and so before Add returns.
func (p *Registry) Add(pod cni.Pod, f *os.File) error {
	p.mu.Lock()
	defer p.unlock()
	if ranges, _ := p.attacher.PodRanges(); !within(ranges, pod.Addrs) {
		return fmt.Errorf("%w: of the addresses %v some are outside of this node's pod ranges %v", cni.ErrTryLater, pod.Addrs, ranges)
	}
	key := leaseKey(&pod)
	if pod.Network != "" {
		if l, ok := p.leases.Get(key); !ok || !slices.Equal(l.Addrs, pod.Addrs) {
			// A DEL, whose ADD had been given up, came first; or this ADD took too long.
			return fmt.Errorf("%w: its addresses %v were released meanwhile", cni.ErrTryLater, pod.Addrs)
		}
	}
	if _, err := tap.Check(f); err != nil {
		return err
	}
	if err := p.checkMappingsLocked(&pod); err != nil {
		return err
	}
	if _, again := p.attached[pod.String()]; p.o.Most > 0 && len(p.attached) >= p.o.Most && !again {
		return fmt.Errorf("%w: the agent has descriptors for %d pods, which are attached; raise its limit of open files (LimitNOFILE of the container runtime)",
			cni.ErrTryLater, p.o.Most)
	}
	meta, err := json.Marshal(pod)
	if err != nil {
		return err
	}
	if err := p.o.Keeper.Put(keptKey(&pod), meta, f); err != nil {
		return err
	}
	p.dropLocked(pod.String()) // an earlier sandbox of the same pod
	if err := p.attachLocked(&pod, f); err != nil {
		return errors.Join(err, p.o.Keeper.Delete(keptKey(&pod)))
	}
	p.attached[pod.String()] = pod
	p.changed = p.changed || len(pod.PortMappings) > 0
	delete(p.prepared, key)
	return nil
}

// forgetLocked removes a pod from the attached ones.
func (p *Registry) forgetLocked(name string) {
	p.changed = p.changed || len(p.attached[name].PortMappings) > 0
	delete(p.attached, name)
}

// unlock ends a method that may have changed the result of HostPorts.
func (p *Registry) unlock() {
	changed := p.changed
	p.changed = false
	p.mu.Unlock()
	if changed {
		p.o.Changed()
	}
}

// dropLocked detaches whichever sandbox of the pod is attached. The lease of that sandbox stays: its DEL is still to
// come.
func (p *Registry) dropLocked(name string) {
	p.attacher.Detach(name)
	old, ok := p.attached[name]
	p.forgetLocked(name)
	if !ok {
		return
	}
	if _, held := p.leases.Get(leaseKey(&old)); held {
		p.prepared[leaseKey(&old)] = p.o.Now()
	}
}

// Del detaches a pod and releases its addresses. It does not touch a later sandbox of the same pod.
func (p *Registry) Del(pod cni.Pod) error {
	p.mu.Lock()
	defer p.unlock()
	return p.delLocked(&pod)
}

func (p *Registry) delLocked(pod *cni.Pod) error {
	key := leaseKey(pod)
	cur, ok := p.attached[pod.String()]
	if other, found := p.findLocked(key); found {
		cur, ok = other, true
	}
	var err error
	if !ok || pod.ContainerID == "" || cur.ContainerID == "" || cur.ContainerID == pod.ContainerID {
		if !ok {
			cur = *pod // the keeper may hold a TAP that was not attached
		}
		p.attacher.Detach(cur.String())
		p.forgetLocked(cur.String())
		if err = p.o.Keeper.Delete(keptKey(&cur)); err != nil {
			err = fmt.Errorf("have the keeper release the TAP: %w", err)
		}
		p.releaseLocked(leaseKey(&cur))
	}
	p.releaseLocked(key)
	return err
}

func (p *Registry) releaseLocked(k ipam.Key) {
	delete(p.prepared, k)
	if err := p.leases.Release(k); err != nil { // the release counts, and is written later
		p.o.Log.Error("the journal of addresses is not up to date", "err", err)
	}
}

// Check implements cni.Allocator.
func (p *Registry) Check(_ context.Context, pod cni.Pod) (cni.Pod, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cur, ok := p.findLocked(leaseKey(&pod))
	if !ok || !p.attacher.Attached(cur.String()) {
		return cni.Pod{}, cni.ErrNotAttached
	}
	if l, ok := p.leases.Get(leaseKey(&cur)); cur.Network != "" && (!ok || !slices.Equal(l.Addrs, cur.Addrs)) {
		return cni.Pod{}, fmt.Errorf("the journal does not have its addresses %v", cur.Addrs)
	}
	return cur, nil
}

// Collect implements cni.Allocator.
func (p *Registry) Collect(_ context.Context, network string, valid []cni.Attachment) error {
	p.mu.Lock()
	defer p.unlock()
	keep := map[ipam.Key]bool{}
	for _, v := range valid {
		keep[ipam.Key(v)] = true
	}
	var errs []error
	for _, pod := range p.listLocked() {
		if pod.Network == network && !keep[leaseKey(&pod)] {
			p.o.Log.Warn("collecting a pod that the runtime does not have", "pod", pod.String(), "container", pod.ContainerID)
			errs = append(errs, p.delLocked(&pod))
		}
	}
	for _, l := range p.leases.Held() {
		if l.Network == network && !keep[l.Key] {
			p.o.Log.Warn("collecting addresses of a pod that the runtime does not have", "pod", l.Namespace+"/"+l.Name, "container", l.ContainerID, "addrs", l.Addrs)
			p.releaseLocked(l.Key)
		}
	}
	return errors.Join(errs...)
}

func (p *Registry) listLocked() []cni.Pod {
	var list []cni.Pod
	for _, pod := range p.attached {
		list = append(list, pod)
	}
	return list
}

// Counters returns how many pods and addresses there are.
func (p *Registry) Counters() counter.List {
	p.mu.Lock()
	defer p.mu.Unlock()
	return counter.List{
		counter.One(counter.Gauge, "tapestry_pods", "Pods that are attached.", len(p.attached)),
		counter.One(counter.Gauge, "tapestry_address_leases", "Attachments that hold addresses of the node's podCIDRs.", len(p.leases.Held())),
		counter.One(counter.Gauge, "tapestry_addresses_resting", "Addresses of pods that are gone, which no pod is given yet.", p.leases.Resting()),
	}
}

// Close closes the journal. Pods stay attached.
func (p *Registry) Close() error { return p.leases.Close() }

// review detaches pods whose TAP was deleted, as by a DEL while no agent was running. It releases addresses that were
// prepared and have waited too long for their pod.
func (p *Registry) review() {
	p.mu.Lock()
	defer p.unlock()
	for _, pod := range p.listLocked() {
		if p.attacher.Attached(pod.String()) {
			continue
		}
		p.o.Log.Warn("a pod's TAP is gone, and so is the pod", "pod", pod.String(), "container", pod.ContainerID)
		if err := p.delLocked(&pod); err != nil {
			p.o.Log.Error("a pod was not detached completely", "pod", pod.String(), "err", err)
		}
	}
	now := p.o.Now()
	for k, since := range p.prepared {
		l, _ := p.leases.Get(k)
		// A pod that lost its TAP has its address still, as everybody else believes: it is nobody else's before its
		// DEL.
		if now.Sub(since) >= prepareTime && !p.o.Claimed(l.Namespace, l.Name, l.Addrs) {
			p.o.Log.Warn("addresses were prepared for a pod that did not come", "container", k.ContainerID)
			p.releaseLocked(k)
		}
	}
}

// Run calls review at intervals until ctx is done.
func (p *Registry) Run(ctx context.Context) {
	tick := time.NewTicker(reviewTime)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.review()
		case <-ctx.Done():
			return
		}
	}
}
