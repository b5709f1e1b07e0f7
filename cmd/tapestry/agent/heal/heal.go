// Package heal finds what a node has lost for good, tells it, and gets back what it can.
//
// What outlives an agent is held by the keeper, and what the keeper holds the agent gives to the next one. When both
// end at once, the descriptors are gone: those of pods' TAPs, which the kernel deletes with them, of the host TAP,
// which is persistent, and of sockets on privileged ports. The same is lost when a Node is made anew without its
// labels, as both DaemonSets then delete their pods, and a part of it when a Node gets other ranges.
//
// The host TAP the agent attaches again by itself, as its owner. The rest takes rights that the agent does not have.
// Where the init steps of its pod are the remedy, the pod has to be made anew, since kubelet does not run the steps of
// a pod again. Where pods have lost their TAP they have to be made anew, since nobody else notices (pods.Broken). The
// Healer tells both with the command that does it. Where it may evict pods, it has them evicted: one at a time, and as
// their PodDisruptionBudgets allow.
//
// An agent is not ready while anything of this is so, unless the next one waits for the node. The node itself goes on:
// nothing but a scheduler's condition follows from readiness, and the liveness of the agent does not depend on it.
package heal

import (
	"context"
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

	"tapestry.dev/tapestry/cmd/tapestry/agent/follow"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/evict"
	"tapestry.dev/tapestry/kube/pods"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	// lookEvery is the time between two looks at the node.
	lookEvery = time.Second
	// patience is how long something must be wrong before it is believed, but for what is found at the start. A pod
	// whose sandbox is just being made anew has no TAP for a moment.
	patience = 5 * time.Second
	// evictTime limits a request for an eviction.
	evictTime = 10 * time.Second
)

// Keeper is the keeper, as *keeper.Holdings is one.
type Keeper interface {
	hosttap.Store
	Listener(addr string) (net.Listener, error)
}

// Options are the settings of a Healer. All are required, but for OwnPod, OwnUID, Evict and EvictAfter.
type Options struct {
	// Node is the node's name.
	Node string
	// OwnPod and OwnUID name the pod that the agent runs in.
	OwnPod kube.Ref
	OwnUID string
	// Stepped says that an init step has made the host TAP and the sockets of privileged ports before the agent.
	Stepped bool
	// Doors are the addresses of Ingress.
	Doors    []string
	Follower *follow.Follower
	Pods     *pods.Registry
	// ByObject says that whoever attaches pods takes no leases, so that only Pod objects tell which there are.
	ByObject bool
	Keeper   Keeper
	// Mark is the path of a file that says which of the agent's pods was whole.
	Mark string
	// Evict has a pod evicted that has been broken for EvictAfter. nil: nobody is.
	Evict      func(ctx context.Context, pod kube.Ref, uid string) error
	EvictAfter time.Duration
	Log        *slog.Logger
}

// Healer looks after a node. Its methods are safe for concurrent use.
type Healer struct {
	o     Options
	Doors *Doors

	mu sync.Mutex
	// mu guards what follows.
	looked  bool
	found   map[string]time.Time // since when something is wrong, by Ailment.key
	list    []Ailment            // what is believed
	refused map[string]bool      // by UID: pods whose eviction a budget does not allow
	results map[string]int       // of evictions

	// Only Run uses what follows.
	mark    mark
	history history
}

// New returns a Healer. It does nothing before Run, but for its Doors.
func New(o Options) *Healer {
	return &Healer{
		o: o, Doors: newDoors(o.Doors, o.Keeper.Listener), found: map[string]time.Time{}, refused: map[string]bool{},
		results: map[string]int{"evicted": 0, "refused": 0, "failed": 0}, mark: mark{path: o.Mark, uid: o.OwnUID},
		history: history{after: o.EvictAfter},
	}
}

