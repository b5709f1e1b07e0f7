// Package hosttap makes the device of the host TAP: the persistent TAP through which processes of a node reach pods and
// Services. This needs NET_ADMIN, which the agent does not have. So an init step makes the device and leaves its
// descriptor with the keeper, where the agent gets it.
package hosttap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
)

const (
	// Name of the interface.
	Name = "tapestry0"
	// Key is the keeper's key for the descriptor, whose meta is a Meta.
	Key = "host"
)

// Meta describes the device to the agent. The device's Ethernet address is tap.HostMAC.
type Meta struct {
	Name  string       `json:"name"`
	Addrs []netip.Addr `json:"addrs"`
	MTU   int          `json:"mtu"` // in bytes
	// Pods and Services are the ranges that the node routes through the device. A version that did not record them left
	// both empty.
	Pods     []netip.Prefix `json:"pods,omitempty"`
	Services []netip.Prefix `json:"services,omitempty"`
	// LoadBalancers are the ranges of load balancers' addresses that the node routes through the device, too.
	LoadBalancers []netip.Prefix `json:"loadBalancers,omitempty"`
}

// ParseMeta reads the meta under Key.
func ParseMeta(text json.RawMessage) (m Meta, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return Meta{}, fmt.Errorf("read what the keeper holds of the host TAP: %w", err)
	}
	return m, nil
}

// Config describes the device.
type Config struct {
	// PodCIDRs are the node's ranges, at most one per family. The device has the second address of each.
	PodCIDRs []netip.Prefix
	// Pods and Services are the ranges of pods and of Services in the whole cluster. They are routed through the
	// device, but for those of a family without a PodCIDR.
	Pods, Services []netip.Prefix
	// LoadBalancers are ranges of load balancers' addresses, which are routed through the device as well: what a client
	// outside sends there, and the node forwards, becomes the agent's.
	LoadBalancers []netip.Prefix
	// MTU of pods, in bytes.
	MTU int
	// Owner is the uid of the agent.
	Owner int
}

// Store holds the descriptor: a *keeper.Client or a *keeper.Keeper.
type Store interface {
	Get(key string) (keeper.Item, error)
	Put(key string, meta json.RawMessage, f *os.File) error
}

// Addrs returns the host TAP's addresses on a node with these ranges.
func Addrs(podCIDRs []netip.Prefix) []netip.Addr {
	var list []netip.Addr
	for _, p := range podCIDRs {
		list = append(list, addressing.Host(p))
	}
	return list
}

// Ensure makes the device in ns as c says and has store hold its descriptor. If both exist already, it changes the
// device to what c says, which disturbs its users only if its addresses change. Ensure needs CAP_NET_ADMIN over the
// namespace.
func Ensure(ns *tap.Namespace, store Store, c Config) error {
	if err := noneTaken(ns, c.LoadBalancers); err != nil {
		return err
	}
	meta := Meta{Name: Name, Addrs: Addrs(c.PodCIDRs), MTU: c.MTU, Pods: c.Pods, Services: c.Services, LoadBalancers: c.LoadBalancers}
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	device := tap.HostConfig(Name, meta.Addrs, slices.Concat(c.Pods, c.Services, c.LoadBalancers), c.MTU, c.Owner)
	device.Alias = aliasOf(c.Pods, c.Services, c.LoadBalancers)
	f, err := kept(ns, store, device)
	if err != nil {
		return err
	}
	if f == nil {
		f, err = tap.Create(ns, device)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: a process unknown to the keeper has it open, such as an agent whose keeper has ended: stop it", err)
		}
		if err != nil {
			return err
		}
	}
	defer f.Close()
	return store.Put(Key, text, f)
}

// kept returns the descriptor that store holds, and changes the device to what c says. It returns nil when store has
// none, or the device was deleted.
func kept(ns *tap.Namespace, store Store, c tap.Config) (*os.File, error) {
	it, err := store.Get(Key)
	if errors.Is(err, keeper.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := tap.Configure(ns, it.File, c); err != nil {
		it.File.Close()
		if errors.Is(err, tap.ErrNoDevice) { // the device was deleted
			return nil, nil
		}
		return nil, err
	}
	return it.File, nil
}

// aliasOf returns the alias of the device: the ranges that a Meta has and that nothing else tells of the device. It
// names none when not all fit.
func aliasOf(pods, services, balancers []netip.Prefix) string {
	text := fmt.Sprintf("tapestry: pods %s services %s", join(pods), join(services))
	if len(balancers) > 0 {
		text += balancersIn + join(balancers)
	}
	if len(text) > tap.MaxAlias {
		return aliasOf(nil, nil, nil)
	}
	return text
}

// balancersIn stands before the ranges of load balancers in an alias, where there are any.
const balancersIn = " load-balancers "

func join(list []netip.Prefix) string {
	texts := []string{}
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

// rangesIn returns the ranges in an alias. An alias that aliasOf did not make has none.
func rangesIn(alias string) (pods, services, balancers []netip.Prefix) {
	text, ok := strings.CutPrefix(alias, "tapestry: pods ")
	before, after, found := strings.Cut(text, " services ")
	if !ok || !found {
		return nil, nil, nil
	}
	after, last, _ := strings.Cut(after, balancersIn)
	return split(before), split(after), split(last)
}

func split(text string) (list []netip.Prefix) {
	for part := range strings.SplitSeq(text, ",") {
		if p, err := netip.ParsePrefix(part); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// Find attaches to the device when no descriptor of it is left, as after the end of the keeper and the agent at once,
// and has store hold one again. The device is persistent, so it outlives its descriptors, and its owner, who the caller
// has to be, may attach without a capability. The error wraps tap.ErrNoDevice when there is no device.
func Find(ns *tap.Namespace, store Store) error {
	device, err := tap.Describe(ns, Name)
	if err != nil {
		return err
	}
	f, err := tap.Open(Name, ns)
	if err != nil {
		return err
	}
	defer f.Close()
	meta := Meta{Name: Name, MTU: device.MTU}
	for _, p := range device.Addrs {
		meta.Addrs = append(meta.Addrs, p.Addr())
	}
	meta.Pods, meta.Services, meta.LoadBalancers = rangesIn(device.Alias)
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	return store.Put(Key, text, f)
}

// Remove deletes the device. It returns nil if there is none.
func Remove(ns *tap.Namespace) error {
	if err := tap.DeleteLink(ns, Name); err != nil && !errors.Is(err, tap.ErrNoDevice) {
		return err
	}
	return nil
}