// Run looks after the node, once there is one, until ctx is done.
func (h *Healer) Run(ctx context.Context) {
	select {
	case <-h.o.Follower.Started():
	case <-ctx.Done():
		return
	}
	h.mark.read()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		h.look(time.Now())
		h.treat(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look finds out how the node is, and has what changed told.
func (h *Healer) look(now time.Time) {
	doors, tried := h.Doors.closed()
	for i := range doors {
		doors[i].Had = h.mark.whole
	}
	f := Facts{OwnPod: h.o.OwnPod, Stepped: h.o.Stepped, HostTAP: h.hostTAP(), Doors: doors}
	if objs := h.o.Follower.Objects(); objs != nil {
		f.Pods = h.o.Pods.Broken(objs.Pods, h.o.Node, h.o.ByObject)
	}
	list, fresh := h.believe(Diagnose(&f), now)
	if tried && whole(&f, list) {
		if err := h.mark.set(); err != nil {
			h.o.Log.Warn("the agent does not remember that its init steps were of use, so that it will not have its pod evicted to run them again", "err", err)
		}
	}
	for _, a := range fresh {
		h.o.Log.Error("something is lost that this agent does not get back", "object", a.object(h.o.Node).String(), "err", a.Message, "remedy", a.Remedy)
	}
	// Problems of the node, as a node port that another program has, come and go without a snapshot, too.
	h.o.Follower.Republish()
}

// key tells Ailments apart.
func (a *Ailment) key() string { return string(a.Kind) + " " + a.Broken.UID + " " + a.Message }

// believe remembers since when something is wrong, and returns what is believed of list, and what was not before.
func (h *Healer) believe(list []Ailment, now time.Time) (out, fresh []Ailment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := map[string]time.Time{}
	for _, a := range list {
		since, known := h.found[a.key()]
		if !known {
			since = now
		}
		found[a.key()] = since
		was := slices.ContainsFunc(h.list, func(b Ailment) bool { return a.key() == b.key() })
		if h.looked && !was && now.Sub(since) < patience {
			continue
		}
		out = append(out, a)
		if !was {
			fresh = append(fresh, a)
		}
	}
	h.found, h.list, h.looked = found, out, true
	return out, fresh
}

// hostTAP returns why the node has no host TAP although it should, after it has tried to get it back.
func (h *Healer) hostTAP() error {
	n := h.o.Follower.Node()
	if n.HasHostTAP(netip.Addr{}) {
		return nil
	}
	err := AttachHost(h.o.Keeper, n.AttachHost)
	if errors.Is(err, tap.ErrNoDevice) && !h.o.Stepped {
		return nil
	}
	return err
}

// AttachHost gets the host TAP from the keeper, or finds it, and attaches it. The error wraps tap.ErrNoDevice when
// there is none.
func AttachHost(kept hosttap.Store, attach func(json.RawMessage, *os.File) error) error {
	err := attachKept(kept, attach)
	// EBADFD: the keeper's descriptor is of a device that was deleted. There may be another one by now.
	if errors.Is(err, keeper.ErrNotFound) || errors.Is(err, unix.EBADFD) {
		if err = hosttap.Find(nil, kept); err == nil {
			err = attachKept(kept, attach)
		}
	}
	return err
}

func attachKept(kept hosttap.Store, attach func(json.RawMessage, *os.File) error) error {
	it, err := kept.Get(hosttap.Key)
	if err != nil {
		return err
	}
	if err = attach(it.Meta, it.File); err != nil {
		_ = it.File.Close()
	}
	return err
}

// treat has at most one pod evicted.
func (h *Healer) treat(ctx context.Context) {
	if h.o.Evict == nil {
		return
	}
	p, ok := h.history.next(h.patients(), time.Now())
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, evictTime)
	defer cancel()
	err := h.o.Evict(ctx, p.pod, p.uid)
	h.history.note(p, time.Now())
	result := "evicted"
	switch {
	case errors.Is(err, evict.ErrBudget):
		result = "refused"
	case err != nil:
		result = "failed"
		h.o.Log.Error("a pod that has to be made anew was not evicted", "pod", p.pod.String(), "err", err)
	default:
		h.o.Log.Warn("evicted a pod, so that it is made anew", "pod", p.pod.String())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.results[result]++
	if delete(h.refused, p.uid); result == "refused" {
		h.refused[p.uid] = true
	}
}

// patients returns who may be evicted.
func (h *Healer) patients() []patient {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []patient
	for _, a := range h.list {
		p := patient{pod: a.Broken.Pod, uid: a.Broken.UID, since: h.found[a.key()]}
		switch {
		case a.Step && h.mark.whole: // else they were of no use before either
			p = patient{pod: h.o.OwnPod, uid: h.o.OwnUID, since: p.since, own: true}
		case !a.Broken.Managed:
			continue
		}
		list = append(list, p)
	}
	return list
}

// Problems returns what ails the node, worst first.
func (h *Healer) Problems() []kube.Problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []kube.Problem
	for _, a := range h.list {
		if p, tell := a.problem(h.o.Node); tell {
			if h.refused[a.Broken.UID] {
				p.Message += fmt.Sprintf("; it is not evicted: %v", evict.ErrBudget)
			}
			list = append(list, p)
		}
	}
	return list
}

// Unfit says why nothing should be scheduled on the node, or returns "". Without a host TAP, probes of new pods fail.
func (h *Healer) Unfit() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.list {
		if a.Kind == NoHostTAP && a.Step {
			return a.Message + "; " + a.Remedy
		}
	}
	return ""
}

var errNotLooked = errors.New("the agent has not looked yet")

// CheckHost returns why the node itself is not whole, or nil.
func (h *Healer) CheckHost(context.Context) error { return h.check(HostError) }

// CheckPods names the pods that have no network, or returns nil.
func (h *Healer) CheckPods(context.Context) error { return h.check(PodsError) }

func (h *Healer) check(of func([]Ailment) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.looked {
		return errNotLooked
	}
	return of(h.list)
}

// Counters returns what ails the node, and what was done.
func (h *Healer) Counters() counter.List {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := map[string]int{}
	for _, k := range kinds {
		n[string(k)] = 0
	}
	for _, a := range h.list {
		n[string(a.Kind)]++
	}
	return counter.List{
		counter.By(counter.Gauge, "tapestry_ailments", "What the node has lost and does not get back by itself: the host TAP, addresses of Ingress, pods without TAP, pods of an earlier range.", "kind", n),
		counter.By(counter.Total, "tapestry_evictions_total", "Evictions of pods that have to be made anew, by result.", "result", h.results),
	}
}
